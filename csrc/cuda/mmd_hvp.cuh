// The Hessian-vector product of MMD², in one launch; any number of features. Formulas are those of
// triton_hvp.py and the op's README.
#pragma once

#include "cuda/mmd.cuh"
#include "cuda/tiles.cuh"

namespace cgm_fast::cuda {

template <typename T>
struct HvpMemory {
  static constexpr int kColumns = 32;
  Chunk<T, kRows> rows, row_tangents;
  Chunk<T, kColumns> columns, column_tangents;
  T weights[kRows][kColumns + 1], weights_dot[kRows][kColumns + 1];
  double scratch[kScratch];
  // Then: double parts[scales + 1], Scale<T> scales[scales], T scales_dot[scales]
};

template <typename T>
std::size_t hvp_shared_bytes(int64_t scales) {
  return sizeof(HvpMemory<T>) + static_cast<std::size_t>(scales + 1) * sizeof(double) +
         static_cast<std::size_t>(scales) * (sizeof(Scale<T>) + sizeof(T));
}

// One bandwidth's share at squared distance u with derivative 2 dot along the direction.
template <typename T>
struct HvpOf {
  T value, value_dot;  // k - 1
  T slope, slope_dot;  // -2 h_0 dk/du
  T by_h, by_h_dot;    // h_s dk/dh_s

  __device__ HvpOf(T u, T dot, const Scale<T>& scale, T variance_dot) {
    // Where k is an exact zero everything else is left out: products would overflow.
    const T e = u * scale.unit;
    const bool vanishes = e < T(-1100);
    const T exponent = vanishes ? T(-1100) : e;
    const T stretch = vanishes ? T(0) : variance_dot / scale.variance;
    const T t = static_cast<T>(-0.69314718055994530942) * exponent;
    const T t_dot = vanishes ? T(0) : dot / scale.variance - t * stretch;
    const Exp2<T> power = exp2_less_one(exponent);
    const T k = scale.weight * power.whole;
    value = scale.weight * power.less;
    value_dot = -k * t_dot;
    slope = scale.ratio * k;
    slope_dot = -slope * (t_dot + stretch);
    by_h = t * k;
    by_h_dot = ((T(1) - t) * t_dot - t * stretch) * k;
  }
};

template <typename T>
__global__ void __launch_bounds__(kThreads, 1)
    mmd_hvp_kernel(const MmdCall<T> call, const MmdTangent<T> along, unsigned blocks) {
  constexpr int kColumns = HvpMemory<T>::kColumns;
  const MmdInput<T>& in = call.in;
  HvpMemory<T>& memory = *shared_memory<HvpMemory<T>>();
  double* parts = reinterpret_cast<double*>(&memory + 1);
  Scale<T>* scales = reinterpret_cast<Scale<T>*>(parts + 1 + in.scales);
  T* scales_dot = reinterpret_cast<T*>(scales + in.scales);
  const int64_t item = blockIdx.x / blocks, total = in.n + in.m;
  const unsigned block = blockIdx.x % blocks;
  const int64_t first_row = int64_t{block} * kRows;
  const int rows_here = static_cast<int>(total - first_row < kRows ? total - first_row : kRows);
  const int d = static_cast<int>(in.d), lane = static_cast<int>(threadIdx.x) % kWarp;
  const int first_of_warp = static_cast<int>(threadIdx.x) / kWarp * kRowsOfWarp;
  const T* p_dot = along.p ? along.p + item * (in.scales + 1) : nullptr;
  load_scales(call, item, scales);
  for (int s = static_cast<int>(threadIdx.x); s < in.scales; s += kThreads) {
    scales_dot[s] = p_dot ? p_dot[s] : T(0);
  }
  sync_block();
  const T between = between_samples(in, item), between_dot = p_dot ? p_dot[in.scales] : T(0);
  const double factor = -2.0 / scales[0].variance;
  const auto weight_dot = [&](int64_t i) { return along.a ? along.a[item * total + i] : T(0); };
  const auto tangent = [&](int64_t i, int f) {
    return along.z ? along.z[(item * total + i) * d + f] : T(0);
  };
  const auto at_row = [&](int row, int f) { return element(in, item, first_row + row, f); };
  const auto row_tangent = [&](int row, int f) { return tangent(first_row + row, f); };

  double inside[kRowsOfWarp] = {}, of_cross = 0;
  bool begun = false;
  // The first pass is for rows; one more for each bandwidth whose derivative is wanted.
  const int passes = 1 + static_cast<int>(along.out_p ? in.scales : 0);
  for (int pass = 0; pass < passes; ++pass) {
    double of_scale = 0;
    for (int64_t first = 0; first < total; first += kColumns) {
      const int here = static_cast<int>(total - first < kColumns ? total - first : kColumns);
      const auto at_column = [&](int j, int f) { return element(in, item, first + j, f); };
      const auto column_tangent = [&](int j, int f) { return tangent(first + j, f); };
      T u[kRowsOfWarp] = {}, dot[kRowsOfWarp] = {};
      for (int begin = 0; begin < d; begin += kFeatures) {
        sync_block();
        load_chunk<T, kRows>(memory.rows, rows_here, begin, d, at_row);
        load_chunk<T, kRows>(memory.row_tangents, rows_here, begin, d, row_tangent);
        load_chunk<T, kColumns>(memory.columns, here, begin, d, at_column);
        load_chunk<T, kColumns>(memory.column_tangents, here, begin, d, column_tangent);
        sync_block();
        for (int f = 0; f < kFeatures; ++f) {
          const T of_column = memory.columns[lane][f], t = memory.column_tangents[lane][f];
#pragma unroll
          for (int q = 0; q < kRowsOfWarp; ++q) {
            const T difference = memory.rows[first_of_warp + q][f] - of_column;
            u[q] = fma(difference, difference, u[q]);
            dot[q] = fma(difference, memory.row_tangents[first_of_warp + q][f] - t, dot[q]);
          }
        }
      }
#pragma unroll
      for (int q = 0; q < kRowsOfWarp; ++q) {
        const int row = first_of_warp + q;
        const int64_t i = first_row + row, j = first + lane;
        const bool there = row < rows_here && lane < here;
        const bool across = (i >= in.n) != (j >= in.n);
        const T relation = across ? between : T(1), relation_dot = across ? between_dot : T(0);
        const T a_i = there ? signed_weight(in, item, i) : T(0);
        const T a_j = there ? signed_weight(in, item, j) : T(0);
        const T a_i_dot = there ? weight_dot(i) : T(0), a_j_dot = there ? weight_dot(j) : T(0);
        const T pair = a_i * a_j, pair_dot = a_i_dot * a_j + a_i * a_j_dot;
        if (pass > 0) {
          const HvpOf<T> of(u[q], dot[q], scales[pass - 1], scales_dot[pass - 1]);
          of_scale +=
              (relation * pair_dot + relation_dot * pair) * of.by_h + relation * pair * of.by_h_dot;
          continue;
        }
        T value = 0, value_dot = 0, slope = 0, slope_dot = 0;
        for (int s = 0; s < in.scales; ++s) {
          const HvpOf<T> of(u[q], dot[q], scales[s], scales_dot[s]);
          value += of.value;
          value_dot += of.value_dot;
          slope += of.slope;
          slope_dot += of.slope_dot;
        }
        inside[q] += (relation_dot * a_j + relation * a_j_dot) * value + relation * a_j * value_dot;
        if (across) of_cross += pair_dot * value + pair * value_dot;
        memory.weights[row][lane] = relation * pair * slope;
        memory.weights_dot[row][lane] =
            (relation * pair_dot + relation_dot * pair) * slope + relation * pair * slope_dot;
      }
      if (pass > 0 || first_row >= along.row_end || first_row + kRows <= along.row_begin) continue;
      const bool last = first + here == total;
      const auto add = [&](int row, int f, T sum, bool begin, bool end) {
        const int64_t i = first_row + row;
        if (i < along.row_begin || i >= along.row_end) return;
        T& to =
            along.out_z[(item * (along.row_end - along.row_begin) + i - along.row_begin) * d + f];
        if (!begin) sum += to;
        to = end ? static_cast<T>(factor * sum) : sum;
      };
      weighted_differences<T, kColumns>(
          memory.weights_dot, memory.rows, memory.columns, rows_here, here, d, at_row, at_column,
          [&](int row, int f, T sum) { add(row, f, sum, !begun, false); });
      weighted_differences<T, kColumns>(
          memory.weights, memory.row_tangents, memory.column_tangents, rows_here, here, d,
          row_tangent, column_tangent,
          [&](int row, int f, T sum) { add(row, f, sum, false, last); });
      begun = true;
    }
    if (pass > 0) {
      of_scale = sum_of_block(of_scale, memory.scratch);
      if (threadIdx.x == 0) parts[pass - 1] = of_scale / scales[pass - 1].variance;
    }
  }
  if (along.out_a) {
#pragma unroll
    for (int q = 0; q < kRowsOfWarp; ++q) {
      inside[q] = sum_of_warp(inside[q]);
      if (lane == 0 && first_of_warp + q < rows_here) {
        along.out_a[item * total + first_row + first_of_warp + q] = static_cast<T>(2 * inside[q]);
      }
    }
  }
  if (!along.out_p) return;
  of_cross = sum_of_block(of_cross, memory.scratch);
  if (threadIdx.x == 0) parts[in.scales] = of_cross;
  sync_block();
  const int count = static_cast<int>(in.scales + 1);
  if (!add_parts(call.device.partials, call.device.counters, item, block, blocks, count, parts,
                 memory.scratch) ||
      threadIdx.x != 0) {
    return;
  }
#pragma unroll 1
  for (int q = 0; q < count; ++q) along.out_p[item * count + q] = static_cast<T>(parts[q]);
}

}  // namespace cgm_fast::cuda
