// Samples read in place: any dtype, any strides.
//
// What a loop reads of global memory one element at a time, it waits for one at a time. So tiles
// are copied to shared memory while the threads go on, or elements are read some at a time; how,
// is decided once for a tile.
#pragma once

#include "cuda/device.cuh"
#include "cuda/reduce.cuh"
#include "samples.h"

namespace cgm_fast::cuda {

// Element (row, feature) of one batch item, as T.
template <typename T>
__device__ T load(const Samples& of, int64_t item, int64_t row, int feature) {
  const int64_t at = item * of.item_stride + row * of.row_stride + feature * of.feature_stride;
  switch (of.dtype) {
    case Dtype::float16:
      return static_cast<T>(of_float16(static_cast<const std::uint16_t*>(of.data)[at]));
    case Dtype::bfloat16:
      return static_cast<T>(of_bfloat16(static_cast<const std::uint16_t*>(of.data)[at]));
    case Dtype::float32:
      return static_cast<T>(static_cast<const float*>(of.data)[at]);
    default:
      return static_cast<T>(static_cast<const double*>(of.data)[at]);
  }
}

// One item's rows from `first` on, without a batch.
__device__ inline Samples rows_from(Samples of, int64_t item, int64_t first) {
  const int bytes = of.dtype == Dtype::float64 ? 8 : of.dtype == Dtype::float32 ? 4 : 2;
  const int64_t at = item * of.item_stride + first * of.row_stride;
  of.data = static_cast<const unsigned char*>(of.data) + at * bytes;
  of.item_stride = 0;
  return of;
}

// Element (row, feature) of samples without a batch, of which there are few enough for an int.
template <typename T>
__device__ T load(const Samples& of, int row, int feature) {
  return load<T>(of, 0, row, feature);
}

// The same where samples are known to be of type T, and a row's features to lie side by side.
template <typename T>
__device__ T load_plain(const Samples& of, int64_t item, int64_t row, int feature) {
  return static_cast<const T*>(of.data)[item * of.item_stride + row * of.row_stride + feature];
}

// Whether samples are of type T, so that they can be copied.
template <typename T>
__device__ bool is_of(const Samples& of) {
  return of.dtype == (sizeof(T) == 4 ? Dtype::float32 : Dtype::float64);
}

// Whether rows of d numbers can be copied by sixteen bytes, which are `numbers` numbers.
__device__ inline bool aligned(const Samples& of, int64_t d, int numbers) {
  return of.feature_stride == 1 && d % numbers == 0 && of.row_stride % numbers == 0 &&
         reinterpret_cast<std::uintptr_t>(of.data) % 16 == 0;
}

// Calls `use(at)`, where `at(row, feature)` reads an element. What they are is asked for once:
// between branches no loads are under way together.
template <typename T>
struct ElementsOf {
  const T* data;
  int64_t along, across;
  __device__ T operator()(int row, int f) const { return data[row * along + f * across]; }
};
struct HalvesOf {
  const std::uint16_t* data;
  int64_t along, across;
  bool bfloat16;
  __device__ float operator()(int row, int f) const {
    const unsigned bits = data[row * along + f * across];
    return bfloat16 ? of_bfloat16(bits) : of_float16(bits);
  }
};
__device__ inline HalvesOf halves_of(const Samples& of) {
  return {static_cast<const std::uint16_t*>(of.data), of.row_stride, of.feature_stride,
          of.dtype == Dtype::bfloat16};
}
template <typename T>
__device__ ElementsOf<T> elements_of(const Samples& of) {
  return {static_cast<const T*>(of.data), of.row_stride, of.feature_stride};
}
template <typename T, typename Use>
__device__ void with_elements(const Samples& of, const Use& use) {
  if constexpr (sizeof(T) == 4) {
    if (of.dtype != Dtype::float32) return use(halves_of(of));
  }
  use(elements_of<T>(of));
}

// How a block shares out some rows of kWidth elements each: a thread has one feature of them, and
// every kStep-th row.
template <int kWidth>
struct Places {
  static constexpr int power_of_two() {
    int width = 1;
    while (width < kWidth) width *= 2;
    return width;
  }
  static constexpr int kPadded = power_of_two(), kStep = kThreads / kPadded;
  static_assert(kPadded <= kThreads);
  // Opaque: places would be kept in registers from tile to tile.
  int thread = opaque(static_cast<int>(threadIdx.x));
  int row = thread / kPadded, f = thread % kPadded;
};

// Calls `use(row, feature, value)` for elements of `here` rows, and of features below d <= kWidth,
// with values from `at`. Some loads are under way together.
template <int kWidth, typename At, typename Use>
__device__ void each_element(int here, int d, const At& at, const Use& use) {
  constexpr int kTogether = 4, kStep = Places<kWidth>::kStep;
  const Places<kWidth> own;
  if (own.f >= d) return;
  using T = decltype(at(0, 0));
#pragma unroll 1
  for (int first = own.row; first < here; first += kTogether * kStep) {
    T held[kTogether];
#pragma unroll
    for (int q = 0; q < kTogether; ++q) {
      const int row = first + q * kStep;
      held[q] = at(row < here ? row : here - 1, own.f);
    }
#pragma unroll
    for (int q = 0; q < kTogether; ++q) {
      const int row = first + q * kStep;
      if (row < here) use(row, own.f, held[q]);
    }
  }
}

// Begin to copy `here` rows of d <= kWidth numbers each to shared memory, where
// they will lie one behind the other. Returns the place of the first number, which is not 0 where
// the rows are one range of memory that does not begin at a multiple of sixteen bytes.
template <int kWidth, typename T>
__device__ int fetch_dense(const Samples& from, int d, int here, T* to) {
  constexpr int kPack = 16 / static_cast<int>(sizeof(T)), kBytes = static_cast<int>(sizeof(T));
  int head = 0;
  if (is_of<T>(from)) {
    const T* data = static_cast<const T*>(from.data);
    head = static_cast<int>(reinterpret_cast<std::uintptr_t>(data) % 16) / kBytes;
    const bool one_range = from.feature_stride == 1 && from.row_stride == d;
    // Where rows are whole packs they are read as such, which have to lie at such places.
    if (one_range && (head == 0 || d % kPack != 0)) {
      const int bytes = (head + here * d) * kBytes;
      const T* begin = data - head;
#pragma unroll 1
      for (int at = static_cast<int>(threadIdx.x); 16 * at < bytes; at += kThreads) {
        const int left = bytes - 16 * at;
        copy_async<16>(to + at * kPack, begin + at * kPack, left < 16 ? left : 16);
      }
    } else {
      head = 0;
      const Places<kWidth> own;
      if (own.f < d) {
        const T* source = data + own.row * from.row_stride + own.f * from.feature_stride;
        constexpr int kTogether = 4;
#pragma unroll 1
        for (int first = own.row; first < here; first += kTogether * own.kStep) {
#pragma unroll
          for (int q = 0; q < kTogether; ++q) {
            const int row = first + q * own.kStep;
            if (row < here) copy_async<kBytes>(to + row * d + own.f, source, kBytes);
            source += own.kStep * from.row_stride;
          }
        }
      }
    }
  } else if constexpr (sizeof(T) == 4) {
    each_element<kWidth>(here, d, halves_of(from),
                         [&](int row, int f, T value) { to[row * d + f] = value; });
  }
  copy_async_commit();
  return head;
}

}  // namespace cgm_fast::cuda
