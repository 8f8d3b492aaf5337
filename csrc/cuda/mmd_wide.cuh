// MMD² and its gradient for any number of features, in one launch: distances and weighted
// differences a chunk of features at a time. Sums of a row's gradient wait in the output.
#pragma once

#include "cuda/mmd.cuh"
#include "cuda/tiles.cuh"

namespace cgm_fast::cuda {

template <typename T>
struct WideMemory {
  static constexpr int kColumns = sizeof(T) == 4 ? 128 : 64;
  Chunk<T, kRows> rows;
  Chunk<T, kColumns> columns;
  T weights[kRows][kColumns + 1];
  double sums[kRows][kOfRow];
  double scratch[kScratch];
  // Then: double parts[kParts + scales], Scale<T> scales[scales]
};

template <typename T>
std::size_t wide_shared_bytes(int64_t scales) {
  return sizeof(WideMemory<T>) + static_cast<std::size_t>(kParts + scales) * sizeof(double) +
         static_cast<std::size_t>(scales) * sizeof(Scale<T>);
}

template <typename T>
__global__ void __launch_bounds__(kThreads, 1)
    mmd_wide_kernel(const MmdCall<T> call, const MmdGradient<T> out, unsigned blocks) {
  constexpr int kColumns = WideMemory<T>::kColumns;
  const MmdInput<T>& in = call.in;
  WideMemory<T>& memory = *shared_memory<WideMemory<T>>();
  double* parts = reinterpret_cast<double*>(&memory + 1);
  Scale<T>* scales = reinterpret_cast<Scale<T>*>(parts + kParts + in.scales);
  const int64_t item = blockIdx.x / blocks, total = in.n + in.m;
  const unsigned block = blockIdx.x % blocks;
  const int64_t first_row = int64_t{block} * kRows;
  const int rows_here = static_cast<int>(total - first_row < kRows ? total - first_row : kRows);
  const int d = static_cast<int>(in.d), lane = static_cast<int>(threadIdx.x) % kWarp;
  const int first_of_warp = static_cast<int>(threadIdx.x) / kWarp * kRowsOfWarp;
  const bool gradient = first_row < out.row_end && first_row + kRows > out.row_begin;
  const T between = between_samples(in, item);
  const auto at_row = [&](int row, int f) { return element(in, item, first_row + row, f); };
  load_scales(call, item, scales);
  sync_block();
  const double factor = -2.0 / scales[0].variance;

  // Of columns of one sample: values, and what near and far pairs weigh.
  double sums[kRowsOfWarp][kOfRow / 2] = {}, of_scale = 0;
  bool begun = false;
  const auto visit_rows = [&](const Pairs<T, kColumns>& u, int64_t of_sample, bool of_y,
                              int64_t first, int here) {
    const bool last = of_y && first + here == in.m;
    constexpr int kOfLane = kColumns / kWarp;
    constexpr int kPairs = kRowsOfWarp * kOfLane;
    T e[kPairs], values[kPairs], slopes[kPairs], nears[kPairs];
    each_pair<kColumns>(
        [&](int q, int c, int, int) { e[q * kOfLane + c] = u[q][c] * scales[0].unit; });
    // Found anew for every tile: registers are few.
    const T near_from = near_exponent<T, true>(scales, in.scales);
    kernels_at(e, scales, in.scales, near_from, values, slopes, nears);
    each_pair<kColumns>([&](int q, int c, int row, int column) {
      const int pair = q * kOfLane + c;
      const T slope = slopes[pair];
      const int64_t i = first_row + row, j = of_sample + first + column;
      const bool there = column < here;
      const T weight = there ? row_weight(in, item, j) : T(0);
      const T a = static_cast<T>(signed_scale(in, j)) * weight;
      const T counted = i == j ? T(0) : weight;  // a row is not paired with itself
      const bool same = (i >= in.n) == of_y;
      sums[q][kValues / 2] += there ? a * values[pair] : T(0);
      sums[q][kNears / 2] += nears[pair] * counted;
      sums[q][kFars / 2] += (static_cast<T>(in.scales) - nears[pair]) * counted;
      memory.weights[row][column] = there ? a * slope * (same ? T(1) : between) : T(0);
    });
    if (!gradient) return;
    const auto at_column = [&](int j, int f) {
      return element(in, item, of_sample + first + j, f);
    };
    weighted_differences<T, kColumns>(
        memory.weights, memory.rows, memory.columns, rows_here, here, d, at_row, at_column,
        [&](int row, int f, T sum) {
          const int64_t i = first_row + row;
          if (i < out.row_begin || i >= out.row_end) return;
          T& to = out.grad_z[(item * (out.row_end - out.row_begin) + i - out.row_begin) * d + f];
          if (begun) sum += to;
          to = last ? static_cast<T>(factor * signed_weight(in, item, i) * sum) : sum;
        });
    begun = true;
  };
  const auto visit_bandwidth = [&](const Pairs<T, kColumns>& u, T unit, int64_t of_sample,
                                   bool of_y, int64_t first, int here) {
    each_pair<kColumns>([&](int q, int c, int row, int column) {
      if (row >= rows_here || column >= here) return;
      const T e = u[q][c] * unit;
      // Where k is an exact zero, t may be infinite.
      const T t = max_or_nan(e, T(-1100)) * static_cast<T>(-0.69314718055994530942);
      const T a = signed_weight(in, item, of_sample + first + column);
      const bool same = (first_row + row >= in.n) == of_y;
      of_scale += static_cast<double>(signed_weight(in, item, first_row + row)) * a *
                  (same ? T(1) : between) * (t * exp2_less_one(e).whole);
    });
  };
  // The first pass is for rows; one more for each bandwidth whose derivative is wanted.
  const int passes = 1 + static_cast<int>(out.grad_p ? in.scales : 0);
#pragma unroll 1
  for (int pass = 0; pass < passes; ++pass) {
    of_scale = 0;
#pragma unroll 1
    for (int sample = 0; sample < 2; ++sample) {
      const bool of_y = sample == 1;
      const int64_t count = of_y ? in.m : in.n, of_sample = of_y ? in.n : 0;
      const Samples& from = of_y ? in.y : in.x;
#pragma unroll 1
      for (int64_t first = 0; first < count; first += kColumns) {
        const int here = static_cast<int>(count - first < kColumns ? count - first : kColumns);
        const auto at_column = [&](int j, int f) { return load<T>(from, item, first + j, f); };
        Pairs<T, kColumns> u;
        squared_distances<T, kColumns>(u, memory.rows, memory.columns, rows_here, here, d, at_row,
                                       at_column);
        if (pass == 0) {
          visit_rows(u, of_sample, of_y, first, here);
        } else {
          visit_bandwidth(u, scales[pass - 1].unit, of_sample, of_y, first, here);
        }
      }
      if (pass > 0) continue;
#pragma unroll
      for (int q = 0; q < kRowsOfWarp; ++q) {
        const int row = first_of_warp + q, other = (first_row + row >= in.n) != of_y;
#pragma unroll
        for (int what = 0; what < kOfRow / 2; ++what) {
          const double sum = sum_of_warp(sums[q][what]);
          if (lane == 0) memory.sums[row][2 * what + other] = sum;
          sums[q][what] = 0;
        }
      }
    }
    if (pass > 0) {
      of_scale = sum_of_block(of_scale, memory.scratch);
      if (threadIdx.x == 0) parts[kParts + pass - 1] = of_scale;
    }
  }
  sync_block();
  finish(call, out, item, block, blocks, kRows, memory.sums, parts, memory.scratch);
}

}  // namespace cgm_fast::cuda
