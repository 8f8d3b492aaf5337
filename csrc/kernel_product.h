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

// What a GPU needs besides. There all pointers of the structs above are the device's, `variance` is
// given, and `variances` and `kernel_weights` are not read. A unit of work is 64 rows with a share
// of the columns, of tiles of 64 (float) or 32 (double); sums are of chunks of as many outputs.
template <typename T>
struct KernelProductDevice {
  const T* kernel_weights;  // [scales]
  int64_t variance_item;    // from one batch item's variances to the next: scales, or 0
  int splits;               // shares of the columns: no more than there are tiles
  unsigned blocks;          // that do the units, batch * ceil(rows / 64) * splits, one by one
  // The next three are uninitialised.
  T* sums;             // [blocks, chunks of wanted outputs, 16, 256, 2]
  double* partials;    // where splits > 1: [batch, row blocks, splits, 64 (values + d)] of wanted
                       // outputs
  double* parts;       // [batch, row blocks, splits, scales], where `variance` is wanted
  unsigned* counters;  // [batch], and [batch, row blocks] where splits > 1: zeros, and zeros again
                       // when the call is done
  void* stream;        // cudaStream_t
};

template <typename T>
void kernel_product_fwd_cpu(const KernelProductProblem<T>& in, const KernelProductValue<T>& out,
                            int threads);

// One launch.
template <typename T>
void kernel_product_fwd_cuda(const KernelProductProblem<T>& in, const KernelProductValue<T>& out,
                             const KernelProductDevice<T>& device);

}  // namespace cgm_fast
