// A kernel matrix times values, as a bilinear form: what every implementation computes, as plain
// structs. No torch, no Python. Their fields are those of cgm_fast/ops/kernel_product/problem.py.
//
//   Q = sum_ij k(x_i, y_j) <u_i, v_j>,   k = sum_s kernel_weights[s] phi(|x_i - y_j|^2 / 2h_s).
//
// Derivatives are those of the rows' side; the columns' are those of the same form with the sides
// exchanged.
#pragma once

#include <cstdint>

#include "kernels.h"
#include "samples.h"

namespace cgm_fast {

template <typename T>
struct KernelProductProblem {
  int64_t batch, rows, columns, d, values, scales;
  Samples x, y;             // [batch, rows, d], [batch, columns, d]
  const T* u;               // [batch, rows, values], or null where only the product is wanted
  const T* v;               // [batch, columns, values]
  const T* variance;        // [batch, scales], h = sigma^2 in squared units of the data, or null
  const double* variances;  // [scales], the same for every batch item where `variance` is null
  const double* kernel_weights;  // [scales]
  Kernel kernel;                 // phi
};

// Null where it is not wanted.
template <typename T>
struct KernelProductValue {
  T* product;   // [batch, rows, values]: sum_j k_ij v_j
  T* x;         // [batch, rows, d]
  T* variance;  // [batch, scales]
};

template <typename T>
void kernel_product_fwd_cpu(const KernelProductProblem<T>& in, const KernelProductValue<T>& out,
                            int threads);

}  // namespace cgm_fast
