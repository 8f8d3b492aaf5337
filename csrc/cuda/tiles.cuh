// Tiles of 32 rows against some columns, with any number of features, a few at a time: what kernels
// use whose rows are too wide for registers.
//
// A warp has four of the rows. Where pairs are visited its lanes have a column each (or several);
// where features are, a feature each.
#pragma once

#include <cmath>
#include <cstddef>
#include <type_traits>

#include "cuda/reduce.cuh"

namespace cgm_fast::cuda {

constexpr int kRows = 32, kRowsOfWarp = kRows / kWarps, kFeatures = 32;

// Features [begin, begin + kFeatures) of kCount rows; padded by a column against bank conflicts of
// lanes that read one feature of different rows.
template <typename T, int kCount>
using Chunk = T[kCount][kFeatures + 1];

// `at(row, feature)` reads an element; rows from `here` on and features from d on are zeros.
template <typename T, int kCount, typename At>
__device__ void load_chunk(Chunk<T, kCount>& chunk, int here, int begin, int d, const At& at) {
#pragma unroll 1
  for (int place = static_cast<int>(threadIdx.x); place < kCount * kFeatures; place += kThreads) {
    const int row = place / kFeatures, f = begin + place % kFeatures;
    chunk[row][place % kFeatures] = row < here && f < d ? at(row, f) : T(0);
  }
}

// Thread's pairs: row warp * 4 + q with column lane + 32 c.
template <typename T, int kColumns>
using Pairs = T[kRowsOfWarp][kColumns / kWarp];

// Calls `use(q, c, row, column)` for each of the thread's pairs.
template <int kColumns, typename Use>
__device__ void each_pair(const Use& use) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int first = static_cast<int>(threadIdx.x) / kWarp * kRowsOfWarp;
#pragma unroll
  for (int q = 0; q < kRowsOfWarp; ++q) {
#pragma unroll
    for (int c = 0; c < kColumns / kWarp; ++c) use(q, c, first + q, lane + kWarp * c);
  }
}

// Squared distances of the thread's pairs. One chunk of features stays in shared memory.
template <typename T, int kColumns, typename AtRow, typename AtColumn>
__device__ void squared_distances(Pairs<T, kColumns>& u, Chunk<T, kRows>& rows,
                                  Chunk<T, kColumns>& columns, int rows_here, int columns_here,
                                  int d, const AtRow& at_row, const AtColumn& at_column) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int first = static_cast<int>(threadIdx.x) / kWarp * kRowsOfWarp;
  each_pair<kColumns>([&](int q, int c, int, int) { u[q][c] = 0; });
#pragma unroll 1
  for (int begin = 0; begin < d; begin += kFeatures) {
    sync_block();  // the chunk before has been read
    load_chunk<T, kRows>(rows, rows_here, begin, d, at_row);
    load_chunk<T, kColumns>(columns, columns_here, begin, d, at_column);
    sync_block();
    const int some = d - begin < kFeatures ? d - begin : kFeatures;
    Pairs<T, kColumns> of_chunk = {};  // sums of sums: with many features rounding would add up
    for (int f = 0; f < some; ++f) {
      T of_row[kRowsOfWarp];
#pragma unroll
      for (int q = 0; q < kRowsOfWarp; ++q) of_row[q] = rows[first + q][f];
#pragma unroll
      for (int c = 0; c < kColumns / kWarp; ++c) {
        const T of_column = columns[lane + kWarp * c][f];
#pragma unroll
        for (int q = 0; q < kRowsOfWarp; ++q) {
          const T difference = of_row[q] - of_column;
          of_chunk[q][c] = fma(difference, difference, of_chunk[q][c]);
        }
      }
    }
    each_pair<kColumns>([&](int q, int c, int, int) { u[q][c] += of_chunk[q][c]; });
  }
}

// For each of the block's rows and each feature f, `use(row, f, sum over columns of w (a - b))`,
// where a is the row's and b the column's; `use_column(column, f, sum over rows of w (b - a))` for
// each column, unless it is null. Weights are in shared memory.
template <typename T, int kColumns, typename AtRow, typename AtColumn, typename Use,
          typename UseColumn = std::nullptr_t>
__device__ void weighted_differences(const T (&weights)[kRows][kColumns + 1], Chunk<T, kRows>& rows,
                                     Chunk<T, kColumns>& columns, int rows_here, int columns_here,
                                     int d, const AtRow& at_row, const AtColumn& at_column,
                                     const Use& use, const UseColumn& use_column = nullptr) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp, first = warp * kRowsOfWarp;
#pragma unroll 1
  for (int begin = 0; begin < d; begin += kFeatures) {
    sync_block();
    load_chunk<T, kRows>(rows, rows_here, begin, d, at_row);
    load_chunk<T, kColumns>(columns, columns_here, begin, d, at_column);
    sync_block();
    T sums[kRowsOfWarp] = {}, of_row[kRowsOfWarp];
#pragma unroll
    for (int q = 0; q < kRowsOfWarp; ++q) of_row[q] = rows[first + q][lane];
    for (int j = 0; j < columns_here; ++j) {
      const T of_column = columns[j][lane];
#pragma unroll
      for (int q = 0; q < kRowsOfWarp; ++q) {
        sums[q] = fma(weights[first + q][j], of_row[q] - of_column, sums[q]);
      }
    }
#pragma unroll
    for (int q = 0; q < kRowsOfWarp; ++q) {
      if (first + q < rows_here && begin + lane < d) use(first + q, begin + lane, sums[q]);
    }
    if constexpr (!std::is_null_pointer_v<UseColumn>) {
      for (int j = warp; j < columns_here; j += kWarps) {
        const T of_column = columns[j][lane];
        T sum = 0;
        for (int i = 0; i < rows_here; ++i) {
          sum = fma(weights[i][j], of_column - rows[i][lane], sum);
        }
        if (begin + lane < d) use_column(j, begin + lane, sum);
      }
    }
  }
}

}  // namespace cgm_fast::cuda
