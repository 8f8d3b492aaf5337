// MMD² and its gradient for few features, in one launch: a lane per row, whose features and sums
// stay in registers; columns come from shared memory, broadcast: all lanes of a warp read the same.
//
// Distances are plain differences, on the FP32 (or FP64) pipes, for the block's own rows, and where
// some row is far from the centre of these; a batch knows nothing else. Tiles of columns that are
// not far cost a third less: with b = -|z|²/2, about the centre, exponents are z_i . z_j + b_i +
// b_j, and of w_ij (z_i - z_j) only the second half has to be summed up feature by feature.
//
// Few rows would leave most of the device idle with 32 to a block. Then a block takes 16, 8 or 4,
// and split-K within the block: the lanes of a warp share the columns among them, and their sums
// are added at the end.
#pragma once

#include <type_traits>

#include "cuda/mmd_rows_tile.cuh"

namespace cgm_fast::cuda {

// What a lane adds up over a tile: values, and what near and far pairs weigh; the last without
// kOptions is what near ones leave.
template <typename T>
struct OfTile {
  T value, near, far;
};

// A tile by plain differences: sums [kOfRow + f] grows by coefficient w (z_i - z_j). The row's pair
// with itself is column `own`, or none here.
template <typename T, int kD, bool kOptions, bool kGradient>
__device__ OfTile<T> by_differences(const MmdInput<T>& in, T near_from, const Lane& lane, int own,
                                    int here, const T (&z)[kD], T coefficient, bool weighted,
                                    const Scale<T>* scales, T (&sums)[kOfRow + kD],
                                    const RowsMemory<T, kD>& memory) {
  constexpr bool kKeep = kD < 64 || !kOptions;  // else registers are too few
  OfTile<T> total = {};
  for (int j = lane.group; j < here; j += lane.groups) {
    T difference[kD], u = 0;
#pragma unroll
    for (int f = 0; f < kD; ++f) {
      difference[f] = z[f] - memory.tile[j][f];
      u = fma(difference[f], difference[f], u);
    }
    T value, w;
    if constexpr (kOptions) {
      const T e[1] = {u * scales[0].unit};
      T values[1], slopes[1], nears[1];
      kernels_at(e, scales, in.scales, near_from, values, slopes, nears);
      const T of_column = weighted ? memory.weight[j] : T(1);
      const T counted = j == own ? T(0) : of_column;
      value = values[0] * of_column;
      w = slopes[0] * of_column;
      total.near = fma(nears[0], counted, total.near);
      total.far = fma(static_cast<T>(in.scales) - nears[0], counted, total.far);
    } else {
      const T e = u * scales[0].unit, one = is_near(e, near_from);
      const Exp2<T> k = exp2_less(e, one);
      value = k.less;
      w = k.whole;
      total.near += j == own ? T(0) : one;
    }
    total.value += value;
    if constexpr (kGradient) {
      w *= coefficient;
      if (!kKeep) compiler_barrier();
#pragma unroll
      for (int f = 0; f < kD; ++f) {
        T& sum = sums[kOfRow + f];
        sum = fma(w, kKeep ? difference[f] : z[f] - memory.tile[j][f], sum);
      }
    }
  }
  return total;
}

// A tile by products, where rows z and columns are centred and scaled.
template <typename T, int kD, bool kOptions, bool kGradient>
__device__ OfTile<T> by_products(const MmdInput<T>& in, T near_from, const Lane& lane, int here,
                                 const T (&z)[kD], T bias, T coefficient, bool weighted,
                                 const Scale<T>* scales, T (&sums)[kOfRow + kD],
                                 const RowsMemory<T, kD>& memory) {
  OfTile<T> total = {};
  T slope = 0, weighted_sum[kD] = {};
  if constexpr (!kOptions) {
#pragma unroll 2
    for (int j = lane.group; j < here; j += lane.groups) {
      T e = bias + memory.bias[j], column[kD];
#pragma unroll
      for (int f = 0; f < kD; ++f) {
        column[f] = memory.tile[j][f];
        e = fma(z[f], column[f], e);
      }
      const T one = is_near(e, near_from);
      const Exp2<T> k = exp2_less_unclamped(e, one);
      total.value += k.less;
      total.near += one;
      if constexpr (kGradient) {
#pragma unroll
        for (int f = 0; f < kD; ++f) weighted_sum[f] = fma(k.whole, column[f], weighted_sum[f]);
      }
    }
  } else {
    // As many columns as `tag` says, whose bandwidths are gone through together: two, or in double
    // one, for which registers are enough.
    const auto visit_columns = [&](int j, auto tag) {
      constexpr int kMany = decltype(tag)::value;
      T e[kMany], column[kMany][kD], value[kMany], w[kMany], near[kMany];
#pragma unroll
      for (int c = 0; c < kMany; ++c) {
        e[c] = bias + memory.bias[j + c * lane.groups];
#pragma unroll
        for (int f = 0; f < kD; ++f) {
          column[c][f] = memory.tile[j + c * lane.groups][f];
          e[c] = fma(z[f], column[c][f], e[c]);
        }
      }
      kernels_at(e, scales, in.scales, near_from, value, w, near);
#pragma unroll
      for (int c = 0; c < kMany; ++c) {
        const T of_column = weighted ? memory.weight[j + c * lane.groups] : T(1);
        total.value += value[c] * of_column;
        total.near = fma(near[c], of_column, total.near);
        total.far = fma(static_cast<T>(in.scales) - near[c], of_column, total.far);
        w[c] *= of_column;
        slope += w[c];
        if constexpr (kGradient) {
#pragma unroll
          for (int f = 0; f < kD; ++f) weighted_sum[f] = fma(w[c], column[c][f], weighted_sum[f]);
        }
      }
    };
    int j = lane.group;
#pragma unroll 1
    for (; sizeof(T) == 4 && j + lane.groups < here; j += 2 * lane.groups) {
      visit_columns(j, std::integral_constant<int, 2>{});
    }
#pragma unroll 1
    for (; j < here; j += lane.groups) visit_columns(j, std::integral_constant<int, 1>{});
  }
  if (!kOptions) slope = total.value + total.near;  // 2^e is 1 more than 2^e - 1
  if constexpr (kGradient) {
#pragma unroll
    for (int f = 0; f < kD; ++f) {
      sums[kOfRow + f] = fma(coefficient, fma(slope, z[f], -weighted_sum[f]), sums[kOfRow + f]);
    }
  }
  return total;
}

// All columns for the block's rows, those of memory.rows, from the stacked row `first_row` on; sums
// are added to memory's. Without kOptions there is one bandwidth and no weights.
template <typename T, int kD, bool kOptions, bool kGradient, typename At>
__device__ void visit(const MmdInput<T>& in, int64_t item, const Lane& lane, int64_t first_row,
                      const View<T>& view, const Scale<T>* scales, const At& at,
                      RowsMemory<T, kD>& memory) {
  const T between = between_samples(in, item);
  const T near_from = near_exponent<T, kOptions>(scales, in.scales);
  const bool in_y = first_row + lane.row >= in.n;
  T sums[kOfRow + kD] = {}, z[kD], bias = 0;
#pragma unroll
  for (int f = 0; f < kD; ++f) z[f] = memory.rows[lane.row][f];
  bool centred = false;
  int turn = 0;
#pragma unroll 1
  for (int sample = 0; sample < 2; ++sample) {
    const bool same = (sample == 1) == in_y;
    const int64_t count = sample ? in.m : in.n, of_sample = sample ? in.n : 0;
    const T* weights = sample ? in.y_weights : in.x_weights;
    const T a = static_cast<T>(sample ? -in.y_scale : in.x_scale);
    const T coefficient = a * (same ? T(1) : between);
#pragma unroll 1
    for (int64_t first = 0; first < count; first += kTile<T, kD>) {
      const int here =
          static_cast<int>(count - first < kTile<T, kD> ? count - first : kTile<T, kD>);
      sync_block();  // the tile before has been read
      load_tile<T, kD>(in, sample, kOptions ? weights : nullptr, item, count, first, here, at,
                       memory);
      sync_block();
      // A row's pair with itself has to be at no distance, exactly: its rounding would be all there
      // is where all others are many bandwidths away.
      const bool own =
          of_sample + first < first_row + lane.rows && first_row < of_sample + first + here;
      const bool near = kProducts<kD> && !view.far && !own && recentre(view, here, memory);
      if (near != centred) {
        centred = near;
        T square = 0;
#pragma unroll
        for (int f = 0; f < kD; ++f) {
          z[f] = memory.rows[lane.row][f];
          if (near) z[f] = (z[f] - memory.centre[f]) * view.scale;
          square = fma(z[f], z[f], square);
        }
        bias = square * T(-0.5);
      }
      const bool weighted = kOptions && weights;
      OfTile<T> of_tile = {};
      if (!near) {
        const int own_column =
            own ? static_cast<int>(first_row + lane.row - of_sample - first) : kTile<T, kD>;
        of_tile = by_differences<T, kD, kOptions, kGradient>(
            in, near_from, lane, own_column, here, z, coefficient, weighted, scales, sums, memory);
      } else if constexpr (kProducts<kD>) {
        of_tile = by_products<T, kD, kOptions, kGradient>(in, near_from, lane, here, z, bias,
                                                          coefficient / view.scale, weighted,
                                                          scales, sums, memory);
      }
      const auto add = [&](int what, T value) {
        sums[what] += same ? value : T(0);
        sums[what + 1] += same ? T(0) : value;
      };
      add(kValues, a * of_tile.value);
      add(kNears, of_tile.near);
      if (kOptions) add(kFars, of_tile.far);
      turn += here;
      if (turn >= kTurn || (sample == 1 && first + here == count)) {
        collect<T, kD, kGradient ? kOfRow + kD : kOfRow>(sums, lane, memory);
        turn = 0;
      }
    }
  }
}

// Sum over the block's rows i and all columns j of a_i a_j r_ij k t for one bandwidth, without its
// weight; t = u / 2h.
template <typename T, int kD, typename At>
__device__ double visit_bandwidth(const MmdInput<T>& in, int64_t item, const Lane& lane,
                                  int64_t first_row, T unit, const At& at,
                                  RowsMemory<T, kD>& memory) {
  const int64_t i = first_row + lane.row;
  const bool in_y = i >= in.n;
  const T a_i = i < in.n + in.m ? signed_weight(in, item, i) : T(0);
  T z[kD];
#pragma unroll
  for (int f = 0; f < kD; ++f) z[f] = memory.rows[lane.row][f];
  const T between = between_samples(in, item);
  double total = 0;
#pragma unroll 1
  for (int sample = 0; sample < 2; ++sample) {
    const int64_t count = sample ? in.m : in.n;
    const T* weights = sample ? in.y_weights : in.x_weights;
    const T coefficient = static_cast<T>(sample ? -in.y_scale : in.x_scale) *
                          ((sample == 1) == in_y ? T(1) : between);
#pragma unroll 1
    for (int64_t first = 0; first < count; first += kTile<T, kD>) {
      const int here =
          static_cast<int>(count - first < kTile<T, kD> ? count - first : kTile<T, kD>);
      sync_block();
      load_tile<T, kD>(in, sample, weights, item, count, first, here, at, memory);
      sync_block();
      T sum = 0;
#pragma unroll 2
      for (int j = lane.group; j < here; j += lane.groups) {
        T u = 0;
#pragma unroll
        for (int f = 0; f < kD; ++f) {
          const T difference = z[f] - memory.tile[j][f];
          u = fma(difference, difference, u);
        }
        const T e = u * unit;
        // Where k is an exact zero, t may be infinite.
        const T t = max_or_nan(e, T(-1100)) * static_cast<T>(-0.69314718055994530942);
        sum += (weights ? memory.weight[j] : T(1)) * (t * exp2_less_one(e).whole);
      }
      total += coefficient * sum;
    }
  }
  return sum_of_block(a_i * total, memory.scratch);
}

template <typename T, int kD, bool kOptions>
__global__ void __launch_bounds__(kThreads, sizeof(T) == 4 && kD <= 16 && !kOptions ? 2 : 1)
    mmd_rows_kernel(const MmdCall<T> call, const MmdGradient<T> out, unsigned blocks) {
  const MmdInput<T>& in = call.in;
  RowsMemory<T, kD>& memory = *shared_memory<RowsMemory<T, kD>>();
  double* parts = reinterpret_cast<double*>(&memory + 1);
  Scale<T>* scales = reinterpret_cast<Scale<T>*>(parts + kParts + in.scales);
  const int64_t item = blockIdx.x / blocks, total = in.n + in.m;
  const unsigned block = blockIdx.x % blocks;
  const int d = static_cast<int>(in.d), rows = call.device.rows;
  const Lane lane(rows);
  const int64_t first = int64_t{block} * rows;
  const auto at = [&](int sample, int64_t row, int f) {
    return load<T>(sample ? in.y : in.x, item, row, f);
  };
#pragma unroll 1
  for (int place = static_cast<int>(threadIdx.x); place < rows * kD; place += kThreads) {
    const int row = place / kD, f = place % kD;
    memory.rows[row][f] = first + row < total && f < d ? element(in, item, first + row, f) : T(0);
  }
  load_scales(call, item, scales);
  clear_sums(memory, rows);
  const View<T> view =
      view_of(in, scales, static_cast<int>(total - first < rows ? total - first : rows), memory);

  if (first < out.row_end && first + rows > out.row_begin) {
    visit<T, kD, kOptions, true>(in, item, lane, first, view, scales, at, memory);
    const double factor = -2.0 / scales[0].variance;
#pragma unroll 1
    for (int place = static_cast<int>(threadIdx.x); place < rows * d; place += kThreads) {
      const int64_t row = first + place / d;
      const int f = place % d;
      if (row < out.row_begin || row >= out.row_end) continue;
      const double a = signed_weight(in, item, row);
      out.grad_z[(item * (out.row_end - out.row_begin) + row - out.row_begin) * d + f] =
          static_cast<T>(factor * a * memory.sums[place / d][kOfRow + f]);
    }
  } else {
    visit<T, kD, kOptions, false>(in, item, lane, first, view, scales, at, memory);
  }
  if (static_cast<int>(threadIdx.x) < rows) {
#pragma unroll 1
    for (int q = 0; q < kOfRow; ++q) memory.values[threadIdx.x][q] = memory.sums[threadIdx.x][q];
  }
  if constexpr (kOptions) {
    if (out.grad_p) {
#pragma unroll 1
      for (int s = 0; s < in.scales; ++s) {
        const double sum =
            visit_bandwidth<T, kD>(in, item, lane, first, scales[s].unit, at, memory);
        if (threadIdx.x == 0) parts[kParts + s] = sum;
      }
    }
  }
  finish(call, out, item, block, blocks, rows, memory.values, parts, memory.scratch);
}

}  // namespace cgm_fast::cuda
