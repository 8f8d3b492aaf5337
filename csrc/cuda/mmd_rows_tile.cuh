// What a block of mmd_rows.cuh has of its rows and of a tile of columns: in shared memory, by
// lanes, and seen from the rows' centre.
#pragma once

#include "cuda/mmd.cuh"

namespace cgm_fast::cuda {

// How a tile of columns lies in shared memory.
template <typename T, int kD>
struct TileShape {
  static constexpr int kPack = 16 / static_cast<int>(sizeof(T));    // numbers of a 16-byte load
  static constexpr int kStride = (kD + kPack - 1) / kPack * kPack;  // of a column
  static constexpr bool kBiasBehind = kStride > kD;                 // of a column its features
  static constexpr int kChunks = kStride / kPack;
  // Threads that prepare a column together, and the numbers that each of them has of it.
  static constexpr int kSharing = (kChunks & (kChunks - 1)) == 0 ? kChunks : 1;
  static constexpr int kEach = kStride / kSharing;
  static constexpr int kAtOnce = kThreads / kSharing;  // columns
  // Of 24 KiB; of 32 features 36, where registers leave a multiprocessor one block. A warp, or of 4
  // rows an eighth of it, takes every eighth column (64th).
  static constexpr int kColumns = (kD == 32 ? 36 << 10 : 24 << 10) /
                                  (kStride * static_cast<int>(sizeof(T))) / kAtOnce * kAtOnce;
  static constexpr int kTurns = kColumns / kAtOnce;
};
template <typename T, int kD>
constexpr int kTile = TileShape<T, kD>::kColumns;

constexpr int kTurn = 8192;  // columns after which sums in registers join those in float64

// Shared memory of a block.
template <typename T, int kD>
struct RowsMemory {
  using Shape = TileShape<T, kD>;
  static constexpr int kSome = 8;  // sums of a row that go through `tile` at once
  alignas(16) T tile[kTile<T, kD>][Shape::kStride];
  alignas(16) T raw[kTile<T, kD> * kD + Shape::kPack];  // the next tile's samples as they are
  T bias[Shape::kBiasBehind ? 1 : kTile<T, kD>], weight[kTile<T, kD>];
  T rows[kWarp][kD];
  T centre[Shape::kStride];
  double sums[kWarp][kD];  // of the rows' gradients
  double scratch[kScratch];
  static_assert(sizeof(tile) >= kThreads * kSome * sizeof(T));
  static_assert(sizeof(tile) >= kThreads * sizeof(double));

  __device__ T& bias_of(int j) {
    if constexpr (Shape::kBiasBehind) {
      return tile[j][kD];
    } else {
      return bias[j];
    }
  }
};

// A column of the tile, and its bias where that is behind it.
template <typename T, int kD>
__device__ void read_column(const RowsMemory<T, kD>& memory, int j,
                            T (&column)[TileShape<T, kD>::kStride]) {
  constexpr int kPack = TileShape<T, kD>::kPack;
#pragma unroll
  for (int first = 0; first < TileShape<T, kD>::kStride; first += kPack) {
    const Pack<T, kPack> pack = read_pack<kPack>(&memory.tile[j][first]);
#pragma unroll
    for (int q = 0; q < kPack; ++q) column[first + q] = pack.of[q];
  }
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
#pragma unroll 1
  for (int at = static_cast<int>(threadIdx.x); at < rows * kD; at += kThreads) {
    memory.sums[at / kD][at % kD] = 0;
  }
  sync_block();
}

// Where the rows of MMD² are: in the caller's memory.
template <typename T>
struct InPlace {
  const MmdProblem<T>& in;
  int64_t item;
};

// Begin to bring a tile's samples to memory.raw; returns the place of the first number.
template <typename T, int kD>
__device__ int fetch_tile(const InPlace<T>& rows, int d, const ColumnTile<kTile<T, kD>>& of,
                          RowsMemory<T, kD>& memory) {
  return fetch_dense<kD>(rows_of(rows.in, rows.item, of.first), d, of.here, memory.raw);
}

// The same where `rows(group, first)(j, feature)` makes them.
template <typename T, int kD, typename Rows>
__device__ int fetch_tile(const Rows& rows, int d, const ColumnTile<kTile<T, kD>>& of,
                          RowsMemory<T, kD>& memory) {
  each_element<kD>(of.here, d, rows(of.group, of.first),
                   [&](int j, int f, T value) { memory.raw[j * d + f] = value; });
  return 0;
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
template <int kD, typename T>
__device__ T squared_length(const T (&row)[kD], const T* centre, T scale) {
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
  for (int f = static_cast<int>(threadIdx.x); f < TileShape<T, kD>::kStride; f += kThreads) {
    T sum = 0;
#pragma unroll 1
    for (int row = 0; f < kD && row < here; ++row) sum += memory.rows[row][f];
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

// The samples in memory.raw, once they have arrived there, become memory.tile: centred, scaled and
// with biases, if they `may` and no column is far, and says so; else as they are. As soon as they
// have been read, calls `fetch_next()`. Barriers.
template <typename T, int kD, typename Next>
__device__ bool prepare(const MmdProblem<T>& in, int64_t item, bool weighted, bool may,
                        const View<T>& view, const ColumnTile<kTile<T, kD>>& of, int head,
                        RowsMemory<T, kD>& memory, const Next& fetch_next) {
  using Shape = TileShape<T, kD>;
  constexpr int kPack = Shape::kPack, kEach = Shape::kEach, kTurns = Shape::kTurns;
  constexpr int kWeights = (kTile<T, kD> + kThreads - 1) / kThreads;
  const int d = static_cast<int>(in.d), thread = opaque(static_cast<int>(threadIdx.x));
  const int first = thread / Shape::kSharing, f0 = thread % Shape::kSharing * kEach;
  copy_async_wait<0>();
  sync_block();  // the tile has arrived, and the one before has been read
  T held[kTurns][kEach], weights[kWeights] = {};
  if (weighted) {
#pragma unroll
    for (int q = 0; q < kWeights; ++q) {
      const int j = thread + q * kThreads;
      weights[q] = j < of.here ? row_weight(in, item, of.first + j) : T(0);
    }
  }
  const bool packed = head == 0 && d % kPack == 0;
#pragma unroll
  for (int turn = 0; turn < kTurns; ++turn) {
    // Beyond the last there may be anything, which is never looked at.
    const T* column = memory.raw + head + (first + turn * Shape::kAtOnce) * d + f0;
    if (packed) {
#pragma unroll
      for (int q = 0; q < kEach; q += kPack) {
        const Pack<T, kPack> pack = f0 + q < d ? read_pack<kPack>(column + q) : Pack<T, kPack>{};
#pragma unroll
        for (int p = 0; p < kPack; ++p) held[turn][q + p] = pack.of[p];
      }
    } else {
#pragma unroll
      for (int q = 0; q < kEach; ++q) held[turn][q] = f0 + q < d ? column[q] : T(0);
    }
  }
  T centre[kEach] = {}, bias[kTurns] = {};
  bool near = false;
  if constexpr (kProducts<kD>) {
    bool far = !may;
    if (may) {
#pragma unroll
      for (int q = 0; q < kEach; ++q) centre[q] = memory.centre[f0 + q];
#pragma unroll
      for (int turn = 0; turn < kTurns; ++turn) {
        T square = 0;
#pragma unroll
        for (int q = 0; q < kEach; ++q) {
          const T value = (held[turn][q] - centre[q]) * view.scale;
          square = fma(value, value, square);
        }
#pragma unroll
        for (int bit = 1; bit < Shape::kSharing; bit *= 2) square += shuffle_xor(square, bit);
        const bool there = first + turn * Shape::kAtOnce < of.here;
        far = far || (there && !(square * view.widest <= T(kFarSquare)));
        bias[turn] = square * T(-0.5);
      }
    }
    near = !any_in_block(far);
  } else {
    sync_block();
  }
  fetch_next();
#pragma unroll
  for (int turn = 0; turn < kTurns; ++turn) {
    const int j = first + turn * Shape::kAtOnce;
    if (kProducts<kD> && near) {
#pragma unroll
      for (int q = 0; q < kEach; ++q) held[turn][q] = (held[turn][q] - centre[q]) * view.scale;
    }
#pragma unroll
    for (int q = 0; q < kEach; q += kPack) {
      Pack<T, kPack> pack;
#pragma unroll
      for (int p = 0; p < kPack; ++p) {
        const bool is_bias = Shape::kBiasBehind && q + p == kD;  // there one thread has a column
        pack.of[p] = is_bias ? bias[turn] : held[turn][q + p];
      }
      write_pack(&memory.tile[j][f0 + q], pack);
    }
    if (!Shape::kBiasBehind && kProducts<kD> && f0 == 0) memory.bias_of(j) = bias[turn];
  }
  if (weighted) {
#pragma unroll
    for (int q = 0; q < kWeights; ++q) {
      const int j = thread + q * kThreads;
      if (j < kTile<T, kD>) memory.weight[j] = weights[q];
    }
  }
  sync_block();
  return near;
}

}  // namespace cgm_fast::cuda
