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

// Whether a visit without a gradient is one with it that asks, for every two columns, rather than
// compiled for itself: where that is little beside the rest.
template <int kD, bool kOptions>
constexpr bool kAsks = kOptions || kD >= 8;

// A tile by plain differences: sums grow by coefficient w (z_i - z_j). The row's pair with itself
// is column `own`, or none here. Without kOptions far pairs are what near ones leave.
template <typename T, int kD, bool kOptions, bool kGradient>
__device__ OfColumns<T> by_differences(const MmdProblem<T>& in, T near_from, const Lane& lane,
                                       int own, int here, const T (&z)[kD], T coefficient,
                                       bool weighted, const Scale<T>* scales, T (&sums)[kD],
                                       const RowsMemory<T, kD>& memory, bool gradient) {
  constexpr bool kKeep = kD < 64 || !kOptions;  // else registers are too few
  OfColumns<T> total = {};
  for (int j = lane.group; j < here; j += lane.groups) {
    T difference[kD], column[TileShape<T, kD>::kStride], u = 0;
    read_column(memory, j, column);
#pragma unroll
    for (int f = 0; f < kD; ++f) {
      difference[f] = z[f] - column[f];
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
      const Exp2<T> k = exp2_near(e, T(0));
      value = k.less;
      w = k.whole;
      total.near += j == own ? T(0) : one;
    }
    total.value += value;
    if (kGradient && (!kAsks<kD, kOptions> || gradient)) {
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
                                    const RowsMemory<T, kD>& memory, bool gradient) {
  constexpr int kStride = TileShape<T, kD>::kStride;
  constexpr bool kBiasBehind = TileShape<T, kD>::kBiasBehind;
  OfColumns<T> total = {};
  T slope = 0, weighted_sum[kD] = {};
  // As many columns as `tag` says, whose sums go on side by side, and whose bandwidths are gone
  // through together: two, or in double one, for which registers are enough.
  const auto visit_columns = [&](int j, auto tag) {
    constexpr int kMany = decltype(tag)::value;
    T e[kMany], column[kMany][kStride], value[kMany], w[kMany];
#pragma unroll
    for (int c = 0; c < kMany; ++c) {
      const int at = j + c * lane.groups;
      read_column(memory, at, column[c]);
      e[c] =
          bias + (kBiasBehind ? column[c][kStride - 1 > kD ? kD : kStride - 1] : memory.bias[at]);
#pragma unroll
      for (int f = 0; f < kD; ++f) e[c] = fma(z[f], column[c][f], e[c]);
    }
    if constexpr (kOptions) {
      T near[kMany];
      kernels_at(e, scales, in.scales, near_from, value, w, near);
#pragma unroll
      for (int c = 0; c < kMany; ++c) {
        const T of_column = weighted ? memory.weight[j + c * lane.groups] : T(1);
        value[c] *= of_column;
        total.near = fma(near[c], of_column, total.near);
        total.far = fma(static_cast<T>(in.scales) - near[c], of_column, total.far);
        w[c] *= of_column;
      }
    }
#pragma unroll
    for (int c = 0; c < kMany; ++c) {
      if constexpr (!kOptions) {
        const Exp2<T> k = exp2_near(e[c], T(0));
        value[c] = k.less;
        w[c] = k.whole;
      }
      total.value += value[c];
      slope += w[c];
    }
    if (kGradient && (!kAsks<kD, kOptions> || gradient)) {
#pragma unroll
      for (int c = 0; c < kMany; ++c) {
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
  if (!kOptions) total.near = rint(slope - total.value);  // as often k was lessened by 1
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
};

// Calls `use(tile, arrive)` for the tiles of all columns, one after another, where `arrive(may,
// view)` is to be called first: it waits for the tile, prepares it and begins to fetch the next.
template <int kD, typename T, typename Rows, typename Use>
__device__ void each_tile(const RowsPass<T>& pass, const Rows& rows, bool weighted,
                          RowsMemory<T, kD>& memory, const Use& use) {
  const MmdProblem<T>& in = pass.in;
  const int d = static_cast<int>(in.d);
  auto of = ColumnTile<kTile<T, kD>>::at(in, 0);
  int head = fetch_tile(rows, d, of, memory);
#pragma unroll 1
  while (true) {
    const bool is_last = of.first + of.here == in.rows;
    auto next = of;
    use(of, [&](bool may, const View<T>& view) {
      return prepare(in, pass.item, weighted, may, view, of, head, memory, [&] {
        if (is_last) return;
        next = of.next(in);
        head = fetch_tile(rows, d, next, memory);
      });
    });
    if (is_last) return;
    of = next;
  }
}

// All columns for the block's rows, those of memory.rows: sums are added to memory's, and to the
// parts. Without kOptions there is one bandwidth and no weights. Returns the lane's share of half
// the derivative in its row's weight (kOptions).
template <typename T, int kD, bool kOptions, bool kGradient, typename Rows>
__device__ double visit(const RowsPass<T>& pass, const Lane& lane, const View<T>& view,
                        const Rows& rows, RowsMemory<T, kD>& memory, bool gradient = kGradient) {
  const MmdProblem<T>& in = pass.in;
  const BlockOfRows& own = pass.own;
  const Scale<T>* scales = pass.tail.scales;
  const bool weighted = kOptions && in.weights;
  const T near_from = near_exponent<T, kOptions>(scales, in.scales);
  T sums[kD] = {}, z[kD], bias = 0;
#pragma unroll
  for (int f = 0; f < kD; ++f) z[f] = memory.rows[lane.row][f];
  const T of_scale = 1 / view.scale;
  double of_weight = 0;
  bool centred = false;
  int turn = 0;
  OfColumns<T> of_group = {};
  each_tile<kD>(pass, rows, weighted, memory, [&](const auto& of, const auto& arrive) {
    // A row's pair with itself has to be at no distance, exactly: its rounding would be all there
    // is where all others are many bandwidths away.
    const bool has_own = own.among(of.first, of.here);
    const bool near = arrive(!view.far && !has_own, view);
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
    const T coefficient = static_cast<T>(pass.relation[of.group]);
    const int here = opaque(of.here);  // or it would be counted anew for every column
    OfColumns<T> of_tile = {};
    if (!near) {
      const int own_column =
          has_own ? static_cast<int>(own.first + lane.row - of.first) : kTile<T, kD>;
      of_tile = by_differences<T, kD, kOptions, kGradient>(in, near_from, lane, own_column, here, z,
                                                           coefficient, weighted, scales, sums,
                                                           memory, gradient);
    } else if constexpr (kProducts<kD>) {
      of_tile = by_products<T, kD, kOptions, kGradient>(in, near_from, lane, here, z, bias,
                                                        coefficient * of_scale, weighted, scales,
                                                        sums, memory, gradient);
    }
    of_group.value += of_tile.value;
    of_group.near += of_tile.near;
    if (kOptions) of_group.far += of_tile.far;
    turn += of.here;
    const bool sums_are_long = turn >= kTurn;
    if (sums_are_long || of.last) {
      of_group.add(lane.row < own.here, pass.weight_of(lane), of.group, pass.tail.parts,
                   memory.scratch);
      if (kOptions) of_weight += pass.relation[of.group] * of_group.of_weight(scales[0].weight);
      of_group = {};
    }
    if (sums_are_long || of.first + of.here == in.rows) {
      if (kGradient && (!kAsks<kD, kOptions> || gradient)) collect<T, kD>(sums, lane, memory);
      turn = 0;
    }
  });
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
  each_tile<kD>(pass, rows, in.weights, memory, [&](const auto& of, const auto& arrive) {
    arrive(false, View<T>{});
    T sum = 0;
#pragma unroll 2
    for (int j = lane.group; j < of.here; j += lane.groups) {
      T u = 0, column[TileShape<T, kD>::kStride];
      read_column(memory, j, column);
#pragma unroll
      for (int f = 0; f < kD; ++f) {
        const T difference = z[f] - column[f];
        u = fma(difference, difference, u);
      }
      const T e = u * unit;
      // Where k is an exact zero, t may be infinite.
      const T t = max_or_nan(e, T(-1100)) * static_cast<T>(-0.69314718055994530942);
      sum += (in.weights ? memory.weight[j] : T(1)) * (t * exp2_less_one(e).whole);
    }
    total += pass.relation[of.group] * sum;
  });
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
  const InPlace<T> rows_at{in, item};
  with_elements<T>(rows_of(in, item, own.first), [&](const auto& at) {
    const auto there = [&](int row, int f) { return row < own.here && f < d; };
    each_element<kD>(
        rows, kD, [&](int row, int f) { return there(row, f) ? at(row, f) : T(0); },
        [&](int row, int f, T value) { memory.rows[row][f] = value; });
  });
  tail.load(call, item);
  clear_sums(memory, rows);
  const View<T> view = view_of(in, tail.scales, own.here, memory);

  const bool gradient = own.wanted(out.row_begin, out.row_end);
  double of_weight = 0;
  if (kAsks<kD, kOptions> || gradient) {
    of_weight = visit<T, kD, kOptions, true>(pass, lane, view, rows_at, memory, gradient);
  } else if constexpr (!kAsks<kD, kOptions>) {
    visit<T, kD, false, false>(pass, lane, view, rows_at, memory);
  }
  if (gradient) {
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
