// The CGM latent objective of one batch, as plain structs: assignment and margin loss of encoded
// samples r and prototypes g (prototype_margin.h), MMD² of noisy latents and their prototypes'
// (mmd.h, biased), and the gradients of the weighted sum.
//
//   z_i = r_i + sigma e_i,  z'_i = g_{k_i} + prior_sigma e'_i
//   L = mmd_weight MMD²(z, z') + margin_weight L_D(r, g)
#pragma once

#include <cstdint>

#include "kernels.h"
#include "prototype_margin.h"
#include "samples.h"

namespace cgm_fast {

template <typename T>
struct CgmLossInput {
  PrototypeMarginInput<T> margin;  // r, g, labels; scale 1/rows
  Samples noise;                   // [2, rows, d], standard normal e and e'
  double sigma, prior_sigma;
  double mmd_weight, margin_weight;
  int64_t scales;
  const double* variances;       // [scales], h = sigma^2 of the kernel, squared units of z
  const double* kernel_weights;  // [scales]
  Kernel kernel;
  bool detach_prior;  // no gradient of the MMD in g
};

template <typename T>
struct CgmLossGradient {
  T* loss;              // [1]
  T* terms;             // [2], MMD² and L_D, without their weights
  int64_t* assignment;  // [rows], k_i
  T* z;                 // [rows, d]
  T* grad_r;            // [rows, d], or null
  T* grad_g;            // [k, d], or null
};

constexpr int kCgmLossRows = 8, kCgmLossParts = 5;

// What a GPU needs besides. There all pointers of the structs above are the device's, but for the
// lists `variances` and `kernel_weights`, which are not read.
template <typename T>
struct CgmLossDevice {
  const T* variances;       // [scales]
  const T* kernel_weights;  // [scales]
  int rows;                 // of a block, of z's or of z''s: 4 or kCgmLossRows
  double* partials;         // [blocks, kCgmLossParts], uninitialised; see cgm_loss_blocks
  T* prior;                 // [B, d], uninitialised: gradients of the prototypes' samples
  unsigned* counter;        // [1], zero, and zero again when the call is done
  void* stream;             // cudaStream_t
};

// Blocks of a launch: one for each `rows` of z and of z', and one for each prototype.
inline int64_t cgm_loss_blocks(int64_t batch, int64_t k, int rows, bool with_g) {
  return 2 * ((batch + rows - 1) / rows) + (with_g ? k : 0);
}

// One launch, for the Gaussian. At most 1024 rows, 1024 prototypes and 64 features, or 16 in
// float64; r, g and noise are of type T and contiguous.
template <typename T>
void cgm_loss_fwd_cuda(const CgmLossInput<T>& in, const CgmLossGradient<T>& out,
                       const CgmLossDevice<T>& device);

template <typename T>
void cgm_loss_fwd_cpu(const CgmLossInput<T>& in, const CgmLossGradient<T>& out, int threads);

}  // namespace cgm_fast
