// MMD² and its gradient for any number of features and any kernel, in one launch: distances, which
// are plain differences, and weighted differences a chunk of features at a time. Sums of a row's
// gradient wait in the output.
#pragma once

#include "cuda/mmd.cuh"
#include "cuda/radial.cuh"
#include "cuda/tiles.cuh"

namespace cgm_fast::cuda {

template <typename T>
struct WideMemory {
  static constexpr int kColumns = sizeof(T) == 4 ? 128 : 64;
  Chunk<T, kRows> rows;
  Chunk<T, kColumns> columns;
  // Of a tile's pairs squared distances, and then what differences are weighed with. A pair's place
  // is its thread's own until there is a barrier: loops over pairs that are not unrolled find it
  // there, where they could not index registers.
  T pairs[kRows][kColumns + 1];
  double of_weight[kRows];
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
  const MmdProblem<T>& in;
  const MmdValue<T>& out;
  int64_t item;
  BlockOfRows own;
  const MmdTail<T>& tail;
  Memory& memory;
  double sums[kOfGroup] = {};  // of the columns of a group
  bool begun = false;          // with the gradient

  __device__ WidePass(const MmdProblem<T>& in, const MmdValue<T>& out, int64_t item,
                      const BlockOfRows& own, const MmdTail<T>& tail, Memory& memory)
      : in(in), out(out), item(item), own(own), tail(tail), memory(memory) {}

  __device__ double relation(int group) const {
    return relation_of(in, item)[own.group * in.groups + group];
  }
  __device__ T weight_of_row(int row) const { return row_weight(in, item, own.first + row); }
  __device__ static int lane() { return static_cast<int>(threadIdx.x) % kWarp; }
  __device__ static int first_of_warp() {
    return static_cast<int>(threadIdx.x) / kWarp * kRowsOfWarp;
  }
  __device__ auto at_row() const { return at_column(own.first); }
  __device__ auto at_column(int64_t first) const {
    return [of = rows_of(in, item, first)](int j, int f) { return load<T>(of, j, f); };
  }

  // Calls `visit(group, first, here)` for every tile of columns, when its squared distances are in
  // their places, and `end(group)` after a group's last.
  template <typename Visit, typename End>
  __device__ void each_tile(const Visit& visit, const End& end_of_group) {
    int64_t first = 0;
#pragma unroll 1
    for (int group = 0; group < in.groups; ++group) {
      const int64_t end = in.begins[group + 1];
#pragma unroll 1
      while (first < end) {
        const int here = static_cast<int>(end - first < kColumns ? end - first : kColumns);
        Pairs<T, kColumns> u;
        squared_distances<T, kColumns>(u, memory.rows, memory.columns, own.here, here,
                                       static_cast<int>(in.d), at_row(), at_column(first));
        each_pair<kColumns>(
            [&](int q, int c, int row, int column) { memory.pairs[row][column] = u[q][c]; });
        visit(group, first, here);
        first += here;
      }
      end_of_group(group);
    }
  }

  // A tile's values, and what differences are weighed with in place of the distances.
  __device__ void visit_values(int group, int64_t first, int here) {
    const double of_group = relation(group);
    const T coefficient = static_cast<T>(of_group);
#pragma unroll 1
    for (int row = first_of_warp(); row < first_of_warp() + kRowsOfWarp; ++row) {
      OfColumns<T> of_row = {};
#pragma unroll 1
      for (int column = lane(); column < kColumns; column += kWarp * kTogether) {
        T u[kTogether], value[kTogether], slope[kTogether], near[kTogether];
#pragma unroll
        for (int p = 0; p < kTogether; ++p) u[p] = memory.pairs[row][column + p * kWarp];
        kernels_of<kGaussian>(in.kernel, u, tail.scales, in.scales, value, slope, near);
#pragma unroll
        for (int p = 0; p < kTogether; ++p) {
          const int j = column + p * kWarp;
          const bool there = j < here;
          const T weight = there ? row_weight(in, item, first + j) : T(0);
          // A row is not paired with itself.
          const T counted = own.first + row == first + j ? T(0) : weight;
          of_row.value += there ? weight * value[p] : T(0);
          of_row.near += near[p] * counted;
          of_row.far += (static_cast<T>(in.scales) - near[p]) * counted;
          memory.pairs[row][j] = there ? coefficient * weight * slope[p] : T(0);
        }
      }
      if (row >= own.here) continue;
      const double weight = weight_of_row(row);
      sums[kValue] += weight * of_row.value;
      sums[kNear] += weight * of_row.near;
      sums[kFar] += weight * of_row.far;
      if (out.weights) {
        const double share = sum_of_warp(of_group * of_row.of_weight(tail.scales[0].weight));
        if (lane() == 0) memory.of_weight[row] += share;
      }
    }
  }

  // A tile's share of the gradient.
  __device__ void add_gradient(int64_t first, int here) {
    const bool last = first + here == in.rows;
    const double factor = -2.0 / tail.scales[0].variance;
    weighted_differences<T, kColumns>(
        memory.pairs, memory.rows, memory.columns, own.here, here, static_cast<int>(in.d), at_row(),
        at_column(first), [&](int row, int f, T sum) {
          const int64_t i = own.first + row;
          if (i < out.row_begin || i >= out.row_end) return;
          T& to = gradient_of(in, out, item, i)[f];
          if (begun) sum += to;
          to = last ? static_cast<T>(factor * row_weight(in, item, i) * sum) : sum;
        });
    begun = true;
  }

  // A thread's share of the sum over a tile's pairs of r_ij w_i w_j times -phi'(t) t, for one
  // bandwidth.
  __device__ double visit_bandwidth(T variance, int group, int64_t first, int here) const {
    double sum = 0;
#pragma unroll 1
    for (int row = first_of_warp(); row < first_of_warp() + kRowsOfWarp; ++row) {
      T of_row = 0;
#pragma unroll 1
      for (int j = lane(); j < here; j += kWarp) {
        const T t = scaled(memory.pairs[row][j], variance);
        of_row -= row_weight(in, item, first + j) * (t * radial<kGaussian>(in.kernel, t).first);
      }
      if (row < own.here) sum += static_cast<double>(weight_of_row(row)) * of_row;
    }
    return relation(group) * sum;
  }
};

template <typename T, bool kGaussian>
__global__ void __launch_bounds__(kThreads, 1)
    mmd_wide_kernel(const MmdCall<T> call, const MmdValue<T> out) {
  const MmdProblem<T>& in = call.in;
  SharedLayout layout(shared_memory<unsigned char>());
  WideMemory<T>& memory = *layout.array<WideMemory<T>>(1);
  const MmdTail<T> tail(layout, in);
  const int64_t item = blockIdx.x / call.device.blocks;
  const unsigned block = blockIdx.x % call.device.blocks;
  WidePass<T, kGaussian> pass(in, out, item, block_of_rows(in, block, kRows), tail, memory);
  const int row = static_cast<int>(threadIdx.x);
  if (row < kRows) memory.of_weight[row] = 0;
  tail.load(call, item);
  sync_block();

  const bool gradient = pass.own.wanted(out.row_begin, out.row_end);
  // The first time for rows; then for each bandwidth whose derivative is wanted.
#pragma unroll 1
  for (int s = -1; s < (out.variance ? in.scales : 0); ++s) {
    double of_scale = 0;
    pass.each_tile(
        [&](int group, int64_t first, int here) {
          if (s >= 0) {
            of_scale += pass.visit_bandwidth(tail.scales[s].variance, group, first, here);
            return;
          }
          pass.visit_values(group, first, here);
          if (gradient) pass.add_gradient(first, here);
        },
        [&](int group) {
          if (s >= 0) return;
          add_to_group(pass.sums, group, tail.parts, memory.scratch);
          for (double& sum : pass.sums) sum = 0;
        });
    if (s < 0) continue;
    of_scale = sum_of_block(of_scale, memory.scratch);
    if (threadIdx.x == 0) tail.parts[kOfGroup * in.groups + s] = of_scale;
  }
  if (out.weights && row < pass.own.here) {  // complete since the barriers of the last group
    out.weights[item * in.rows + pass.own.first + row] = static_cast<T>(2 * memory.of_weight[row]);
  }
  finish(call, out, item, block, tail, memory.scratch);
}

}  // namespace cgm_fast::cuda
