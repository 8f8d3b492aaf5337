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

// The same where samples are known to be of type T, and a row's features to lie side by side.
template <typename T>
__device__ T load_plain(const Samples& of, int64_t item, int64_t row, int feature) {
  return static_cast<const T*>(of.data)[item * of.item_stride + row * of.row_stride + feature];
}

}  // namespace cgm_fast::cuda
