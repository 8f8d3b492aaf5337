// Nearest-prototype assignment and the margin loss of CGM (eq. 8), as plain structs.
//
//   d_ik = |r_i - g_k|^2,  k_i = label_i or argmin_k d_ik (ties: lowest k)
//   L = scale * sum_i [ d_{i,k_i} + negative_scale * sum_{k != k_i} max(0, margin - d_ik) ]
#pragma once

#include <cstdint>

#include "samples.h"

namespace cgm_fast {

template <typename T>
struct PrototypeMarginInput {
  int64_t rows, k, d;
  Samples r;                     // [rows, d] encoded samples
  Samples g;                     // [k, d] prototypes
  const int64_t* labels;         // [rows] in [0, k), or null: nearest prototype
  double margin;                 // on the squared distance
  double negative_scale, scale;  // 1 and 1/rows for the paper's loss
};

template <typename T>
struct PrototypeMarginGradient {
  T* loss;              // [1]
  int64_t* assignment;  // [rows], k_i
  T* grad_r;            // [rows, d], or null
  T* grad_g;            // [k, d], or null
};

// The loss is piecewise quadratic, so its Hessian-vector product with (t_r, t_g) is the gradient's
// formula with the tangents in place of r and g, while the active pairs still come from r and g.
template <typename T>
struct PrototypeMarginTangent {
  const int64_t* assignment;  // [rows]
  const T* r;                 // [rows, d], or null for zero
  const T* g;                 // [k, d], or null for zero
  T* out_r;                   // [rows, d]
  T* out_g;                   // [k, d]
};

// What a GPU needs besides; all pointers of these structs are the device's. Tangents may be null.
template <typename T>
struct PrototypeMarginDevice {
  unsigned blocks;    // which take blocks of 32 rows in turn
  double* partials;   // [blocks], uninitialised
  T* partial_g;       // [blocks, k, d], uninitialised; or null: grad_g takes a second launch
  std::int32_t* own;  // [rows], uninitialised; not null where partial_g is, but grad_g is not
  unsigned* counter;  // [1], zero, and zero again when the call is done
  void* stream;       // cudaStream_t
};

template <typename T>
void prototype_margin_fwd_cpu(const PrototypeMarginInput<T>& in,
                              const PrototypeMarginGradient<T>& out, int threads);

template <typename T>
void prototype_margin_hvp_cpu(const PrototypeMarginInput<T>& in,
                              const PrototypeMarginTangent<T>& tangent, int threads);

// One launch, or two.
template <typename T>
void prototype_margin_fwd_cuda(const PrototypeMarginInput<T>& in,
                               const PrototypeMarginGradient<T>& out,
                               const PrototypeMarginDevice<T>& device);

// Two launches.
template <typename T>
void prototype_margin_hvp_cuda(const PrototypeMarginInput<T>& in,
                               const PrototypeMarginTangent<T>& tangent, void* stream);

}  // namespace cgm_fast
