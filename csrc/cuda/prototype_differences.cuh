// Weighted differences of samples and prototypes: gradients of the margin loss, and with tangents
// in their place its Hessian's product.
//
// Where nobody but its own prototype is inside a sample's margin, a sample's gradient is one
// difference, and a prototype needs its own samples alone. Else distances are taken again, by plain
// differences, of the samples that have others inside.
#pragma once

#include "cuda/prototype_tile.cuh"

namespace cgm_fast::cuda {

// Where pairs are weighed, and what is weighed.
template <typename T>
struct PrototypeDifferences {
  PrototypeMarginInput<T> in;
  const int64_t* assignment;   // [rows], or null
  const std::int32_t* own;     // [rows], as prototype_rows_kernel leaves it, if assignment is null
  Samples values_r, values_g;  // data null for zeros
  T *out_r, *out_g;            // [rows, d], [k, d], or null
  T *sums_r, *sums_g;          // [splits, rows, d], [splits, k, d], where there are several splits
  unsigned* counters;          // [blocks of samples + blocks of prototypes], zeros
  int row_splits, sample_splits;

  __host__ __device__ int64_t row_blocks() const { return (in.rows + kChunkRows - 1) / kChunkRows; }
  __host__ __device__ int64_t blocks() const {
    return (out_r ? row_blocks() * row_splits : 0) +
           (out_g ? (in.k + kChunkRows - 1) / kChunkRows * sample_splits : 0);
  }

  // A sample's prototype; its complement where others may be inside.
  __device__ int own_of(int64_t i) const {
    if (!assignment) return own[i];
    const int64_t k = assignment[i];
    return ~static_cast<int>(k < 0 ? 0 : k < in.k ? k : in.k - 1);
  }
};

__device__ inline int without_mark(int own) { return own < 0 ? ~own : own; }

// A block of samples, with a split of the prototypes; or the other way round.
template <typename T, bool kOfPrototypes>
struct PrototypeDifferencesBlock {
  static constexpr int kColumns = kPrototypeColumns<T>;
  using Memory = PrototypeMemory<T, kColumns>;
  const PrototypeDifferences<T>& given;
  Memory& memory;
  int block, split;
  bool begun = false;

  // `at`: among the blocks of its kind.
  __device__ PrototypeDifferencesBlock(const PrototypeDifferences<T>& given, Memory& memory, int at)
      : given(given), memory(memory), block(at / splits()), split(at % splits()) {}

  // Of the rows, what need not be kept in registers.
  __device__ int splits() const { return kOfPrototypes ? given.sample_splits : given.row_splits; }
  __device__ int d() const { return static_cast<int>(given.in.d); }
  __device__ int first() const { return opaque(block) * kChunkRows; }
  __device__ int here() const {  // that there are
    const int left = static_cast<int>(count()) - first();
    return left < kChunkRows ? left : kChunkRows;
  }
  __device__ int64_t count() const { return kOfPrototypes ? given.in.k : given.in.rows; }
  __device__ T* result() const { return kOfPrototypes ? given.out_g : given.out_r; }
  __device__ T* sums() const { return kOfPrototypes ? given.sums_g : given.sums_r; }
  // A row of the result, or of the split's share. In shared memory: registers are too few.
  __device__ T* target(int row) const {
    return (splits() > 1 ? sums() : result()) + memory.place + int64_t{row} * d();
  }
  // Also what the split has of the columns: whole tiles, or batches. A barrier.
  __device__ void begin() const {
    if (threadIdx.x == 0) {
      memory.place = (splits() > 1 ? split * count() * d() : 0) + int64_t{first()} * d();
      const int64_t columns = kOfPrototypes ? given.in.rows : given.in.k;
      constexpr int kTogether = kOfPrototypes ? kBatch : kColumns;
      const int64_t parts = (columns + kTogether - 1) / kTogether;
      const int64_t end = (split + 1) * parts / splits() * kTogether;
      memory.begin = static_cast<int>(split * parts / splits() * kTogether);
      memory.end = static_cast<int>(end < columns ? end : columns);
    }
    sync_block();
  }

  __device__ RowsFrom rows_of(const Samples& r, const Samples& g) const {
    return {kOfPrototypes ? g : r, first()};
  }
  __device__ RowsFrom columns_of(const Samples& r, const Samples& g, int begin) const {
    return {kOfPrototypes ? r : g, begin, kOfPrototypes ? memory.list + begin : nullptr};
  }

  // Rows with `columns` columns, from prototype `begin` on, or from place `begin` of the list of
  // samples. Squared distances are 0 unless they are `measured`.
  __device__ void add(int begin, int columns, bool measured) {
    PairsOfThread<T, kColumns> u = {};
    const Samples &r = given.in.r, &g = given.in.g;
    if (measured) {
      squared_distances_of(u, memory, kNothing, rows_of(r, g), here(), columns_of(r, g, begin),
                           columns, d());
    }
    // The weights before have been read: after them came the barriers of the distances, or of what
    // said that none are needed.
    each_pair_of<kColumns>([&](int q, int c, int row, int column) {
      T w = 0;
      if (row < here() && column < columns) {
        const int own = kOfPrototypes ? given.own_of(memory.list[begin + column]) : memory.own[row];
        const int of_k = kOfPrototypes ? first() + row : begin + column;
        w = weight(of_k == without_mark(own), own < 0, u[q][c]);
      }
      memory.weights.of[row][column] = w;
    });
    const Samples &values_r = given.values_r, &values_g = given.values_g;
    // Values are what was measured, but for tangents.
    const bool there = measured && given.own && d() <= kChunkFeatures;
    each_chunk(memory, there ? kLoadedAll : kNothing, rows_of(values_r, values_g), here(),
               columns_of(values_r, values_g, begin), columns, d(),
               [&](const auto& stage, int chunk) {
                 WeightedDifferences<T> sums;
                 sums.add(memory.weights, stage.rows, stage.columns, columns);
                 sums.each([&](int row, int f, T sum) {
                   if (row >= here() || chunk + f >= d()) return;
                   const T factor = static_cast<T>(2 * given.in.scale);
                   T& at = target(row)[chunk + f];
                   at = begun ? at + factor * sum : factor * sum;
                 });
               });
    begun = true;
  }

  __device__ T weight(bool is_own, bool marked, T u) const {
    const T margin = static_cast<T>(given.in.margin);
    if (is_own) return T(1);
    return marked && u < margin ? static_cast<T>(-given.in.negative_scale) : T(0);
  }

  // Samples of which each has only its own prototype: a difference each. Some rows' loads are under
  // way at once.
  __device__ void take_own() const {
    const T factor = static_cast<T>(2 * given.in.scale);
    const int first_row = first_row_of_warp();
    const auto run = [&](const auto& r, const auto& g) {
#pragma unroll 1
      for (int f = lane_of_thread(); f < d(); f += kWarp) {
        T of_r[kChunkRowsOfWarp], of_g[kChunkRowsOfWarp];
#pragma unroll
        for (int q = 0; q < kChunkRowsOfWarp; ++q) {
          const int row = first_row + q < here() ? first_row + q : 0;
          of_r[q] = r(row, f);
          of_g[q] = g(memory.own[row], f);
        }
#pragma unroll
        for (int q = 0; q < kChunkRowsOfWarp; ++q) {
          if (first_row + q < here()) {
            given.out_r[int64_t{first() + first_row + q} * d() + f] = factor * (of_r[q] - of_g[q]);
          }
        }
      }
    };
    const Samples own_rows = rows_from(given.values_r, 0, first());
    with_elements<T>(own_rows, [&](const auto& r) {
      with_elements<T>(given.values_g, [&](const auto& g) { run(r, g); });
    });
  }

  // A block of samples; whether the splits are to be added up.
  __device__ bool visit_prototypes() {
    const int row = static_cast<int>(threadIdx.x);
    bool marked = false;
    if (row < here()) {
      memory.own[row] = given.own_of(first() + row);
      marked = memory.own[row] < 0;
    }
    if (!any_in_block(marked)) {
      if (split == 0) take_own();
      return false;
    }
#pragma unroll 1
    for (int k = memory.begin; k < memory.end; k += kColumns) {
      const int left = memory.end - k;
      add(k, left < kColumns ? left : kColumns, true);
    }
    return splits() > 1;
  }

  // The samples from `begin` to `end` that some of the block's prototypes need, in their order, to
  // memory.list. Barriers.
  __device__ void list_samples(int begin, int end) const {
    const int warp = static_cast<int>(threadIdx.x) / kWarp;
    int listed = 0;
#pragma unroll 1
    for (int from = begin; from < end; from += kThreads) {
      const int i = from + static_cast<int>(threadIdx.x);
      bool needed = false;
      if (i < end) {
        const int own = given.own_of(i);
        needed = own < 0 || (own >= first() && own < first() + here());
      }
      const unsigned bits = ballot(needed);
      sync_block();  // the counts, or the list, before have been read
      if (lane_of_thread() == 0) memory.counts[warp] = count_bits(bits);
      sync_block();
      int before = listed;
#pragma unroll
      for (int other = 0; other < kWarps; ++other) {
        if (other < warp) before += memory.counts[other];
        listed += memory.counts[other];
      }
      before += count_bits(bits & ((1u << lane_of_thread()) - 1));
      if (needed) memory.list[before] = i;
    }
    if (threadIdx.x == 0) memory.listed = listed;
    sync_block();
  }

  // A block of prototypes; the same.
  __device__ bool visit_samples() {
#pragma unroll 1
    for (int batch = memory.begin; batch < memory.end; batch += kBatch) {
      list_samples(batch, batch + kBatch < memory.end ? batch + kBatch : memory.end);
#pragma unroll 1
      for (int at = 0; at < memory.listed; at += kColumns) {
        const int left = memory.listed - at, columns = left < kColumns ? left : kColumns;
        const int column = static_cast<int>(threadIdx.x);
        add(at, columns,
            any_in_block(column < columns && given.own_of(memory.list[at + column]) < 0));
      }
    }
    if (begun) return splits() > 1;
#pragma unroll 1
    for (int at = static_cast<int>(threadIdx.x); at < here() * d(); at += kThreads)
      target(0)[at] = 0;
    return splits() > 1;
  }

  __device__ void run() {
    begin();
    bool several;
    if constexpr (kOfPrototypes) {
      several = visit_samples();
    } else {
      several = visit_prototypes();
    }
    const int64_t counter = kOfPrototypes ? given.row_blocks() + block : block;
    if (!several || !last_to_finish(given.counters + counter, static_cast<unsigned>(splits())))
      return;
#pragma unroll 1
    for (int at = static_cast<int>(threadIdx.x); at < here() * d(); at += kThreads) {
      const int64_t place = int64_t{first()} * d() + at;
      result()[place] = static_cast<T>(sum_of_arrays(sums() + place, splits(), count() * d()));
    }
  }
};

template <typename T>
__global__ void __launch_bounds__(kThreads, sizeof(T) == 4 ? 4 : 2)
    prototype_differences_kernel(const PrototypeDifferences<T> given) {
  auto& memory = *shared_memory<PrototypeMemory<T, kPrototypeColumns<T>>>();
  const int of_rows = static_cast<int>(given.out_r ? given.row_blocks() * given.row_splits : 0);
  const int block = static_cast<int>(blockIdx.x);
  if (block < of_rows) {
    PrototypeDifferencesBlock<T, false>(given, memory, block).run();
  } else {
    PrototypeDifferencesBlock<T, true>(given, memory, block - of_rows).run();
  }
}

}  // namespace cgm_fast::cuda
