// MMD² and its gradient for any number of features and any kernel, in one launch: distances, which
// are plain differences, and weighted differences a chunk of features at a time (chunks.cuh). Sums
// of a row's gradient wait in the output.
//
// Both take two operations for a pair and a feature, which bounds them: loads from shared memory
// are an eighth as many, and what a chunk takes to come is half of what is done with it.
#pragma once

#include "cuda/chunks.cuh"
#include "cuda/mmd.cuh"
#include "cuda/radial.cuh"

namespace cgm_fast::cuda {

template <typename T>
struct WideMemory {
  static constexpr int kColumns = sizeof(T) == 4 ? 128 : 64;
  struct {
    Chunk2d<T, kChunkRows> rows;
    Chunk2d<T, kColumns> columns;
  } stages[2];
  // Of a tile's pairs squared distances, and then what differences are weighed with. A pair's place
  // is its thread's own until there is a barrier: loops over pairs that are not unrolled find it
  // there, where they could not index registers.
  PairsOfTile<T, kColumns> pairs;
  T weight[2][kColumns];            // of columns, of every other tile; none beyond the last
  Samples own, others[2];           // the rows of the block, and the columns of every other tile
  double sums[kOfGroup][kThreads];  // of the columns of a group, a thread's own: to spare registers
  double of_weight[kChunkRows];
  double scratch[kScratch];
};

// What kernels_at gives, of some pairs at squared distances u, for any kernel.
template <bool kGaussian, typename T, int kPairs>
__device__ void kernels_of(Kernel kernel, const T (&u)[kPairs], const Scale<T>* scales,
                           int64_t count, T (&value)[kPairs], T (&slope)[kPairs],
                           T (&near)[kPairs]) {
  const T near_from = near_exponent<T, true>(scales, count);
  if constexpr (kGaussian) {
    T e[kPairs];
#pragma unroll
    for (int p = 0; p < kPairs; ++p) e[p] = u[p] * scales[0].unit;
    kernels_at(e, scales, count, near_from, value, slope, near);
  } else {
    static_assert(kPairs == 1);  // kernels are too long for a copy for each pair
    const bool all_near = near_from != -1 || !vanishes(kernel);
    value[0] = slope[0] = near[0] = 0;
#pragma unroll 1
    for (int64_t s = 0; s < count; ++s) {
      const Scale<T> scale = scales[s];
      const Radial<T> k = radial<false>(kernel, scaled(u[0], scale.variance));
      const bool is_near = all_near || k.less >= T(-0.5);
      value[0] += scale.weight * (is_near ? k.less : k.whole);
      slope[0] -= scale.weight * scale.ratio * k.first;
      near[0] += is_near ? T(1) : T(0);
    }
  }
}

// A block's rows, with a tile of columns after another.
template <typename T, bool kGaussian>
struct WidePass {
  using Memory = WideMemory<T>;
  static constexpr int kColumns = Memory::kColumns, kOfLane = kColumns / kWarp;
  static constexpr int kTogether = kGaussian ? kOfLane : 1;  // pairs whose kernels are found
  using Tile = ColumnTile<kColumns>;
  const MmdProblem<T>& in;
  const MmdValue<T>& out;
  int64_t item;
  BlockOfRows own;
  const MmdTail<T>& tail;
  Memory& memory;

  __device__ WidePass(const MmdProblem<T>& in, const MmdValue<T>& out, int64_t item,
                      const BlockOfRows& own, const MmdTail<T>& tail, Memory& memory)
      : in(in), out(out), item(item), own(own), tail(tail), memory(memory) {}

  __device__ double relation(int group) const {
    return relation_of(in, item)[own.group * in.groups + group];
  }
  __device__ double& sum(int q) const { return memory.sums[q][threadIdx.x]; }
  __device__ T weight_of_row(int row) const { return row_weight(in, item, own.first + row); }

  // Calls `visit(tile, weights of its columns)` for every tile of columns, when its squared
  // distances are in their places, `end(group)` after a group's last, and, if `gradient` is
  // wanted, `add(tile, features from, stage)` for each of its chunks, behind a barrier.
  template <typename Visit, typename Add, typename End>
  __device__ void each_tile(bool gradient, const Visit& visit, const Add& add,
                            const End& end_of_group) {
    const int d = static_cast<int>(in.d), chunks = (d + kChunkFeatures - 1) / kChunkFeatures;
    PairsOfThread<T, kColumns> u = {};
    each_chunk<kColumns>(
        in, chunks, gradient,
        [&](const Tile& of, int turn, int chunk, int stage) {
          auto& to = memory.stages[stage];
          const int begin = chunk * kChunkFeatures;
          const int j = static_cast<int>(threadIdx.x);
          fetch_chunk(memory.own, own.here, begin, d, to.rows);
          Samples others;
          if (chunk > 0) {
            others = memory.others[turn];
          } else {
            others = rows_of(in, item, of.first);
            if (j == 0) memory.others[turn] = others;
          }
          fetch_chunk(others, of.here, begin, d, to.columns);
          if (chunk > 0) return;
          if (j >= kColumns) return;
          if (in.weights) {
            copy_async<sizeof(T)>(&memory.weight[turn][j],
                                  in.weights + item * in.rows + of.first + j,
                                  j < of.here ? sizeof(T) : 0);
          } else {
            memory.weight[turn][j] = j < of.here ? T(1) : T(0);
          }
        },
        [&](const Tile& of, int turn, int chunk, int step, int stage) {
          const auto& here = memory.stages[stage];
          const int begin = chunk * kChunkFeatures;
          if (step < chunks) {
            const int left = d - begin;
            add_squares<T, kColumns>(here.rows, here.columns,
                                     left < kChunkFeatures ? left : kChunkFeatures, u);
          }
          if (step == chunks - 1) {
#pragma unroll
            for (int q = 0; q < kChunkRowsOfWarp; ++q) {
#pragma unroll
              for (int c = 0; c < kOfLane; ++c) {
                memory.pairs.of[first_row_of_warp() + q][lane_of_thread() + kWarp * c] = u[q][c];
                u[q][c] = 0;
              }
            }
            visit(of, memory.weight[turn]);
            if (of.last) end_of_group(of.group);
            if (gradient) sync_block();
          }
          if (gradient && step >= chunks - 1) add(of, begin, stage);
        });
  }

  // A tile's values, and what differences are weighed with in place of the distances.
  __device__ void visit_values(const Tile& of, const T* weights) {
    const double of_group = relation(of.group);
    const T coefficient = static_cast<T>(of_group);
    const int lane = lane_of_thread();
    // The row that a column of the tile is, if it is one.
    const int64_t apart = of.first - own.first;
    const int own_row =
        apart < -kColumns || apart > kChunkRows ? kChunkRows : static_cast<int>(apart);
#pragma unroll 1
    for (int row = first_row_of_warp(); row < first_row_of_warp() + kChunkRowsOfWarp; ++row) {
      OfColumns<T> of_row = {};
#pragma unroll 1
      for (int column = lane; column < kColumns; column += kWarp * kTogether) {
        T u[kTogether], value[kTogether], slope[kTogether], near[kTogether];
        T* places = &memory.pairs.of[row][column];
#pragma unroll
        for (int p = 0; p < kTogether; ++p) u[p] = places[p * kWarp];
        kernels_of<kGaussian>(in.kernel, u, tail.scales, in.scales, value, slope, near);
#pragma unroll
        for (int p = 0; p < kTogether; ++p) {
          const int j = column + p * kWarp;
          const bool there = j < of.here;
          const T weight = weights[j];
          // A row is not paired with itself.
          const T counted = own_row + j == row ? T(0) : weight;
          of_row.value += there ? weight * value[p] : T(0);
          of_row.near += near[p] * counted;
          of_row.far += (static_cast<T>(in.scales) - near[p]) * counted;
          places[p * kWarp] = there ? coefficient * weight * slope[p] : T(0);
        }
      }
      if (row >= own.here) continue;
      const double weight = weight_of_row(row);
      sum(kValue) += weight * of_row.value;
      sum(kNear) += weight * of_row.near;
      sum(kFar) += weight * of_row.far;
      if (out.weights) {
        const double share = sum_of_warp(of_group * of_row.of_weight(tail.scales[0].weight));
        if (lane == 0) memory.of_weight[row] += share;
      }
    }
  }

  // The sums over the columns of a group join the block's parts; they begin anew. Barriers.
  __device__ void end_group(int group) const {
    double sums[kOfGroup];
    for (int q = 0; q < kOfGroup; ++q) sums[q] = sum(q);
    add_to_group(sums, group, tail.parts, memory.scratch);
    for (int q = 0; q < kOfGroup; ++q) sum(q) = 0;
  }

  // A tile's share of the gradient in a chunk of features.
  __device__ void add_gradient(const Tile& of, int begin, int stage) {
    const auto& from = memory.stages[stage];
    const int d = static_cast<int>(in.d);
    const bool begun = of.first > 0, last = of.first + of.here == in.rows;
    const double factor = -2.0 / tail.scales[0].variance;
    WeightedDifferences<T> differences;
    differences.add(memory.pairs, from.rows, from.columns, of.here);
    differences.each([&](int row, int f, T sum) {
      const int64_t i = own.first + row;
      if (row >= own.here || begin + f >= d || i < out.row_begin || i >= out.row_end) return;
      T& to = gradient_of(in, out, item, i)[begin + f];
      if (begun) sum += to;
      to = last ? static_cast<T>(factor * row_weight(in, item, i) * sum) : sum;
    });
  }

  // A thread's share of the sum over a tile's pairs of r_ij w_i w_j times -phi'(t) t, for one
  // bandwidth.
  __device__ double visit_bandwidth(T variance, const Tile& of, const T* weights) const {
    double sum = 0;
#pragma unroll 1
    for (int row = first_row_of_warp(); row < first_row_of_warp() + kChunkRowsOfWarp; ++row) {
      T of_row = 0;
#pragma unroll 1
      for (int j = lane_of_thread(); j < of.here; j += kWarp) {
        const T t = scaled(memory.pairs.of[row][j], variance);
        of_row -= weights[j] * (t * radial<kGaussian>(in.kernel, t).first);
      }
      if (row < own.here) sum += static_cast<double>(weight_of_row(row)) * of_row;
    }
    return relation(of.group) * sum;
  }
};

template <typename T, bool kGaussian>
__global__ void __launch_bounds__(kThreads, sizeof(T) == 4 ? 2 : 1)
    mmd_wide_kernel(const MmdCall<T> call, const MmdValue<T> out) {
  const MmdProblem<T>& in = call.in;
  SharedLayout layout(shared_memory<unsigned char>());
  WideMemory<T>& memory = *layout.array<WideMemory<T>>(1);
  const MmdTail<T> tail(layout, in);
  const int64_t item = blockIdx.x / call.device.blocks;
  const unsigned block = blockIdx.x % call.device.blocks;
  WidePass<T, kGaussian> pass(in, out, item, block_of_rows(in, block, kChunkRows), tail, memory);
  const int row = static_cast<int>(threadIdx.x);
  if (row == 0) memory.own = rows_of(in, item, pass.own.first);
  if (row < kChunkRows) memory.of_weight[row] = 0;
  for (int q = 0; q < kOfGroup; ++q) pass.sum(q) = 0;
  tail.load(call, item);
  sync_block();

  const bool gradient = pass.own.wanted(out.row_begin, out.row_end);
  using Tile = typename WidePass<T, kGaussian>::Tile;
  // The first time for rows; then for each bandwidth whose derivative is wanted.
#pragma unroll 1
  for (int s = -1; s < (out.variance ? in.scales : 0); ++s) {
    double of_scale = 0;
    pass.each_tile(
        s < 0 && gradient,
        [&](const Tile& of, const T* weights) {
          if (s < 0) {
            pass.visit_values(of, weights);
          } else {
            of_scale += pass.visit_bandwidth(tail.scales[s].variance, of, weights);
          }
        },
        [&](const Tile& of, int begin, int stage) { pass.add_gradient(of, begin, stage); },
        [&](int group) {
          if (s < 0) pass.end_group(group);
        });
    of_scale = sum_of_block(of_scale, memory.scratch);  // all chunks have been read
    if (s >= 0 && threadIdx.x == 0) tail.parts[kOfGroup * in.groups + s] = of_scale;
  }
  if (out.weights && row < pass.own.here) {  // complete since the barriers of the last group
    out.weights[item * in.rows + pass.own.first + row] = static_cast<T>(2 * memory.of_weight[row]);
  }
  finish(call, out, item, block, tail, memory.scratch);
}

}  // namespace cgm_fast::cuda
