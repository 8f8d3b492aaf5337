// Samples as the caller has them: any floating dtype, any strides.
#pragma once

#include <cstdint>

namespace cgm_fast {

enum class Dtype { float16, bfloat16, float32, float64 };

// [batch, rows, d], strides in elements; without a batch, `item_stride` is not read.
struct Samples {
  const void* data;
  Dtype dtype;
  int64_t item_stride, row_stride, feature_stride;
};

}  // namespace cgm_fast
