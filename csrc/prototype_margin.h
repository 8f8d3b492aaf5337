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

// What some of the prototypes are to a sample: the nearest of them, or the label's; and of all
// those inside the margin, that one too, how many they are and what they add to the loss.
struct PrototypeShare {
  double hinge, distance;
  std::int32_t index, inside;
};

// What a GPU needs besides; all pointers of these structs are the device's. Tangents may be null.
// Blocks have 32 samples, or prototypes, and a split of what these are met with: splits of few
// blocks make them enough for the device. The last split of a block to finish adds them up.
template <typename T>
struct PrototypeMarginDevice {
  int splits;              // of the prototypes, to assign samples
  int row_splits;          // of the prototypes, for gradients of samples
  int sample_splits;       // of the samples, for gradients of prototypes
  PrototypeShare* shares;  // [splits, rows], uninitialised, unless there is one split
  double* partials;        // [blocks of samples], uninitialised
  T* partial_g;            // [blocks of samples, k, d], uninitialised; or null
  T* sums;                 // uninitialised: [row_splits, rows, d] unless that is 1 split, then
                           // [sample_splits, k, d] likewise
  std::int32_t* own;       // [rows], uninitialised; or null: one launch, k <= 32
  unsigned* counters;      // [blocks of samples + those of prototypes], zeros, and left as zeros
  void* stream;            // cudaStream_t
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

// One launch.
template <typename T>
void prototype_margin_hvp_cuda(const PrototypeMarginInput<T>& in,
                               const PrototypeMarginTangent<T>& tangent,
                               const PrototypeMarginDevice<T>& device);

}  // namespace cgm_fast
