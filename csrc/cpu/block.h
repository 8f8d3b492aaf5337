// A block of rows against a tile of columns, as the kernels see it.
#pragma once

#include <stdint.h>

namespace cgm_fast {

constexpr int kBlockRows = 16;     // rows of a block
constexpr int kTileAlign = 16;     // columns are a multiple of this
constexpr int kFeatureLanes = 32;  // from this d on, lanes run over features in sums over columns
constexpr int64_t kFeaturesAtOnce = 512;  // features whose products are added up in one sum

template <typename T>
struct Block {
  int64_t d;         // features
  int64_t columns;   // visited; those that only pad weigh 0
  int64_t stride;    // from one feature of a panel to the next
  int64_t features;  // length of a row of the row-major arrays: at least d + 1
  int rows;          // up to kBlockRows, a multiple of 4; padding weighs 0

  const T* rows_z;            // [rows, features]: z_i
  const T* row_bias;          // [rows]: -|z_i|^2 / 2; not read for plain differences
  const T* rows_weighted;     // [rows, features]: a_i z_i, then a_i
  const T* panel;             // [d, stride]: z_j, transposed
  const T* panel_weighted;    // [d, stride]: a_j z_j, transposed; read where d < kFeatureLanes
  const T* columns_weighted;  // [columns, features]: a_j z_j, row by row; read from there on
  const T* column_bias;       // [columns]: -|z_j|^2 / 2

  T* w;              // [rows, columns], scratch: what a pair weighs
  T* row_values;     // [rows, d, kTileAlign] lanes, or [rows, features]: sum_j w_ij a_j z_j
  T* column_values;  // [d + 1, stride]: sum_i w_ij a_i (z_i, 1)
};

}  // namespace cgm_fast
