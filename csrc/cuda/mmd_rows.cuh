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

// A tile by plain differences: sums grow by coefficient w (z_i - z_j). The row's pair with itself
// is column `own`, or none here. Without kOptions far pairs are what near ones leave.
template <typename T, int kD, bool kOptions, bool kGradient>
__device__ OfColumns<T> by_differences(const MmdProblem<T>& in, T near_from, const Lane& lane,
                                       int own, int here, const T (&z)[kD], T coefficient,
                                       bool weighted, const Scale<T>* scales, T (&sums)[kD],
                                       const RowsMemory<T, kD>& memory) {
  constexpr bool kKeep = kD < 64 || !kOptions;  // else registers are too few
  OfColumns<T> total = {};
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
        sums[f] = fma(w, kKeep ? difference[f] : z[f] - memory.tile[j][f], sums[f]);
      }
    }
  }
  return total;
}

// A tile by products, where rows z and columns are centred and scaled.
template <typename T, int kD, bool kOptions, bool kGradient>
__device__ OfColumns<T> by_products(const MmdProblem<T>& in, T near_from, const Lane& lane,
                                    int here, const T (&z)[kD], T bias, T coefficient,
                                    bool weighted, const Scale<T>* scales, T (&sums)[kD],
                                    const RowsMemory<T, kD>& memory) {
  OfColumns<T> total = {};
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
      sums[f] = fma(coefficient, fma(slope, z[f], -weighted_sum[f]), sums[f]);
    }
  }
  return total;
}

// What a block's rows are, and where it adds up what they have of the columns.
template <typename T>
struct RowsPass {
  const MmdProblem<T>& in;
  int64_t item;
  BlockOfRows own;
  const double* relation;  // of the rows' group to every one
  const MmdTail<T>& tail;

  __device__ RowsPass(const MmdProblem<T>& in, int64_t item, const BlockOfRows& own,
                      const MmdTail<T>& tail)
      : in(in),
        item(item),
        own(own),
        relation(relation_of(in, item) + own.group * in.groups),
        tail(tail) {}

  // A lane's row's own weight: 0 where there is none.
  __device__ T weight_of(const Lane& lane) const {
    return lane.row < own.here ? row_weight(in, item, own.first + lane.row) : T(0);
  }

  // Columns of the tile that begins with column `first`, where `end` ends the group. Opaque: or
  // they would be counted anew for every column.
  template <int kD>
  __device__ static int here(int64_t first, int64_t end) {
    return opaque(static_cast<int>(end - first < kTile<T, kD> ? end - first : kTile<T, kD>));
  }
};

// All columns for the block's rows, those of memory.rows: sums are added to memory's, and to the
// parts. Without kOptions there is one bandwidth and no weights. Returns the lane's share of half
// the derivative in its row's weight (kOptions).
template <typename T, int kD, bool kOptions, bool kGradient, typename Rows>
__device__ double visit(const RowsPass<T>& pass, const Lane& lane, const View<T>& view,
                        const Rows& rows, RowsMemory<T, kD>& memory) {
  const MmdProblem<T>& in = pass.in;
  const BlockOfRows& own = pass.own;
  const Scale<T>* scales = pass.tail.scales;
  const bool weighted = kOptions && in.weights;
  const T near_from = near_exponent<T, kOptions>(scales, in.scales);
  T sums[kD] = {}, z[kD], bias = 0;
#pragma unroll
  for (int f = 0; f < kD; ++f) z[f] = memory.rows[lane.row][f];
  double of_weight = 0;
  bool centred = false;
  int turn = 0;
  int64_t first = 0;
#pragma unroll 1
  for (int group = 0; group < in.groups; ++group) {
    const int64_t end = in.begins[group + 1];
    const T coefficient = static_cast<T>(pass.relation[group]);
    OfColumns<T> of_group = {};
#pragma unroll 1
    while (first < end) {
      const int here = pass.template here<kD>(first, end);
      sync_block();  // the tile before has been read
      load_tile<T, kD>(in, weighted, pass.item, group, first, here, rows, memory);
      sync_block();
      // A row's pair with itself has to be at no distance, exactly: its rounding would be all there
      // is where all others are many bandwidths away.
      const bool has_own = own.among(first, here);
      const bool near = kProducts<kD> && !view.far && !has_own && recentre(view, here, memory);
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
      OfColumns<T> of_tile = {};
      if (!near) {
        const int own_column =
            has_own ? static_cast<int>(own.first + lane.row - first) : kTile<T, kD>;
        of_tile = by_differences<T, kD, kOptions, kGradient>(
            in, near_from, lane, own_column, here, z, coefficient, weighted, scales, sums, memory);
      } else if constexpr (kProducts<kD>) {
        of_tile = by_products<T, kD, kOptions, kGradient>(in, near_from, lane, here, z, bias,
                                                          coefficient / view.scale, weighted,
                                                          scales, sums, memory);
      }
      of_group.value += of_tile.value;
      of_group.near += of_tile.near;
      if (kOptions) of_group.far += of_tile.far;
      first += here;
      turn += here;
      const bool sums_are_long = turn >= kTurn;
      if (sums_are_long || first == end) {
        of_group.add(lane.row < own.here, pass.weight_of(lane), group, pass.tail.parts,
                     memory.scratch);
        if (kOptions) of_weight += pass.relation[group] * of_group.of_weight(scales[0].weight);
        of_group = {};
      }
      if (sums_are_long || first == in.rows) {
        if (kGradient) collect<T, kD>(sums, lane, memory);
        turn = 0;
      }
    }
  }
  return of_weight;
}

// Sum over the block's rows i and all columns j of r_ij w_i w_j k t for one bandwidth, without its
// weight; t = u / 2h.
template <typename T, int kD, typename Rows>
__device__ double visit_bandwidth(const RowsPass<T>& pass, const Lane& lane, T unit,
                                  const Rows& rows, RowsMemory<T, kD>& memory) {
  const MmdProblem<T>& in = pass.in;
  T z[kD];
#pragma unroll
  for (int f = 0; f < kD; ++f) z[f] = memory.rows[lane.row][f];
  double total = 0;
  int64_t first = 0;
#pragma unroll 1
  for (int group = 0; group < in.groups; ++group) {
    const int64_t end = in.begins[group + 1];
#pragma unroll 1
    while (first < end) {
      const int here = pass.template here<kD>(first, end);
      sync_block();
      load_tile<T, kD>(in, in.weights, pass.item, group, first, here, rows, memory);
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
        sum += (in.weights ? memory.weight[j] : T(1)) * (t * exp2_less_one(e).whole);
      }
      total += pass.relation[group] * sum;
      first += here;
    }
  }
  const bool there = lane.row < pass.own.here;
  return sum_of_block(there ? pass.weight_of(lane) * total : 0.0, memory.scratch);
}

// Writes the derivatives in the rows' weights, of which every lane has a share. A barrier. The
// tile, whose memory this takes, has been read: a visit ends with sums over the block.
template <typename T, int kD>
__device__ void write_weights(const RowsPass<T>& pass, const Lane& lane, double share, T* to,
                              RowsMemory<T, kD>& memory) {
  double* shares = reinterpret_cast<double*>(&memory.tile[0][0]);
  shares[lane.group * lane.rows + lane.row] = share;
  sync_block();
  const int row = static_cast<int>(threadIdx.x);
  if (row >= pass.own.here) return;
  double sum = 0;
#pragma unroll 1
  for (int group = 0; group < lane.groups; ++group) sum += shares[group * lane.rows + row];
  to[pass.item * pass.in.rows + pass.own.first + row] = static_cast<T>(2 * sum);
}

template <typename T, int kD, bool kOptions>
__global__ void __launch_bounds__(kThreads, sizeof(T) == 4 && kD <= 16 && !kOptions ? 2 : 1)
    mmd_rows_kernel(const MmdCall<T> call, const MmdValue<T> out) {
  const MmdProblem<T>& in = call.in;
  SharedLayout layout(shared_memory<unsigned char>());
  RowsMemory<T, kD>& memory = *layout.array<RowsMemory<T, kD>>(1);
  const MmdTail<T> tail(layout, in);
  const int64_t item = blockIdx.x / call.device.blocks;
  const unsigned block = blockIdx.x % call.device.blocks;
  const int d = static_cast<int>(in.d), rows = call.device.rows;
  const Lane lane(rows);
  const RowsPass<T> pass(in, item, block_of_rows(in, block, rows), tail);
  const BlockOfRows& own = pass.own;
  const auto rows_at = [&](int, int64_t first) {
    return [of = rows_of(in, item, first)](int row, int f) { return load<T>(of, row, f); };
  };
  const auto at = rows_at(own.group, own.first);
#pragma unroll 1
  for (int place = static_cast<int>(threadIdx.x); place < rows * kD; place += kThreads) {
    const int row = place / kD, f = place % kD;
    memory.rows[row][f] = row < own.here && f < d ? at(row, f) : T(0);
  }
  tail.load(call, item);
  clear_sums(memory, rows);
  const View<T> view = view_of(in, tail.scales, own.here, memory);

  double of_weight = 0;
  if (own.wanted(out.row_begin, out.row_end)) {
    of_weight = visit<T, kD, kOptions, true>(pass, lane, view, rows_at, memory);
    const double factor = -2.0 / tail.scales[0].variance;
#pragma unroll 1
    for (int place = static_cast<int>(threadIdx.x); place < own.here * d; place += kThreads) {
      const int64_t row = own.first + place / d;
      const int f = place % d;
      if (row < out.row_begin || row >= out.row_end) continue;
      const double weight = row_weight(in, item, row);
      gradient_of(in, out, item, row)[f] =
          static_cast<T>(factor * weight * memory.sums[place / d][f]);
    }
  } else {
    of_weight = visit<T, kD, kOptions, false>(pass, lane, view, rows_at, memory);
  }
  if constexpr (kOptions) {
    if (out.weights) write_weights(pass, lane, of_weight, out.weights, memory);
    if (out.variance) {
#pragma unroll 1
      for (int s = 0; s < in.scales; ++s) {
        const double sum = visit_bandwidth<T, kD>(pass, lane, tail.scales[s].unit, rows_at, memory);
        if (threadIdx.x == 0) tail.parts[kOfGroup * in.groups + s] = sum;
      }
    }
  }
  finish(call, out, item, block, tail, memory.scratch);
}

}  // namespace cgm_fast::cuda
