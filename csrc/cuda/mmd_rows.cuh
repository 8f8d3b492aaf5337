// MMD² and its gradient for few features, in one launch: a lane per row, whose features and sums
// stay in registers; columns come from shared memory, where all lanes of a warp read the same ones.
//
// Distances are plain differences, on the FP32 (or FP64) pipes: nothing has to be centred first,
// and what the gradient sums up, w_ij (z_i - z_j), is at hand.
//
// Few rows would leave most of the device idle with 32 to a block. Then a block takes 16, 8 or 4:
// the lanes of a warp share the columns among them, and their sums are added at the end.
#pragma once

#include "cuda/mmd.cuh"

namespace cgm_fast::cuda {

// Columns in shared memory at once: whole rounds of all lanes, also where 4 rows share a warp.
template <typename T, int kD>
constexpr int kTile = (24 << 10) / (kD * static_cast<int>(sizeof(T))) / 32 * 32;

constexpr int kTurn = 8192;  // columns after which sums in registers join those in float64

// Shared memory of a block.
template <typename T, int kD>
struct RowsMemory {
  static constexpr int kSums = kD + 2;  // within, across, gradient
  static constexpr int kSome = 8;       // sums of a row that go through `tile` at once
  alignas(16) T tile[kTile<T, kD>][kD];
  T weight[kTile<T, kD>];
  double sums[kWarp][kSums];
  double values[kWarp][2];
  double scratch[kWarps];
  // Then: double parts[2 + scales], Scale<T> scales[scales]
  static_assert(sizeof(tile) >= kThreads * kSome * sizeof(T));
};

template <typename T, int kD>
std::size_t rows_shared_bytes(int64_t scales) {
  return sizeof(RowsMemory<T, kD>) + static_cast<std::size_t>(2 + scales) * sizeof(double) +
         static_cast<std::size_t>(scales) * sizeof(Scale<T>);
}

// A warp's lane: its row, and its share of the columns.
struct Lane {
  int rows;   // of the block
  int row;    // of these
  int group;  // columns group, group + groups, ...
  int groups;

  __device__ explicit Lane(int rows) : rows(rows) {
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    const int shares = kWarp / rows, warp = static_cast<int>(threadIdx.x) / kWarp;
    row = lane % rows;
    group = warp * shares + lane / rows;
    groups = kWarps * shares;
  }
};

template <typename T, int kD>
__device__ void clear_sums(RowsMemory<T, kD>& memory, int rows) {
  for (int at = static_cast<int>(threadIdx.x); at < rows * (kD + 2); at += kThreads) {
    memory.sums[at / (kD + 2)][at % (kD + 2)] = 0;
  }
  sync_block();
}

// Columns [first, first + here) of a sample, from `at(sample, row, feature)`.
template <typename T, int kD, typename At>
__device__ void load_tile(const MmdInput<T>& in, int sample, const T* weights, int64_t item,
                          int64_t count, int64_t first, int here, const At& at,
                          RowsMemory<T, kD>& memory) {
  const int d = static_cast<int>(in.d);
  for (int place = static_cast<int>(threadIdx.x); place < here * kD; place += kThreads) {
    const int j = place / kD, f = place % kD;
    memory.tile[j][f] = f < d ? at(sample, first + j, f) : T(0);
  }
  if (weights) {
    for (int j = static_cast<int>(threadIdx.x); j < here; j += kThreads) {
      memory.weight[j] = weights[item * count + first + j];
    }
  }
}

// Add every lane's sums to the row's, in float64: lanes of a warp that share a row, then warps.
template <typename T, int kD, int kCount>
__device__ void collect(T (&sums)[kD + 2], const Lane& lane, RowsMemory<T, kD>& memory) {
  constexpr int kSome = RowsMemory<T, kD>::kSome;
  T(*scratch)[kSome] = reinterpret_cast<T(*)[kSome]>(&memory.tile[0][0]);
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
#pragma unroll
  for (int first = 0; first < kCount; first += kSome) {
    sync_block();  // nobody still reads the tile, or the sums before
#pragma unroll
    for (int q = 0; q < kSome; ++q) {
      if (first + q >= kCount) break;
      T sum = sums[first + q];
      for (int bit = lane.rows; bit < kWarp; bit *= 2) sum += shuffle_xor(sum, bit);
      if (lane.group % (kWarp / lane.rows) == 0) scratch[warp * lane.rows + lane.row][q] = sum;
      sums[first + q] = 0;
    }
    sync_block();
    const int some = kCount - first < kSome ? kCount - first : kSome;
    for (int at = static_cast<int>(threadIdx.x); at < lane.rows * some; at += kThreads) {
      const int row = at / some, q = at % some;
      double sum = memory.sums[row][first + q];
      for (int w = 0; w < kWarps; ++w) sum += scratch[w * lane.rows + row][q];
      memory.sums[row][first + q] = sum;
    }
  }
  sync_block();
}

// All columns for the block's rows, their sums added to memory's. Without kOptions there is one
// bandwidth and no weights.
template <typename T, int kD, bool kOptions, bool kGradient, typename At>
__device__ void visit(const MmdInput<T>& in, int64_t item, const Lane& lane, const T (&z)[kD],
                      bool in_y, const Scale<T>* scales, const At& at, RowsMemory<T, kD>& memory) {
  const T between = between_samples(in, item), unit = scales[0].unit;
  T sums[kD + 2] = {};
  int turn = 0;
  for (int sample = 0; sample < 2; ++sample) {
    const bool same = (sample == 1) == in_y;
    const int64_t count = sample ? in.m : in.n;
    const T* weights = sample ? in.y_weights : in.x_weights;
    const T a = static_cast<T>(sample ? -in.y_scale : in.x_scale), relation = same ? T(1) : between;
    const T coefficient = a * relation;
    for (int64_t first = 0; first < count; first += kTile<T, kD>) {
      const int here =
          static_cast<int>(count - first < kTile<T, kD> ? count - first : kTile<T, kD>);
      sync_block();  // the tile before has been read
      load_tile<T, kD>(in, sample, kOptions ? weights : nullptr, item, count, first, here, at,
                       memory);
      sync_block();
      T value = 0;
      for (int j = lane.group; j < here; j += lane.groups) {
        T difference[kD];
        T u = 0;
#pragma unroll
        for (int f = 0; f < kD; ++f) {
          difference[f] = z[f] - memory.tile[j][f];
          u = fma(difference[f], difference[f], u);
        }
        T w;
        if constexpr (kOptions) {
          T v, slope;
          kernel_at(u, scales, in.scales, &v, &slope);
          const T of_column = weights ? memory.weight[j] : T(1);
          value = fma(of_column, v, value);
          w = coefficient * of_column * slope;
        } else {
          const Exp2<T> k = exp2_less_one(u * unit);
          value += k.less_one;
          w = coefficient * k.whole;
        }
        if constexpr (kGradient) {
#pragma unroll
          for (int f = 0; f < kD; ++f) sums[2 + f] = fma(w, difference[f], sums[2 + f]);
        }
      }
      sums[0] += same ? a * value : T(0);
      sums[1] += same ? T(0) : a * value;
      turn += here;
      if (turn >= kTurn || (sample == 1 && first + here == count)) {
        collect<T, kD, kGradient ? kD + 2 : 2>(sums, lane, memory);
        turn = 0;
      }
    }
  }
}

// Sum over the block's rows i and all columns j of a_i a_j r_ij k t for one bandwidth, without its
// weight; t = u / 2h.
template <typename T, int kD, typename At>
__device__ double visit_bandwidth(const MmdInput<T>& in, int64_t item, const Lane& lane,
                                  const T (&z)[kD], bool in_y, T a_i, T unit, const At& at,
                                  RowsMemory<T, kD>& memory) {
  const T between = between_samples(in, item);
  double total = 0;
  for (int sample = 0; sample < 2; ++sample) {
    const int64_t count = sample ? in.m : in.n;
    const T* weights = sample ? in.y_weights : in.x_weights;
    const T coefficient = static_cast<T>(sample ? -in.y_scale : in.x_scale) *
                          ((sample == 1) == in_y ? T(1) : between);
    for (int64_t first = 0; first < count; first += kTile<T, kD>) {
      const int here =
          static_cast<int>(count - first < kTile<T, kD> ? count - first : kTile<T, kD>);
      sync_block();
      load_tile<T, kD>(in, sample, weights, item, count, first, here, at, memory);
      sync_block();
      T sum = 0;
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
__global__ void __launch_bounds__(kThreads, 1)
    mmd_rows_kernel(const MmdCall<T> call, const MmdGradient<T> out, unsigned blocks) {
  const MmdInput<T>& in = call.in;
  RowsMemory<T, kD>& memory = *shared_memory<RowsMemory<T, kD>>();
  double* parts = reinterpret_cast<double*>(&memory + 1);
  Scale<T>* scales = reinterpret_cast<Scale<T>*>(parts + 2 + in.scales);
  const int64_t item = blockIdx.x / blocks, total = in.n + in.m;
  const unsigned block = blockIdx.x % blocks;
  const int d = static_cast<int>(in.d), rows = call.device.rows;
  const Lane lane(rows);
  const int64_t first = int64_t{block} * rows, i = first + lane.row;
  const bool valid = i < total, in_y = i >= in.n;
  const auto at = [&](int sample, int64_t row, int f) {
    return load<T>(sample ? in.y : in.x, item, row, f);
  };
  for (int place = static_cast<int>(threadIdx.x); place < rows * kD; place += kThreads) {
    const int row = place / kD, f = place % kD;
    memory.tile[row][f] = first + row < total && f < d ? element(in, item, first + row, f) : T(0);
  }
  load_scales(call, item, scales);
  clear_sums(memory, rows);
  T z[kD];
#pragma unroll
  for (int f = 0; f < kD; ++f) z[f] = memory.tile[lane.row][f];

  if (first < out.row_end && first + rows > out.row_begin) {
    visit<T, kD, kOptions, true>(in, item, lane, z, in_y, scales, at, memory);
    const double factor = -2.0 / scales[0].variance;
    for (int place = static_cast<int>(threadIdx.x); place < rows * d; place += kThreads) {
      const int64_t row = first + place / d;
      const int f = place % d;
      if (row < out.row_begin || row >= out.row_end) continue;
      const double a = signed_weight(in, item, row);
      out.grad_z[(item * (out.row_end - out.row_begin) + row - out.row_begin) * d + f] =
          static_cast<T>(factor * a * memory.sums[place / d][2 + f]);
    }
  } else {
    visit<T, kD, kOptions, false>(in, item, lane, z, in_y, scales, at, memory);
  }
  if (static_cast<int>(threadIdx.x) < rows) {
    memory.values[threadIdx.x][0] = memory.sums[threadIdx.x][0];
    memory.values[threadIdx.x][1] = memory.sums[threadIdx.x][1];
  }
  if constexpr (kOptions) {
    if (out.grad_p) {
      const T a = valid ? signed_weight(in, item, i) : T(0);
      for (int s = 0; s < in.scales; ++s) {
        const double sum =
            visit_bandwidth<T, kD>(in, item, lane, z, in_y, a, scales[s].unit, at, memory);
        if (threadIdx.x == 0) parts[2 + s] = sum;
      }
    }
  }
  finish(call, out, item, block, blocks, rows, memory.values, parts, memory.scratch);
}

}  // namespace cgm_fast::cuda
