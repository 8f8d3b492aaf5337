// What blocks of prototype_margin have in common: 32 rows, which are samples or prototypes, against
// tiles of the others, a chunk of features at a time; the next chunk is on its way meanwhile.
#pragma once

#include <type_traits>

#include "cuda/chunks.cuh"
#include "cuda/read.cuh"
#include "prototype_margin.h"

namespace cgm_fast::cuda {

// Of a tile: so many that four blocks share a multiprocessor; and where one tile is all there is.
template <typename T>
constexpr int kPrototypeColumns = sizeof(T) == 4 ? 64 : 32;
constexpr int kFewPrototypes = 32;

// Samples of a split of which a block of prototypes lists those that it needs, at once.
constexpr int kBatch = 2 * kThreads;

template <typename T, int kColumns>
struct PrototypeMemory {
  struct Stage {
    Chunk2d<T, kChunkRows> rows;
    Chunk2d<T, kColumns> columns;
  } stages[2];
  PairsOfTile<T, kColumns> weights;
  PrototypeShare shares[kChunkRows];
  double scratch[kScratch];
  int64_t place;        // of the block's rows in what they are written to
  int begin, end;       // of its split's columns
  int own[kChunkRows];  // of each row its prototype; or its complement, if others are inside
  int list[kBatch], listed, counts[kWarps];
};

// Rows that a tile takes: those of the samples from `first` on, or those of a list. Samples without
// data are zeros.
struct RowsFrom {
  const Samples& of;
  int first;
  const int* list = nullptr;

  __device__ int64_t at(int row) const { return list ? list[row] : first + row; }
};

// Begin to copy features [begin, begin + kChunkFeatures) of the first `here` of these rows, with
// zeros for rows that are not there, and behind the features up to the end of 16 bytes.
template <typename T, int kCount>
__device__ void fetch_rows(const RowsFrom& from, int here, int begin, int d,
                           Chunk2d<T, kCount>& to) {
  constexpr int kNumbersOf16 = Chunk2d<T, kCount>::kPack, kBytes = static_cast<int>(sizeof(T));
  const Samples& of = from.of;
  const auto copy = [&](auto numbers) {
    // Neighbouring threads share a row: one by one as many as it has numbers here, or a few more.
    constexpr int kNumbers = decltype(numbers)::value;
    int shift = kNumbers == 1 ? 5 : kNumbers == 2 ? 4 : 3;
    static_assert(kChunkFeatures == 1 << 5 && kNumbers <= 4);
    while (kNumbers == 1 && 1 << shift > kNumbersOf16 && 1 << (shift - 1) >= d - begin) --shift;
    const int thread = opaque(static_cast<int>(threadIdx.x)), step = kThreads >> shift;
    const int first = thread >> shift, f = (thread - (first << shift)) * kNumbers;
    const int left = d - begin - f;
    const int bytes = (left < kNumbers ? left < 0 ? 0 : left : kNumbers) * kBytes;
    const T* data = static_cast<const T*>(of.data) + (begin + f) * of.feature_stride;
#pragma unroll 1
    for (int row = first; row < kCount; row += step) {
      const bool there = row < here && of.data;
      const T* source = data + (there ? from.at(row) * of.row_stride : 0);
      copy_async<kNumbers * kBytes>(&to.of[row][f], source, there ? bytes : 0);
    }
  };
  if (is_of<T>(of)) {
    if (aligned(of, 0, kNumbersOf16)) {
      copy(std::integral_constant<int, kNumbersOf16>{});
    } else {
      copy(std::integral_constant<int, 1>{});
    }
  } else if constexpr (sizeof(T) == 4) {
    const HalvesOf all = halves_of(of);
    each_element<kChunkFeatures>(
        kCount, kChunkFeatures,
        [&](int row, int f) {
          const bool there = row < here && begin + f < d;
          HalvesOf at = all;
          at.data += from.at(row < here ? row : 0) * of.row_stride;
          const float value = at(0, begin + f < d ? begin + f : d - 1);
          return there ? value : 0.f;
        },
        [&](int row, int f, float value) { to.of[row][f] = value; });
  }
}

// What the only chunk needs, and is there already from a tile before.
enum Loaded { kNothing, kLoadedRows, kLoadedAll };

// Calls `use(stage, begin)` for every chunk of features, each of which has rows and columns.
// Barriers.
template <typename T, int kColumns, typename Use>
__device__ void each_chunk(PrototypeMemory<T, kColumns>& memory, Loaded loaded,
                           const RowsFrom& rows, int rows_here, const RowsFrom& columns,
                           int columns_here, int d, const Use& use) {
  const auto fetch = [&](int begin, int stage, Loaded loaded) {
    if (loaded == kNothing) fetch_rows<T>(rows, rows_here, begin, d, memory.stages[stage].rows);
    if (loaded == kLoadedAll) return;
    fetch_rows<T>(columns, columns_here, begin, d, memory.stages[stage].columns);
  };
  sync_block();  // what was there before has been read
  fetch(0, 0, loaded);
  copy_async_commit();
  int stage = 0;
#pragma unroll 1
  for (int begin = 0; begin < d; begin += kChunkFeatures) {
    copy_async_wait<0>();
    sync_block();  // the chunk has arrived, and the one before it has been read
    if (begin + kChunkFeatures < d) fetch(begin + kChunkFeatures, stage ^ 1, kNothing);
    copy_async_commit();
    use(memory.stages[stage], begin);
    stage ^= 1;
  }
  copy_async_wait<0>();
}

// Squared distances of the thread's pairs.
template <typename T, int kColumns>
__device__ void squared_distances_of(PairsOfThread<T, kColumns>& u,
                                     PrototypeMemory<T, kColumns>& memory, Loaded loaded,
                                     const RowsFrom& rows, int rows_here, const RowsFrom& columns,
                                     int columns_here, int d) {
#pragma unroll
  for (auto& of_row : u) {
#pragma unroll
    for (T& value : of_row) value = 0;
  }
  each_chunk(memory, loaded, rows, rows_here, columns, columns_here, d,
             [&](const auto& stage, int begin) {
               const int features = d - begin < kChunkFeatures ? d - begin : kChunkFeatures;
               add_squares<T, kColumns>(stage.rows, stage.columns, features, u);
             });
}

// Calls `use(q, c, row, column)` for each of the thread's pairs u[q][c].
template <int kColumns, typename Use>
__device__ void each_pair_of(const Use& use) {
  const int lane = lane_of_thread(), first = first_row_of_warp();
#pragma unroll
  for (int q = 0; q < kChunkRowsOfWarp; ++q) {
#pragma unroll
    for (int c = 0; c < kColumns / kWarp; ++c) use(q, c, first + q, lane + kWarp * c);
  }
}

// Numbers of `count` arrays that lie `apart`, added in their order; some loads are under way at
// once.
template <typename T>
__device__ double sum_of_arrays(const T* from, int64_t count, int64_t apart) {
  constexpr int kFlying = 8;
  double sum = 0;
#pragma unroll 1
  for (int64_t first = 0; first < count; first += kFlying) {
    T found[kFlying];
#pragma unroll
    for (int q = 0; q < kFlying; ++q) {
      found[q] = first + q < count ? load_fresh(from + (first + q) * apart) : T(0);
    }
#pragma unroll
    for (int q = 0; q < kFlying; ++q) sum += found[q];
  }
  return sum;
}

}  // namespace cgm_fast::cuda
