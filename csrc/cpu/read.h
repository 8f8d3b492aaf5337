// Reading the caller's samples, of any dtype and with any strides, without a copy of them.
#pragma once

#include <cstdint>
#include <cstring>
#include <vector>

#include "samples.h"

namespace cgm_fast {

inline float half_to_float(uint16_t bits) {
  // Shift exponent and mantissa into place; subnormals and infinities by arithmetic on floats.
  const uint32_t sign = uint32_t(bits & 0x8000) << 16, rest = bits & 0x7fff;
  uint32_t out;
  if (rest >= 0x7c00) {
    out = 0x7f800000 | (rest & 0x3ff) << 13;
  } else if (rest >= 0x400) {
    out = (rest << 13) + 0x38000000;
  } else {
    const float value = float(rest) * 5.9604644775390625e-8f;  // 2^-24
    std::memcpy(&out, &value, 4);
  }
  out |= sign;
  float value;
  std::memcpy(&value, &out, 4);
  return value;
}

inline float bfloat16_to_float(uint16_t bits) {
  const uint32_t out = uint32_t(bits) << 16;
  float value;
  std::memcpy(&value, &out, 4);
  return value;
}

// Element (row, feature) of one batch item.
template <typename T>
T read(const Samples& samples, int64_t item, int64_t row, int64_t feature) {
  const int64_t at =
      item * samples.item_stride + row * samples.row_stride + feature * samples.feature_stride;
  switch (samples.dtype) {
    case Dtype::float16:
      return T(half_to_float(static_cast<const uint16_t*>(samples.data)[at]));
    case Dtype::bfloat16:
      return T(bfloat16_to_float(static_cast<const uint16_t*>(samples.data)[at]));
    case Dtype::float32:
      return T(static_cast<const float*>(samples.data)[at]);
    default:
      return T(static_cast<const double*>(samples.data)[at]);
  }
}

// Row `row` of one batch item, to `out` [d].
template <typename T>
void read_row(const Samples& samples, int64_t item, int64_t row, int64_t d, T* out) {
  if (samples.dtype == (sizeof(T) == 4 ? Dtype::float32 : Dtype::float64)) {
    const T* from =
        static_cast<const T*>(samples.data) + item * samples.item_stride + row * samples.row_stride;
    for (int64_t f = 0; f < d; ++f) out[f] = from[f * samples.feature_stride];
  } else {
    for (int64_t f = 0; f < d; ++f) out[f] = read<T>(samples, item, row, f);
  }
}

// Where such a row lies, if that is in one piece and in T; else a copy of it.
template <typename T>
const T* row_or_copy(const Samples& samples, int64_t item, int64_t row, int64_t d,
                     std::vector<T>& copy) {
  if (samples.feature_stride == 1 &&
      samples.dtype == (sizeof(T) == 4 ? Dtype::float32 : Dtype::float64))
    return static_cast<const T*>(samples.data) + item * samples.item_stride +
           row * samples.row_stride;
  copy.resize(d);
  read_row(samples, item, row, d, copy.data());
  return copy.data();
}

}  // namespace cgm_fast
