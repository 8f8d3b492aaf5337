// The CGM latent objective of one batch, as plain structs: assignment and margin loss of encoded
// samples r and prototypes g (prototype_margin.h), MMD² of noisy latents and their prototypes'
// (mmd.h, biased), and the gradients of the weighted sum.
//
//   z_i = r_i + sigma e_i,  z'_i = g_{k_i} + prior_sigma e'_i
//   L = mmd_weight MMD²(z, z') + margin_weight L_D(r, g)
#pragma once

#include <cstdint>

#include "prototype_margin.h"
#include "samples.h"

namespace cgm_fast {

template <typename T>
struct CgmStepInput {
  PrototypeMarginInput<T> margin;  // r, g, labels; scale 1/rows
  Samples noise;                   // [2, rows, d], standard normal e and e'
  double sigma, prior_sigma;
  double mmd_weight, margin_weight;
  int64_t scales;
  const double* variances;       // [scales], h = sigma^2 of the kernel, squared units of z
  const double* kernel_weights;  // [scales]
  bool detach_prior;             // no gradient of the MMD in g
};

template <typename T>
struct CgmStepGradient {
  T* loss;              // [1]
  T* terms;             // [2], MMD² and L_D, without their weights
  int64_t* assignment;  // [rows], k_i
  T* z;                 // [rows, d]
  T* grad_r;            // [rows, d], or null
  T* grad_g;            // [k, d], or null
};

template <typename T>
void cgm_step_fwd_cpu(const CgmStepInput<T>& in, const CgmStepGradient<T>& out, int threads);

}  // namespace cgm_fast
