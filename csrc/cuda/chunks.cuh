// Blocks of 32 rows against tiles of columns, with any number of features, a chunk of them at a
// time: what MMD²'s kernels use whose rows are too wide for registers.
//
// A chunk lies row by row, as samples do, so that it comes by copies of 16 bytes; while one is
// worked on, the next is on its way. A warp has four of the rows. Where pairs are visited, its
// lanes have a column each (or several), and read four features (two of doubles) by one load: of
// the rows all lanes the same. Where features are, its lanes have two features each, and half of
// the columns.
#pragma once

#include <type_traits>

#include "cuda/groups.cuh"
#include "cuda/reduce.cuh"

namespace cgm_fast::cuda {

constexpr int kChunkRows = 32, kChunkFeatures = 32, kChunkRowsOfWarp = kChunkRows / kWarps;

// Padded by one load: lanes that read the same features of different rows meet all banks.
template <typename T, int kCount>
struct alignas(16) Chunk2d {
  static constexpr int kPack = 16 / static_cast<int>(sizeof(T));
  static constexpr int kStride = kChunkFeatures + kPack;
  T of[kCount][kStride];
};

// What pairs of rows and columns of a tile have, by rows; padded likewise.
template <typename T, int kColumns>
struct alignas(16) PairsOfTile {
  T of[kChunkRows][kColumns + 16 / sizeof(T)];
};

// Begin to copy features [begin, begin + kChunkFeatures) of the first `here` of these rows, with
// zeros for rows and features that are not there.
template <typename T, int kCount>
__device__ void fetch_chunk(const Samples& from, int here, int begin, int d,
                            Chunk2d<T, kCount>& to) {
  constexpr int kPack = Chunk2d<T, kCount>::kPack, kBytes = static_cast<int>(sizeof(T));
  const int thread = opaque(static_cast<int>(threadIdx.x));
  const auto copy = [&](auto numbers) {
    constexpr int kNumbers = decltype(numbers)::value, kOfRow = kChunkFeatures / kNumbers;
    constexpr int kStep = kThreads / kOfRow, kTurns = kCount / kStep;
    const int first = thread / kOfRow, f = thread % kOfRow * kNumbers, left = d - begin - f;
    const int bytes = (left < kNumbers ? left < 0 ? 0 : left : kNumbers) * kBytes;
    const T* source = static_cast<const T*>(from.data) + first * from.row_stride +
                      (begin + f) * from.feature_stride;
#pragma unroll 4
    for (int turn = 0; turn < kTurns; ++turn) {
      const int row = first + turn * kStep;
      copy_async<kNumbers * kBytes>(&to.of[row][f], source, row < here ? bytes : 0);
      source += kStep * from.row_stride;
    }
  };
  if (is_of<T>(from)) {
    if (aligned(from, 0, kPack)) {
      copy(std::integral_constant<int, kPack>{});
    } else {
      copy(std::integral_constant<int, 1>{});
    }
  } else if constexpr (sizeof(T) == 4) {
    const HalvesOf at = halves_of(from);
    const int last = here - 1;
    each_element<kChunkFeatures>(
        kCount, kChunkFeatures,
        [&](int row, int f) {
          const bool there = row < here && begin + f < d;
          const float value = at(row < here ? row : last, begin + f < d ? begin + f : d - 1);
          return there ? value : 0.f;
        },
        [&](int row, int f, float value) { to.of[row][f] = value; });
  }
}

// Calls `use(tile, turn, chunk, step, stage)` for every chunk of every tile of columns, one after
// another, from the first chunk to the last (`chunks` steps), and then, if `back`, from the last
// but one to the first. `turn` is that of the tile, 0 or 1. Meanwhile the one after it is on its
// way to the other stage: `fetch(tile, turn, chunk, stage)` begins that. A barrier for each.
template <int kColumns, typename T, typename Fetch, typename Use>
__device__ void each_chunk(const MmdProblem<T>& in, int chunks, bool back, const Fetch& fetch,
                           const Use& use) {
  using Tile = ColumnTile<kColumns>;
  const int steps = back ? 2 * chunks - 1 : chunks;
  Tile of{};
  int turn = 1, stage = 1, step = steps - 1;  // as behind a tile before the first
  bool begun = false;
#pragma unroll 1
  while (true) {
    if (begun) {
      copy_async_wait<0>();
      sync_block();  // the chunk has arrived, and the one before it has been read
    }
    const bool ends = step + 1 == steps, is_last = begun && of.first + of.here == in.rows;
    Tile to_come = of;
    if (!ends || !is_last) {
      if (ends) to_come = begun ? of.next(in) : Tile::at(in, 0);
      const int after = ends ? 0 : step + 1 < chunks ? step + 1 : 2 * chunks - 3 - step;
      fetch(to_come, ends ? turn ^ 1 : turn, after, stage ^ 1);
      copy_async_commit();
    }
    if (begun) use(of, turn, step < chunks ? step : 2 * chunks - 2 - step, step, stage);
    if (ends && is_last) return;
    begun = true;
    stage ^= 1;
    if (ends) {
      of = to_come;
      turn ^= 1;
    }
    step = ends ? 0 : step + 1;
  }
}

// Thread's pairs: row warp * 4 + q with column lane + 32 c.
template <typename T, int kColumns>
using PairsOfThread = T[kChunkRowsOfWarp][kColumns / kWarp];

__device__ inline int lane_of_thread() { return static_cast<int>(threadIdx.x) % kWarp; }
__device__ inline int first_row_of_warp() {
  return static_cast<int>(threadIdx.x) / kWarp * kChunkRowsOfWarp;
}

// Adds to squared distances of the thread's pairs those of a chunk of features.
template <typename T, int kColumns>
__device__ void add_squares(const Chunk2d<T, kChunkRows>& rows, const Chunk2d<T, kColumns>& columns,
                            int features, PairsOfThread<T, kColumns>& u) {
  constexpr int kPack = Chunk2d<T, kColumns>::kPack, kOfLane = kColumns / kWarp;
  const int lane = lane_of_thread(), first = first_row_of_warp();
  PairsOfThread<T, kColumns> of_chunk = {};  // sums of sums: rounding would add up
#pragma unroll 1
  for (int f = 0; f < features; f += kPack) {
    Pack<T, kPack> of_row[kChunkRowsOfWarp];
#pragma unroll
    for (int q = 0; q < kChunkRowsOfWarp; ++q) of_row[q] = read_pack<kPack>(&rows.of[first + q][f]);
#pragma unroll
    for (int c = 0; c < kOfLane; ++c) {
      const Pack<T, kPack> of_column = read_pack<kPack>(&columns.of[lane + kWarp * c][f]);
#pragma unroll
      for (int q = 0; q < kChunkRowsOfWarp; ++q) {
#pragma unroll
        for (int p = 0; p < kPack; ++p) {
          const T difference = of_row[q].of[p] - of_column.of[p];
          of_chunk[q][c] = fma(difference, difference, of_chunk[q][c]);
        }
      }
    }
  }
#pragma unroll
  for (int q = 0; q < kChunkRowsOfWarp; ++q) {
#pragma unroll
    for (int c = 0; c < kOfLane; ++c) u[q][c] += of_chunk[q][c];
  }
}

// A thread's share of weighted differences: of the warp's rows and its lane's two features, over
// the half of the columns that its lane has.
template <typename T>
struct WeightedDifferences {
  static constexpr int kOf = 2, kHalf = kChunkFeatures / kOf;
  static_assert(kHalf * 2 == kWarp);
  T sums[kChunkRowsOfWarp][kOf] = {};

  __device__ static int feature() { return lane_of_thread() % kHalf * kOf; }

  // Adds sum_j w_ij (a_i - b_j) over a tile.
  template <int kColumns>
  __device__ void add(const PairsOfTile<T, kColumns>& weights, const Chunk2d<T, kChunkRows>& rows,
                      const Chunk2d<T, kColumns>& columns, int here) {
    constexpr int kPack = Chunk2d<T, kColumns>::kPack;
    const int first = first_row_of_warp(), f = feature();
    Pack<T, kOf> of_row[kChunkRowsOfWarp];
#pragma unroll
    for (int q = 0; q < kChunkRowsOfWarp; ++q) of_row[q] = read_pack<kOf>(&rows.of[first + q][f]);
#pragma unroll 2
    for (int j = lane_of_thread() / kHalf * kPack; j < here; j += 2 * kPack) {
      Pack<T, kPack> weight[kChunkRowsOfWarp];
#pragma unroll
      for (int q = 0; q < kChunkRowsOfWarp; ++q) {
        weight[q] = read_pack<kPack>(&weights.of[first + q][j]);
      }
#pragma unroll
      for (int c = 0; c < kPack; ++c) {
        const Pack<T, kOf> of_column = read_pack<kOf>(&columns.of[j + c][f]);
#pragma unroll
        for (int q = 0; q < kChunkRowsOfWarp; ++q) {
#pragma unroll
          for (int p = 0; p < kOf; ++p) {
            const T difference = of_row[q].of[p] - of_column.of[p];
            sums[q][p] = fma(weight[q].of[c], difference, sums[q][p]);
          }
        }
      }
    }
  }

  // Calls `use(row, feature, sum)` in one thread for each of them.
  template <typename Use>
  __device__ void each(const Use& use) {
    const int first = first_row_of_warp(), half = lane_of_thread() / kHalf;
#pragma unroll
    for (int q = 0; q < kChunkRowsOfWarp; ++q) {
#pragma unroll
      for (int p = 0; p < kOf; ++p) {
        const T sum = sums[q][p] + shuffle_xor(sums[q][p], kHalf);
        if (q / 2 == half) use(first + q, feature() + p, sum);
      }
    }
  }
};

}  // namespace cgm_fast::cuda
