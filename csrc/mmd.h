// MMD² of two samples: what every implementation computes, as plain structs. No torch, no Python.
//
// Rows are stacked, z = [x; y], M = n + m. With signed row weights a = [w_x; -w_y] and r_ij = 1
// inside a sample and `cross` across the two,
//   L = sum_ij a_i a_j r_ij (k(z_i, z_j) - 1),   k = sum_s kernel_weights[s] phi(|z_i - z_j|^2 /
//   2h_s).
// Subtracting 1 changes L only by a constant that the caller knows, and keeps small values exact.
#pragma once

#include <cstdint>

#include "samples.h"

namespace cgm_fast {

template <typename T>
struct MmdInput {
  int64_t batch, n, m, d, scales;
  Samples x;                // [batch, n, d]
  Samples y;                // [batch, m, d]
  const T* x_weights;       // [batch, n], or null for ones; times x_scale
  const T* y_weights;       // [batch, m], or null for ones; times y_scale
  double x_scale, y_scale;  // 1/n and 1/m for the biased estimator
  const T* cross;           // [batch], or null for ones; times cross_scale
  double cross_scale;       // 1 for the biased estimator
  const T* variance;        // [batch, scales], h = sigma^2 in squared units of the data, or null
  const double* variances;  // [scales], the same for every batch item where `variance` is null
  const double* kernel_weights;  // [scales]
};

template <typename T>
struct MmdGradient {
  int64_t row_begin, row_end;  // rows of z whose gradient is wanted; empty: none
  T* loss;                     // [batch]
  T* grad_z;                   // [batch, row_end - row_begin, d]
  T* grad_a;                   // [batch, M], or null: only where rows have weights; in a
  T* grad_p;                   // [batch, scales + 1], or null; the variances h, then cross
};

// A direction in the space of all inputs (null: zero) and the Hessian-vector product with it.
template <typename T>
struct MmdTangent {
  int64_t row_begin, row_end;  // rows of z whose product is wanted
  const T* z;                  // [batch, M, d], or null
  const T* a;                  // [batch, M], or null
  const T* p;                  // [batch, scales + 1], or null
  T* out_z;                    // [batch, row_end - row_begin, d]
  T* out_a;                    // [batch, M], or null
  T* out_p;                    // [batch, scales + 1], or null
};

// What a GPU needs besides. There all pointers of the structs above are the device's, `variance` is
// given, and `variances` and `kernel_weights` are not read.
template <typename T>
struct MmdDevice {
  const T* kernel_weights;  // [scales]
  bool weighted_kernel;     // whether a single bandwidth has a weight other than 1
  int64_t variance_item;    // from one batch item's variances to the next: scales, or 0
  int rows;                 // of a block: a power of two from 4 to 32; 32 for mmd_hvp_cuda; or 128
  int workers;       // 0; or, of 128 rows on tensor cores, the stream-K grid: blocks that share all
                     // tiles; no more than these
  bool tf32;         // whether these may multiply float32 samples as tf32 ones
  double* slots;     // [2 workers, 768 + 128 (d' / 2 + 2)], d' = 16, 32 or 64 >= d; or null
  double* partials;  // [batch, ceil(M / rows), scales + 8], uninitialised
  unsigned* counters;  // [batch + workers], zeros, and zeros again when the call is done
  void* stream;        // cudaStream_t
};

template <typename T>
void mmd_fwd_cpu(const MmdInput<T>& in, const MmdGradient<T>& out, int threads);

template <typename T>
void mmd_hvp_cpu(const MmdInput<T>& in, const MmdTangent<T>& tangent, int threads);

// What keeps the CUDA run-time from launching anything here, say an old driver; or null.
const char* cuda_problem();

// One launch.
template <typename T>
void mmd_fwd_cuda(const MmdInput<T>& in, const MmdGradient<T>& out, const MmdDevice<T>& device);

template <typename T>
void mmd_hvp_cuda(const MmdInput<T>& in, const MmdTangent<T>& tangent, const MmdDevice<T>& device);

}  // namespace cgm_fast
