// What a pair of rows adds to the Hessian-vector product of MMD²; see mmd_hvp_kernel.h. Included by
// kernels that are compiled once per instruction set.
#pragma once

#include "cpu/radial.h"

namespace cgm_fast {
namespace {

// Bandwidths and their derivatives, and where the derivatives in them are added up.
template <typename T>
struct HvpScales {
  int64_t scales;
  const T* variance;       // [scales], h
  const T* variance_dot;   // [scales], its derivative
  const T* kernel_weight;  // [scales]
  T* sums;                 // [scales, kTileAlign], or null: not wanted
};

// c = relation w_i w_j and its derivative along the tangents.
template <typename T>
struct HvpWeights {
  Vec<T> c, c_dot;
};

// k - k(0) and its derivative; p = c dk/du, and p' = c' dk/du + c (dk/du)'.
template <typename T>
struct HvpPair {
  Vec<T> less, less_dot, p, p_dot;
};

template <typename Family, typename T>
CGM_INLINE HvpPair<T> hvp_pair(const HvpScales<T>& of, const HvpWeights<T>& by, Vec<T> u,
                               Vec<T> u_dot) {
  Vec<T> less = {}, by_u = {}, less_dot = {}, by_u_dot = {};
  // 0 * inf would turn a vanished kernel into NaN.
  const Vec<T> largest = splat(sizeof(T) == 4 ? T(1e30) : T(1e300));
  for (int64_t s = 0; s < of.scales; ++s) {
    const T h = of.variance[s], inverse = T(0.5) / h, weight = of.kernel_weight[s];
    const T relative = of.variance_dot[s] / h;
    const Vec<T> t = -at_least(-(u * inverse), -largest);
    const Vec<T> t_dot = u_dot * inverse - t * relative;
    const Radial<T> k = Family::template at<T>(t);
    const Vec<T> first = -k.slope, second = k.second;
    less += weight * k.less;
    by_u += weight * inverse * first;
    less_dot += weight * first * t_dot;
    by_u_dot += weight * inverse * (second * t_dot - first * relative);
    if (!of.sums) continue;
    const Vec<T> by_h = -weight / h * first * t;
    const Vec<T> by_h_dot = -weight / h * ((second * t + first) * t_dot - first * t * relative);
    T* sums = of.sums + s * kTileAlign;
    store(sums, load(sums) + (by.c_dot * by_h + by.c * by_h_dot));
  }
  return {less, less_dot, by.c * by_u, by.c_dot * by_u + by.c * by_u_dot};
}

}  // namespace
}  // namespace cgm_fast
