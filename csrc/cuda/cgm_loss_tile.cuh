// What a block of cgm_loss has in shared memory, how rows get there by 16 bytes a load, and the
// loop over them that distances to prototypes and pairs of latents have in common.
#pragma once

#include "cgm_loss.h"
#include "cuda/reduce.cuh"

namespace cgm_fast::cuda {

// Numbers of 16 bytes.
template <typename T>
constexpr int kWide = 16 / static_cast<int>(sizeof(T));

// Shared memory of a block. A row is padded by 16 bytes, so that eight lanes which read 16 bytes of
// different rows meet no bank twice.
template <typename T, int kD>
struct CgmLossMemory {
  static constexpr int kStride = kD + kWide<T>;
  static constexpr int kColumns = kD == 64 ? 128 : 256;  // of a tile; no more than threads
  static constexpr int kFew = (9 << 10) / (kStride * static_cast<int>(sizeof(T))) / 8 * 8;
  using Row = T[kStride];
  alignas(16) Row tile[kColumns];  // samples to assign, then latents and their prototypes'
  alignas(16) Row prototypes[kFew];
  alignas(16) Row rows[kCgmLossRows];   // the block's own: as they are given,
  alignas(16) Row noisy[kCgmLossRows];  // and with their noise
  alignas(16) T sums[kWarps][kCgmLossRows][kD];
  double parts[kWarps][kCgmLossParts];
  double totals[2 * kCgmLossParts];  // for the last block
};

// Row and feature of place `at` of rows of d features side by side.
struct FlatRows {
  int d;
  float per_feature;

  __device__ explicit FlatRows(int d) : d(d), per_feature(1.f / static_cast<float>(d)) {}

  // Right for places below 2^21: the quotient is at least 1/2d from a whole number, and its
  // rounding less.
  __device__ int row(int at) const {
    return static_cast<int>((static_cast<float>(at) + 0.5f) * per_feature);
  }
};

// Copies rows [first, first + here) to shared memory: `from.piece<n>(at)` gives the n numbers from
// place `at` on, of all rows side by side, and all loads of a round are under way before the first
// number is needed. By 16 bytes where `wide`, or one by one. The work begins with thread number
// `begin`, so that two such copies are two warps' work.
template <int kNumbers, typename T, int kStride, typename From>
__device__ void copy_pieces(T (*to)[kStride], int place, int end, const FlatRows& places, int first,
                            const From& from, int begin) {
  constexpr int kRound = kNumbers == 1 ? 4 : 2;
  const int thread = (static_cast<int>(threadIdx.x) - begin) & (kThreads - 1);
  const int pieces = (end - place) / kNumbers, origin = first * places.d;
#pragma unroll 1
  for (int piece = thread; piece < pieces; piece += kRound * kThreads) {
    Pack<T, kNumbers> found[kRound];
#pragma unroll
    for (int q = 0; q < kRound; ++q) {
      const int at = place + (piece + q * kThreads) * kNumbers;
      if (piece + q * kThreads < pieces) found[q] = from.template piece<kNumbers>(at);
    }
#pragma unroll
    for (int q = 0; q < kRound; ++q) {
      const int at = place + (piece + q * kThreads) * kNumbers - origin;
      if (piece + q * kThreads >= pieces) break;
      int row = places.row(at), f = at - row * places.d;
      if (kNumbers > 1 && places.d % kNumbers == 0) {
        write_pack(&to[row][f], found[q]);
        continue;
      }
#pragma unroll
      for (int number = 0; number < kNumbers; ++number) {
        to[row][f] = found[q].of[number];
        if (++f == places.d) {
          f = 0;
          ++row;
        }
      }
    }
  }
}

template <typename T, int kStride, typename From>
__device__ void copy_rows(T (*to)[kStride], int first, int here, const FlatRows& places,
                          const From& from, int begin = 0) {
  const int place = first * places.d, end = place + here * places.d;
  if (!from.wide(place)) return copy_pieces<1>(to, place, end, places, first, from, begin);
  const int whole = place + (end - place) / kWide<T> * kWide<T>;
  copy_pieces<kWide<T>>(to, place, whole, places, first, from, begin);
  copy_pieces<1>(to, whole, end, places, first, from, begin);
}

// Whether 16 bytes can be read there at once.
__device__ inline bool is_aligned(const void* at) {
  return reinterpret_cast<std::uintptr_t>(at) % 16 == 0;
}

// Rows as they are given, side by side.
template <typename T>
struct Given {
  const T* data;

  __device__ bool wide(int place) const { return is_aligned(data + place); }
  template <int kNumbers>
  __device__ Pack<T, kNumbers> piece(int at) const {
    return read_pack<kNumbers>(data + at);
  }
};

// z, and behind it z': [2 rows, d].
template <typename T>
struct Noisy {
  const T *r, *g, *noise;
  const int* own;  // [rows]
  T sigma, prior_sigma;
  int rows;
  FlatRows places;

  __device__ bool wide(int place) const { return is_aligned(noise + place); }

  __device__ T mean(int at) const {
    const int latents = rows * places.d;
    if (at < latents) return r[at];
    const int row = places.row(at - latents);
    return g[own[row] * places.d + at - latents - row * places.d];
  }

  template <int kNumbers>
  __device__ Pack<T, kNumbers> piece(int at) const {
    const int latents = rows * places.d;
    Pack<T, kNumbers> found = read_pack<kNumbers>(noise + at), means;
    if (kNumbers > 1 && at + kNumbers <= latents && is_aligned(r + at)) {
      means = read_pack<kNumbers>(r + at);
    } else {
#pragma unroll
      for (int q = 0; q < kNumbers; ++q) means.of[q] = mean(at + q);
    }
#pragma unroll
    for (int q = 0; q < kNumbers; ++q) {
      found.of[q] = fma(at + q < latents ? sigma : prior_sigma, found.of[q], means.of[q]);
    }
    return found;
  }
};

// Zeros behind the d features of some rows. A barrier has to follow.
template <int kD, typename T, int kStride>
__device__ void clear_padding(T (*rows)[kStride], int count, int d) {
  const int padding = kD - d;
  if (padding == 0) return;
#pragma unroll 1
  for (int row = static_cast<int>(threadIdx.x) / 4; row < count; row += kThreads / 4) {
#pragma unroll 1
    for (int f = d + static_cast<int>(threadIdx.x) % 4; f < kD; f += 4) rows[row][f] = 0;
  }
}

template <int kD, typename T, int kStride>
__device__ void read_row(const T (&from)[kStride], T (&row)[kD]) {
#pragma unroll
  for (int f = 0; f < kD; f += kWide<T>) {
    const auto pack = read_pack<kWide<T>>(&from[f]);
#pragma unroll
    for (int q = 0; q < kWide<T>; ++q) row[f + q] = pack.of[q];
  }
}

// Goes through columns first, first + step, ... of `here`: calls `weigh(column, |row - column|²)`,
// and adds what it returns times (row - column) to the sums.
template <bool kSums, int kD, typename T, int kStride, typename Weigh>
__device__ void each_column(const T (&row)[kD], const T (*columns)[kStride], int first, int step,
                            int here, const Weigh& weigh, T (&sums)[kD]) {
  constexpr bool kKeep = kD <= 16;  // with more features registers are too few: read twice
#pragma unroll 1
  for (int j = first; j < here; j += step) {
    T u = 0, difference[kKeep ? kD : kWide<T>];
#pragma unroll
    for (int f = 0; f < kD; f += kWide<T>) {
      if (!kKeep && f % 32 == 0) compiler_barrier();
      const auto pack = read_pack<kWide<T>>(&columns[j][f]);
#pragma unroll
      for (int q = 0; q < kWide<T>; ++q) {
        const T value = row[f + q] - pack.of[q];
        difference[kKeep ? f + q : q] = value;
        u = fma(value, value, u);
      }
    }
    const T w = weigh(j, u);
    if constexpr (kSums) {
      if (w == 0) continue;
#pragma unroll
      for (int f = 0; f < kD; f += kWide<T>) {
        if (!kKeep) {
          if (f % 32 == 0) compiler_barrier();
          const auto pack = read_pack<kWide<T>>(&columns[j][f]);
#pragma unroll
          for (int q = 0; q < kWide<T>; ++q) difference[q] = row[f + q] - pack.of[q];
        }
#pragma unroll
        for (int q = 0; q < kWide<T>; ++q) {
          sums[f + q] = fma(w, difference[kKeep ? f + q : q], sums[f + q]);
        }
      }
    }
  }
}

// A step of a sum over lanes of the first kSize numbers: the two lanes that differ by `bit` each
// keep half of them, with the other's added. What is left is at the front.
template <int kSize, typename T, int kCount>
__device__ void halve(T (&values)[kCount], int bit) {
  const bool upper = (static_cast<int>(threadIdx.x) & bit) != 0;
#pragma unroll
  for (int q = 0; q < kSize / 2; ++q) {
    const T given = upper ? values[q] : values[q + kSize / 2];
    const T kept = upper ? values[q + kSize / 2] : values[q];
    values[q] = kept + shuffle_xor(given, bit);
  }
}

// A warp's sums, left in memory: the gradients' of each row over the lanes that share it, the
// parts' over all lanes. `rows` is 4 or 8.
template <typename T, int kD>
__device__ void leave_sums(T (&sums)[kD], const double (&parts)[kCgmLossParts], int rows,
                           CgmLossMemory<T, kD>& memory) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const auto half = [&](int bit, int count) { return lane & bit ? count : 0; };
  halve<kD>(sums, 16);
  halve<kD / 2>(sums, 8);
  int left = kD / 4, first = half(16, kD / 2) + half(8, kD / 4);
  if (rows == 4) {
    halve<kD / 4>(sums, 4);
    left = kD / 8;
    first += half(4, kD / 8);
  }
#pragma unroll
  for (int q = 0; q < kD / 4; ++q) {
    if (q < left) memory.sums[warp][lane % rows][first + q] = sums[q];
  }

  double of_warp[8] = {};
  static_assert(kCgmLossParts <= 8);
#pragma unroll
  for (int q = 0; q < kCgmLossParts; ++q) of_warp[q] = parts[q];
  halve<8>(of_warp, 16);
  halve<4>(of_warp, 8);
  halve<2>(of_warp, 4);
  of_warp[0] += shuffle_xor(of_warp[0], 2);
  of_warp[0] += shuffle_xor(of_warp[0], 1);
  const int part = half(16, 4) + half(8, 2) + half(4, 1);
  if (lane % 4 == 0 && part < kCgmLossParts) memory.parts[warp][part] = of_warp[0];
}

}  // namespace cgm_fast::cuda
