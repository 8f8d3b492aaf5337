// A kernel matrix times values: a block of rows against a tile of columns. The driver is
// kernel_product.cpp; the kernel is compiled once per instruction set (kernel_product_kernel.cpp).
//
// By products, coordinates are about a common centre, and scaled such that the exponent of the
// first bandwidth is -t, t = |x_i - y_j|^2 / 2h_0, as bias_i + bias_j + x_i . y_j. By plain
// differences they are as they came, but for a power of two, and nothing is rounded before it is
// subtracted; the exponent is -|x_i - y_j|^2.
#pragma once

#include "cpu/block.h"
#include "kernels.h"

namespace cgm_fast {

template <typename T>
struct KernelProductVisit {
  Kernel kernel;
  // Of x and y. `w` gets what a pair's value is multiplied with, k; `row_values`
  // sum_j s_ij slope_ij y_j, or by differences that of x_i - y_j.
  Block<T> coordinates;
  // Of u and v; `d` is how many values a column has. `w` gets s_ij slope_ij, s_ij = <u_i, v_j>;
  // `row_values` sum_j k_ij v_j. `row_bias` and `column_bias` are zeros.
  Block<T> values;
  bool differences;  // distances by plain differences
  bool with_product, with_x, with_variance;

  // Bandwidths: of exponents, of k, and of its slope -2 h_0 dk/du.
  int64_t scales;
  const T* ratio;         // [scales], what makes an exponent -|x_i - y_j|^2 / 2h_s
  const T* value_weight;  // [scales], kernel weight
  const T* slope_weight;  // [scales], kernel weight times h_0 / h_s

  T* slope_sums;     // [rows, kTileAlign]: lanes of sum_j s_ij slope_ij
  T* variance_sums;  // [scales, kTileAlign]: lanes of sum_ij s_ij t slope_s
};

template <typename T>
struct KernelProductKernels {
  void (*visit)(const KernelProductVisit<T>&);
  // As in MmdKernels.
  void (*flush)(T* from, int64_t count, double factor, double* out);
  void (*flush_lanes)(T* lanes, int64_t count, double factor, double* out);
};

// The kernels in the best instruction set that this processor has.
template <typename T>
const KernelProductKernels<T>& kernel_product_kernels();

}  // namespace cgm_fast
