// Functions of one number that kernels share.
#pragma once

#include <cmath>

#include "cuda/device.cuh"

namespace cgm_fast::cuda {

template <typename T>
struct Exp2 {
  T less, whole;  // 2^e - 1 and 2^e
};

// For e <= 0 and not below -100 each is good to a few units: the hardware's exp2 would leave 2^e -
// 1 nothing where e is small. With e = n + f, |f| <= 1/2, a polynomial gives 2^f - 1 = f q(f); 2^n
// comes from its bits. A NaN stays one. Coefficients: minimax, as in ops/triton/math.py.
//
// What is subtracted may be 0 in place of 1, and then both are 2^e.
__device__ inline Exp2<float> exp2_less_unclamped(float e, float one) {
  const float shifted = e + 12583039.f;  // 1.5 * 2^23 + 127: rounds, and leaves n + 127 below
  const float f = e - (shifted - 12583039.f);
  float q = fmaf(f, 1.5469735205486631811e-4f, 1.3390866847232127857e-3f);
  q = fmaf(f, q, 9.6180307705219569407e-3f);
  q = fmaf(f, q, 5.5503571055175024990e-2f);
  q = fmaf(f, q, 2.4022651084215122803e-1f);
  q = fmaf(f, q, 6.9314718802895101201e-1f) * f;
  const float power = from_bits(static_cast<int>(static_cast<unsigned>(bits_of(shifted)) << 23));
  return {fmaf(power, q, power - one), fmaf(power, q, power)};
}

__device__ inline Exp2<double> exp2_less_unclamped(double e, double one) {
  const double shifted = e + 6755399441056767.;  // 1.5 * 2^52 + 1023
  const double f = e - (shifted - 6755399441056767.);
  double q = fma(f, 4.4566755710138822318e-10, 7.0725861813463670926e-9);
  q = fma(f, q, 1.0178051727399185754e-7);
  q = fma(f, q, 1.3215442586612870547e-6);
  q = fma(f, q, 1.5252733853282352968e-5);
  q = fma(f, q, 1.5403530441738513431e-4);
  q = fma(f, q, 1.3333558146396001579e-3);
  q = fma(f, q, 9.6181291076068868088e-3);
  q = fma(f, q, 5.5504108664821659755e-2);
  q = fma(f, q, 2.4022650695910098223e-1);
  q = fma(f, q, 6.9314718055994530909e-1) * f;
  const double power =
      from_bits(static_cast<long long>(static_cast<unsigned long long>(bits_of(shifted)) << 52));
  return {fma(power, q, power - one), fma(power, q, power)};
}

// The same for every e <= 0; 2^-127, or 2^-1023, becomes an exact zero.
__device__ inline Exp2<float> exp2_less(float e, float one) {
  return exp2_less_unclamped(max_or_nan(e, -127.f), one);
}
__device__ inline Exp2<double> exp2_less(double e, double one) {
  return exp2_less_unclamped(max_or_nan(e, -1023.), one);
}

// 2^e, and of it what is added up: 2^e - 1 of near pairs, e >= -1, and 2^e - far_less of others,
// where far_less is 0 or 1. For e <= 0, but for what rounding leaves above it.
//
// In float the hardware gives 2^e, of which 2^-22 may be wrong: the gradient does not mind, nor
// what is added up of far pairs. A near pair's 2^e - 1 is e q(e), with q a minimax polynomial for
// -1 <= e
// <= 0 that is off by 1e-8.
__device__ inline Exp2<float> exp2_near(float e, float far_less) {
  float q = fmaf(e, 1.1458056896256315e-4f, 1.2907800031698373e-3f);
  q = fmaf(e, q, 9.5962758051279032e-3f);
  q = fmaf(e, q, 5.5498953705454449e-2f);
  q = fmaf(e, q, 2.4022605608389769e-1f);
  q = fmaf(e, q, 6.9314717406231263e-1f);
  const float whole = exp2_approx(e);
  return {e >= -1.f ? e * q : whole - far_less, whole};
}
__device__ inline Exp2<double> exp2_near(double e, double far_less) {
  return exp2_less(e, e >= -1. ? 1. : far_less);
}

template <typename T>
__device__ Exp2<T> exp2_less_one(T e) {
  return exp2_less(e, T(1));
}

}  // namespace cgm_fast::cuda
