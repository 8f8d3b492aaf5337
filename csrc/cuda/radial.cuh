// Radial kernels, each one function of t = |a - b|² / 2h: what stands in ops/mmd/kernels.py.
#pragma once

#include "cuda/math.cuh"
#include "kernels.h"

namespace cgm_fast::cuda {

template <typename T>
struct Radial {
  T less, whole;    // phi(t) - phi(0), and phi(t)
  T first, second;  // phi' and phi''; at t = 0, where they may be infinite, 0
};

// e^-s - 1 and e^-s, for s >= 0.
template <typename T>
__device__ Exp2<T> exp_less_one(T s) {
  return exp2_less_one(s * static_cast<T>(-1.4426950408889634074));
}

// a / s, and 0 where s is: what multiplies it vanishes there.
template <typename T>
__device__ T over(T a, T s) {
  return s == 0 ? T(0) : a / s;
}

// Where a series has less error than a difference of terms that cancel.
template <typename T>
constexpr T kSmall = sizeof(T) == 4 ? T(0.3) : T(0.01);

template <typename T>
__device__ Radial<T> gaussian(T t) {
  const Exp2<T> k = exp_less_one(t);
  return {k.less, k.whole, -k.whole, k.whole};
}

template <typename T>
__device__ Radial<T> laplacian(T t) {
  const T s = sqrt(2 * t);
  const Exp2<T> k = exp_less_one(s);
  return {k.less, k.whole, over(-k.whole, s), T(0)};  // phi'' is not to be asked for
}

template <typename T>
__device__ Radial<T> matern32(T t) {
  const T s = sqrt(6 * t);
  const Exp2<T> decay = exp_less_one(s);
  T less = fma(s, decay.whole, decay.less);
  if (s < kSmall<T>) {
    less = T(0.125) - s * (T(1. / 30) - s * (T(1. / 144) - s * T(1. / 840)));
    less = s * s * (T(-0.5) + s * (T(1. / 3) - s * less));
  }
  return {less, (1 + s) * decay.whole, -3 * decay.whole, over(9 * decay.whole, s)};
}

template <typename T>
__device__ Radial<T> matern52(T t) {
  const T s = sqrt(10 * t), square = 10 * t, whole = 1 + s + square * T(1. / 3);
  const Exp2<T> decay = exp_less_one(s);
  T less = fma(s + square * T(1. / 3), decay.whole, decay.less);
  if (s < kSmall<T>) {
    less = T(1. / 45) - s * (T(1. / 144) - s * (T(1. / 630) - s * T(1. / 3456)));
    less = square * (T(-1. / 6) + square * (T(1. / 24) - s * less));
  }
  return {less, whole * decay.whole, T(-5. / 3) * (1 + s) * decay.whole, T(25. / 3) * decay.whole};
}

template <typename T>
__device__ Radial<T> rational_quadratic(T t) {
  const T whole = 1 / (1 + t), square = whole * whole;
  return {-t * whole, whole, -square, 2 * square * whole};
}

template <typename T>
__device__ Radial<T> imq(T t) {
  const T inverse = 1 / (1 + 2 * t), whole = sqrt(inverse), slope = whole * inverse;
  return {-2 * t * inverse / (1 + whole), whole, -slope, 3 * slope * inverse};
}

template <typename T>
__device__ Radial<T> energy(T t) {
  const T s = sqrt(2 * t);
  return {-s, -s, over(T(-1), s), T(0)};
}

// The kernel that is said, the same for a whole launch; kGaussian: known to be that one.
template <bool kGaussian, typename T>
__device__ Radial<T> radial(Kernel kernel, T t) {
  if constexpr (kGaussian) return gaussian(t);
  switch (kernel) {
    case Kernel::gaussian:
      break;
    case Kernel::laplacian:
      return laplacian(t);
    case Kernel::matern32:
      return matern32(t);
    case Kernel::matern52:
      return matern52(t);
    case Kernel::rational_quadratic:
      return rational_quadratic(t);
    case Kernel::imq:
      return imq(t);
    case Kernel::energy:
      return energy(t);
  }
  return gaussian(t);
}

// The same number, but finite, so that what has vanished is not made a NaN by a product; NaNs stay.
template <typename T>
__device__ T finite(T t) {
  const T most = sizeof(T) == 4 ? T(1e30) : T(1e300);
  return t > most ? most : t;
}

// t = u / 2h that stays finite.
template <typename T>
__device__ T scaled(T u, T variance) {
  return finite(u * (T(0.5) / variance));
}

}  // namespace cgm_fast::cuda
