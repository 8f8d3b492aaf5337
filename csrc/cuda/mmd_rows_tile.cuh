// What a block of mmd_rows.cuh has of its rows and of a tile of columns: in shared memory, by
// lanes, and seen from the rows' centre.
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
  static constexpr int kSome = 8;  // sums of a row that go through `tile` at once
  alignas(16) T tile[kTile<T, kD>][kD];
  T bias[kTile<T, kD>], weight[kTile<T, kD>];
  T rows[kWarp][kD];
  T centre[kD];
  double sums[kWarp][kD];  // of the rows' gradients
  double scratch[kScratch];
  static_assert(sizeof(tile) >= kThreads * kSome * sizeof(T));
  static_assert(sizeof(tile) >= kThreads * sizeof(double));
};

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
#pragma unroll 1
  for (int at = static_cast<int>(threadIdx.x); at < rows * kD; at += kThreads) {
    memory.sums[at / kD][at % kD] = 0;
  }
  sync_block();
}

// Columns [first, first + here) of z, all of group `group`, from `rows(group, first)(j, feature)`.
template <typename T, int kD, typename Rows>
__device__ void load_tile(const MmdProblem<T>& in, bool weighted, int64_t item, int group,
                          int64_t first, int here, const Rows& rows, RowsMemory<T, kD>& memory) {
  const int d = static_cast<int>(in.d);
  const auto at = rows(group, first);
#pragma unroll 1
  for (int place = static_cast<int>(threadIdx.x); place < here * kD; place += kThreads) {
    const int j = place / kD, f = place % kD;
    memory.tile[j][f] = f < d ? at(j, f) : T(0);
  }
  if (weighted) {
#pragma unroll 1
    for (int j = static_cast<int>(threadIdx.x); j < here; j += kThreads) {
      memory.weight[j] = row_weight(in, item, first + j);
    }
  }
}

// Add every lane's sums to the row's, in float64: lanes of a warp that share a row, then warps.
template <typename T, int kD>
__device__ void collect(T (&sums)[kD], const Lane& lane, RowsMemory<T, kD>& memory) {
  constexpr int kSome = RowsMemory<T, kD>::kSome;
  T(*scratch)[kSome] = reinterpret_cast<T(*)[kSome]>(&memory.tile[0][0]);
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
#pragma unroll
  for (int first = 0; first < kD; first += kSome) {
    sync_block();  // nobody still reads the tile, or the sums before
#pragma unroll
    for (int q = 0; q < kSome; ++q) {
      if (first + q >= kD) break;
      T sum = sums[first + q];
#pragma unroll 1
      for (int bit = lane.rows; bit < kWarp; bit *= 2) sum += shuffle_xor(sum, bit);
      if (lane.group % (kWarp / lane.rows) == 0) scratch[warp * lane.rows + lane.row][q] = sum;
      sums[first + q] = 0;
    }
    sync_block();
    const int some = kD - first < kSome ? kD - first : kSome;
#pragma unroll 1
    for (int at = static_cast<int>(threadIdx.x); at < lane.rows * some; at += kThreads) {
      const int row = at / some, q = at % some;
      double sum = memory.sums[row][first + q];
#pragma unroll 1
      for (int w = 0; w < kWarps; ++w) sum += scratch[w * lane.rows + row][q];
      memory.sums[row][first + q] = sum;
    }
  }
  sync_block();
}

// Whether a tile may be taken by products: with more features registers are too few.
template <int kD>
constexpr bool kProducts = kD <= 32;

// How the block's rows see a tile: from their centre, scaled so that a pair's exponent is a
// product.
template <typename T>
struct View {
  T scale;   // sqrt(log2(e) / h)
  T widest;  // of the bandwidths' ratios, for one of which exponents are the largest
  bool far;  // whether some row is far from the centre
};

// The squared length of a row seen from the centre, and whether that is far.
template <typename T, int kD>
__device__ T squared_length(const T (&row)[kD], const T (&centre)[kD], T scale) {
  T square = 0;
#pragma unroll
  for (int f = 0; f < kD; ++f) {
    const T value = (row[f] - centre[f]) * scale;
    square = fma(value, value, square);
  }
  return square;
}

// From memory.rows; of `here` rows. A barrier.
template <typename T, int kD>
__device__ View<T> view_of(const MmdProblem<T>& in, const Scale<T>* scales, int here,
                           RowsMemory<T, kD>& memory) {
#pragma unroll 1
  for (int f = static_cast<int>(threadIdx.x); f < kD; f += kThreads) {
    T sum = 0;
#pragma unroll 1
    for (int row = 0; row < here; ++row) sum += memory.rows[row][f];
    memory.centre[f] = sum / static_cast<T>(here);
  }
  sync_block();
  View<T> view{sqrt(-2 * scales[0].unit), 1, false};
#pragma unroll 1
  for (int s = 1; s < in.scales; ++s) {
    view.widest = scales[s].ratio > view.widest ? scales[s].ratio : view.widest;
  }
  const int row = static_cast<int>(threadIdx.x);
  const bool far =
      row < here && !(squared_length(memory.rows[row], memory.centre, view.scale) * view.widest <=
                      T(kFarSquare));  // or NaN
  view.far = any_in_block(far);
  return view;
}

// If no column of the tile is far: centre and scale it, write its biases, and say so. Barriers.
template <typename T, int kD>
__device__ bool recentre(const View<T>& view, int here, RowsMemory<T, kD>& memory) {
  bool far = false;
#pragma unroll 1
  for (int j = static_cast<int>(threadIdx.x); j < here; j += kThreads) {
    const T square = squared_length(memory.tile[j], memory.centre, view.scale);
    far = far || !(square * view.widest <= T(kFarSquare));
    memory.bias[j] = square * T(-0.5);
  }
  if (any_in_block(far)) return false;
#pragma unroll 1
  for (int place = static_cast<int>(threadIdx.x); place < here * kD; place += kThreads) {
    T& value = memory.tile[place / kD][place % kD];
    value = (value - memory.centre[place % kD]) * view.scale;
  }
  sync_block();
  return true;
}

}  // namespace cgm_fast::cuda
