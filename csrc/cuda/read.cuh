// Samples read in place: any dtype, any strides.
#pragma once

#include "cuda/device.cuh"
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

}  // namespace cgm_fast::cuda
