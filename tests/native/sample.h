// Samples of every dtype and layout that the kernels read.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>

#include "samples.h"

namespace checks {

using namespace cgm_fast;

inline uint16_t half_bits(double value) {  // rounded towards zero
  const uint16_t sign = value < 0 ? 0x8000 : 0;
  value = std::fabs(value);
  if (value < 0x1p-14) return uint16_t(sign | int(value * 0x1p24));
  const int exponent = std::ilogb(value);
  return uint16_t(sign | (exponent + 15) << 10 | (int(std::ldexp(value, 10 - exponent)) & 0x3ff));
}

inline double half_value(uint16_t bits) {
  const int exponent = bits >> 10 & 31, mantissa = bits & 0x3ff;
  const double value =
      std::ldexp(exponent ? 1024 + mantissa : mantissa, std::max(exponent, 1) - 25);
  return bits & 0x8000 ? -value : value;
}

enum class Strides { contiguous, padded, spread, transposed, same_items, same_rows };

class Sample {
 public:
  template <typename Value>  // value(item, row, feature)
  Sample(int64_t batch, int64_t rows, int64_t d, Dtype dtype, Strides strides, const Value& value)
      : rows_(rows), d_(d) {
    bytes_ = dtype == Dtype::float64 ? 8 : dtype == Dtype::float32 ? 4 : 2;
    view.dtype = dtype;
    view.feature_stride = strides == Strides::spread ? 2 : 1;
    view.row_stride = d * view.feature_stride + (strides == Strides::padded ? 3 : 0);
    if (strides == Strides::transposed) {
      view.feature_stride = rows;
      view.row_stride = 1;
    }
    view.item_stride = strides == Strides::transposed ? rows * d : rows * view.row_stride;
    if (strides == Strides::same_items) view.item_stride = 0;
    if (strides == Strides::same_rows) view.row_stride = view.item_stride = 0;
    const int64_t last = at(batch - 1, rows - 1, d - 1);
    block_.reset(new unsigned char[(last + 2) * bytes_]);
    std::memset(block_.get(), 0xff, (last + 2) * bytes_);  // NaN in every dtype
    view.data = block_.get() + bytes_;
    for (int64_t b = 0; b < batch; ++b)
      for (int64_t i = 0; i < rows; ++i)
        for (int64_t f = 0; f < d; ++f) put(at(b, i, f), value(b, i, f));
  }

  double operator()(int64_t b, int64_t i, int64_t f) const {
    const unsigned char* from = block_.get() + (at(b, i, f) + 1) * bytes_;
    if (view.dtype == Dtype::float64) return get<double>(from);
    if (view.dtype == Dtype::float32) return get<float>(from);
    if (view.dtype == Dtype::float16) return half_value(get<uint16_t>(from));
    const uint32_t bits = uint32_t(get<uint16_t>(from)) << 16;
    return get<float>(&bits);
  }

  Samples view;

 private:
  template <typename U>
  static U get(const void* from) {
    U value;
    std::memcpy(&value, from, sizeof(U));
    return value;
  }
  int64_t at(int64_t b, int64_t i, int64_t f) const {
    return b * view.item_stride + i * view.row_stride + f * view.feature_stride;
  }
  void put(int64_t where, double value) {
    const float single = float(value);
    uint16_t half = half_bits(value);
    if (view.dtype == Dtype::bfloat16) half = uint16_t(get<uint32_t>(&single) >> 16);
    const void* from = view.dtype == Dtype::float64   ? static_cast<const void*>(&value)
                       : view.dtype == Dtype::float32 ? static_cast<const void*>(&single)
                                                      : static_cast<const void*>(&half);
    std::memcpy(block_.get() + (where + 1) * bytes_, from, bytes_);
  }

  int64_t rows_, d_;
  size_t bytes_;
  std::unique_ptr<unsigned char[]> block_;
};

}  // namespace checks
