// Nearest prototype and margin loss: a block of samples against prototypes, a tile at a time.
//
// Distances are plain differences: equal prototypes are equally far to the bit, so that ties go to
// the lowest index. Nothing of B x K is kept. One visit to the distances gives assignment and loss:
// whose prototype is a sample's own is known at its end, so the hinge is added up with that one,
// and less it afterwards.
#pragma once

#include "cuda/nearest.cuh"
#include "cuda/prototype_tile.cuh"

namespace cgm_fast::cuda {

// A block of samples with a split of the prototypes.
template <typename T, int kColumns>
struct PrototypeRows {
  using Memory = PrototypeMemory<T, kColumns>;
  const PrototypeMarginInput<T>& in;
  const PrototypeMarginGradient<T>& out;
  const PrototypeMarginDevice<T>& device;
  Memory& memory;
  int block, first_row, here, split;  // of the samples, and rows that there are
  PairsOfThread<T, kColumns> u;       // of the last tile

  __device__ PrototypeRows(const PrototypeMarginInput<T>& in, const PrototypeMarginGradient<T>& out,
                           const PrototypeMarginDevice<T>& device, Memory& memory)
      : in(in),
        out(out),
        device(device),
        memory(memory),
        block(static_cast<int>(blockIdx.x) / device.splits),
        first_row(block * kChunkRows),
        here(static_cast<int>(in.rows - first_row < kChunkRows ? in.rows - first_row : kChunkRows)),
        split(static_cast<int>(blockIdx.x) % device.splits) {}

  // Of label number `row`, and whether it is none.
  __device__ int label(int row) const {
    const int64_t given = in.labels[first_row + row];
    return static_cast<int>(given < 0 ? 0 : given < in.k ? given : in.k - 1);
  }

  // The split's share of every row, to memory.shares. A barrier has to follow.
  __device__ void meet() {
    const T margin = static_cast<T>(in.margin);
    const int tiles = static_cast<int>((in.k + kColumns - 1) / kColumns), splits = device.splits;
    const int begin = static_cast<int>(int64_t{split} * tiles / splits) * kColumns;
    const int64_t end_of_tiles = int64_t{split + 1} * tiles / splits * kColumns;
    const int end = static_cast<int>(end_of_tiles < in.k ? end_of_tiles : in.k);
    Nearest<T> nearest[kChunkRowsOfWarp];
    T hinge[kChunkRowsOfWarp] = {};
    int inside[kChunkRowsOfWarp] = {};
#pragma unroll
    for (auto& of_row : nearest) of_row = {static_cast<T>(INFINITY), 0};
#pragma unroll 1
    for (int first = begin; first < end; first += kColumns) {
      const int columns = end - first < kColumns ? end - first : kColumns;
      const Loaded loaded = first > begin && in.d <= kChunkFeatures ? kLoadedRows : kNothing;
      squared_distances_of(u, memory, loaded, {in.r, first_row}, here, {in.g, first}, columns,
                           static_cast<int>(in.d));
      each_pair_of<kColumns>([&](int q, int c, int row, int column) {
        if (row >= here || column >= columns) return;
        if (!in.labels || first + column == label(row)) nearest[q].meet(u[q][c], first + column);
        // "Not beyond" is not "inside": a NaN is neither, and has to reach the loss.
        if (!(u[q][c] >= margin)) {
          hinge[q] += margin - u[q][c];
          ++inside[q];
        }
      });
    }
#pragma unroll
    for (int q = 0; q < kChunkRowsOfWarp; ++q) {
      nearest[q].share();
      const double of_row = sum_of_warp(static_cast<double>(hinge[q]));
      const int count = sum_of_warp(inside[q]);
      if (lane_of_thread() != 0) continue;
      memory.shares[first_row_of_warp() + q] = {of_row, static_cast<double>(nearest[q].distance),
                                                nearest[q].index, count};
    }
  }

  // What all splits have of a row, by one thread; later ones have higher indices.
  __device__ PrototypeShare merged(int row) const {
    PrototypeShare all{0, INFINITY, 0, 0};
#pragma unroll 4
    for (int64_t s = 0; s < device.splits; ++s) {
      const PrototypeShare* from = device.shares + s * in.rows + first_row + row;
      const double distance = load_fresh(&from->distance);
      const int index = load_fresh(&from->index);
      all.hinge += load_fresh(&from->hinge);
      all.inside += load_fresh(&from->inside);
      if (distance < all.distance) {
        all.distance = distance;
        all.index = index;
      }
    }
    return all;
  }

  // A row's share of the loss, by one thread, which writes the row's assignment.
  __device__ double close(int row, PrototypeShare share) const {
    const int i = first_row + row;
    const T margin = static_cast<T>(in.margin), distance = static_cast<T>(share.distance);
    double loss = share.distance;
    if (in.labels) {
      share.index = label(row);
      if (in.labels[i] != share.index) loss += from_bits(0x7fc00000);  // checked before, on the CPU
    }
    if (!(distance >= margin)) {
      share.hinge -= static_cast<double>(margin - distance);
      --share.inside;
    }
    out.assignment[i] = in.labels ? in.labels[i] : int64_t{share.index};
    memory.own[row] = share.inside > 0 ? ~share.index : share.index;
    if (device.own) device.own[i] = memory.own[row];
    return loss + in.negative_scale * share.hinge;
  }

  // Both gradients, of the only tile: u is still there, and the chunk of features if it is the only
  // one. Those of the prototypes are the block's own share.
  __device__ void add_gradients() {
    const int k = static_cast<int>(in.k), d = static_cast<int>(in.d);
    const T margin = static_cast<T>(in.margin), negative = static_cast<T>(-in.negative_scale);
    const T factor = static_cast<T>(2 * in.scale);
    each_pair_of<kColumns>([&](int q, int c, int row, int column) {
      T w = 0;
      if (row < here && column < k) {
        const int own = memory.own[row];
        w = column == (own < 0 ? ~own : own) ? T(1) : own < 0 && u[q][c] < margin ? negative : T(0);
      }
      memory.weights.of[row][column] = w;
    });
    T* partial_g = device.partial_g ? device.partial_g + block * in.k * in.d : nullptr;
    each_chunk(memory, d <= kChunkFeatures ? kLoadedAll : kNothing, {in.r, first_row}, here,
               {in.g, 0}, k, d, [&](const auto& stage, int begin) {
                 if (out.grad_r) {
                   WeightedDifferences<T> sums;
                   sums.add(memory.weights, stage.rows, stage.columns, k);
                   sums.each([&](int row, int f, T sum) {
                     if (row >= here || begin + f >= d) return;
                     out.grad_r[int64_t{first_row + row} * d + begin + f] = factor * sum;
                   });
                 }
                 if (!partial_g) return;
                 const int f = lane_of_thread();
#pragma unroll 1
                 for (int j = static_cast<int>(threadIdx.x) / kWarp; j < k; j += kWarps) {
                   const T of_column = stage.columns.of[j][f];
                   T sum = 0;
#pragma unroll 4
                   for (int i = 0; i < here; ++i) {
                     sum = fma(memory.weights.of[i][j], of_column - stage.rows.of[i][f], sum);
                   }
                   if (begin + f < d) partial_g[int64_t{j} * d + begin + f] = sum;
                 }
               });
  }
};

// Blocks that share a multiprocessor. Of whole ones there are few, which need more registers.
template <typename T, bool kWhole>
constexpr int kRowsBlocks = sizeof(T) != 4 ? 2
                            : kWhole       ? 3
                                           : 4;

// kWhole: one split and one tile of few prototypes, and gradients besides.
template <typename T, bool kWhole>
__global__ void __launch_bounds__(kThreads, kRowsBlocks<T, kWhole>)
    prototype_rows_kernel(const PrototypeMarginInput<T> in, const PrototypeMarginGradient<T> out,
                          const PrototypeMarginDevice<T> device) {
  using Rows = PrototypeRows<T, kWhole ? kFewPrototypes : kPrototypeColumns<T>>;
  auto& memory = *shared_memory<typename Rows::Memory>();
  Rows rows(in, out, device, memory);
  const int row = static_cast<int>(threadIdx.x);
  const bool has_row = row < rows.here;
  rows.meet();
  sync_block();
  if (!kWhole && device.splits > 1) {
    if (has_row) {
      device.shares[int64_t{rows.split} * in.rows + rows.first_row + row] = memory.shares[row];
    }
    if (!last_to_finish(device.counters + rows.block, static_cast<unsigned>(device.splits))) return;
    if (has_row) memory.shares[row] = rows.merged(row);
  }
  const auto blocks = static_cast<unsigned>((in.rows + kChunkRows - 1) / kChunkRows);
  if (row < kWarp) {
    const double loss = sum_of_warp(has_row ? rows.close(row, memory.shares[row]) : 0.0);
    if (row == 0) device.partials[rows.block] = loss;
  }
  if constexpr (kWhole) {
    sync_block();
    if (out.grad_r || device.partial_g) rows.add_gradients();
  }
  if (!last_to_finish(device.counters + blocks, blocks)) return;
  const double loss = Partials{device.partials, blocks, 1}.sum(0, memory.scratch);
  if (threadIdx.x == 0) out.loss[0] = static_cast<T>(in.scale * loss);
  if constexpr (kWhole) {
    if (!device.partial_g) return;
    const int64_t size = in.k * in.d;
    for (int64_t at = threadIdx.x; at < size; at += kThreads) {
      out.grad_g[at] =
          static_cast<T>(2 * in.scale * sum_of_arrays(device.partial_g + at, blocks, size));
    }
  }
}

}  // namespace cgm_fast::cuda
