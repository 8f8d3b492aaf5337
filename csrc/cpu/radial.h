// Radial kernels: each is one function of t = |a - b|^2 / 2h, here of vectors. The same as in
// cgm_fast/ops/mmd/kernels.py, where the formulas are. Included by kernels that are compiled once
// per instruction set, like simd.h.
#pragma once

#include "cpu/simd.h"
#include "kernels.h"

namespace cgm_fast {
namespace {

// phi(t) - phi(0), phi(t), and -phi'(t); phi''(t) is second. Where t is 0 an infinite derivative
// counts as 0: the factors a - b beside it are.
template <typename T>
struct Radial {
  Vec<T> less, whole, slope, second;
};

// e^-s for s >= 0, and less one.
template <typename T>
CGM_INLINE void decay(Vec<T> s, Vec<T>& whole, Vec<T>& less) {
  constexpr T kLog2e = T(1.4426950408889634074);
  Vec<T> power, rest;
  split_exp2<T>(s * -kLog2e, power, rest);
  less = rest + (power - T(1));
  whole = rest + power;
}

// Where a series has less error than a difference of terms that cancel. Few pairs are so near:
// where no lane is, the series is skipped.
template <typename T>
constexpr T kSmall = sizeof(T) == 4 ? T(0.3) : T(0.01);

// exp(-t)
struct GaussianOfT {
  static constexpr Kernel kKernel = Kernel::gaussian;
  template <typename T>
  CGM_INLINE static Radial<T> at(Vec<T> t) {
    Radial<T> out;
    decay<T>(t, out.whole, out.less);
    out.slope = out.second = out.whole;
    return out;
  }
};

// exp(-r / sigma)
struct Laplacian {
  static constexpr Kernel kKernel = Kernel::laplacian;
  template <typename T>
  CGM_INLINE static Radial<T> at(Vec<T> t) {
    Radial<T> out;
    Vec<T> s, inverse;
    roots(t + t, s, inverse);
    decay<T>(s, out.whole, out.less);
    out.slope = out.whole * inverse;
    out.second = Vec<T>{};
    return out;
  }
};

// (1 + s) exp(-s), s = sqrt(3) r / sigma
struct Matern32 {
  static constexpr Kernel kKernel = Kernel::matern32;
  template <typename T>
  CGM_INLINE static Radial<T> at(Vec<T> t) {
    Radial<T> out;
    Vec<T> s, inverse, whole, less;
    roots(t * T(6), s, inverse);
    decay<T>(s, whole, less);
    out.less = less + s * whole;
    const auto small = less_than(s, splat(kSmall<T>));
    if (some(small)) {
      Vec<T> series = T(0.125) - s * (T(1.0 / 30) - s * (T(1.0 / 144) - s * T(1.0 / 840)));
      series = s * s * (T(-0.5) + s * (T(1.0 / 3) - s * series));
      out.less = select(small, series, out.less);
    }
    out.whole = whole + s * whole;
    out.slope = T(3) * whole;
    out.second = T(9) * whole * inverse;
    return out;
  }
};

// (1 + s + s^2 / 3) exp(-s), s = sqrt(5) r / sigma
struct Matern52 {
  static constexpr Kernel kKernel = Kernel::matern52;
  template <typename T>
  CGM_INLINE static Radial<T> at(Vec<T> t) {
    Radial<T> out;
    const Vec<T> square = t * T(10);
    Vec<T> s, inverse, whole, less;
    roots(square, s, inverse);
    decay<T>(s, whole, less);
    const Vec<T> more = s + square * T(1.0 / 3);
    out.less = less + more * whole;
    const auto small = less_than(s, splat(kSmall<T>));
    if (some(small)) {
      Vec<T> series = T(1.0 / 45) - s * (T(1.0 / 144) - s * (T(1.0 / 630) - s * T(1.0 / 3456)));
      series = square * (T(-1.0 / 6) + square * (T(1.0 / 24) - s * series));
      out.less = select(small, series, out.less);
    }
    out.whole = whole + more * whole;
    out.slope = T(5.0 / 3) * (whole + s * whole);
    out.second = T(25.0 / 3) * whole;
    return out;
  }
};

// 1 / (1 + t)
struct RationalQuadratic {
  static constexpr Kernel kKernel = Kernel::rational_quadratic;
  template <typename T>
  CGM_INLINE static Radial<T> at(Vec<T> t) {
    Radial<T> out;
    out.whole = T(1) / (T(1) + t);
    out.less = -t * out.whole;
    out.slope = out.whole * out.whole;
    out.second = T(2) * out.slope * out.whole;
    return out;
  }
};

// 1 / sqrt(1 + 2 t)
struct InverseMultiquadric {
  static constexpr Kernel kKernel = Kernel::imq;
  template <typename T>
  CGM_INLINE static Radial<T> at(Vec<T> t) {
    Radial<T> out;
    Vec<T> base;
    roots(T(1) + (t + t), base, out.whole);
    const Vec<T> inverse = out.whole * out.whole;
    out.less = T(-2) * t * inverse / (T(1) + out.whole);
    out.slope = out.whole * inverse;
    out.second = T(3) * out.slope * inverse;
    return out;
  }
};

// -r / sigma
struct Energy {
  static constexpr Kernel kKernel = Kernel::energy;
  template <typename T>
  CGM_INLINE static Radial<T> at(Vec<T> t) {
    Radial<T> out;
    Vec<T> s;
    roots(t + t, s, out.slope);
    out.less = out.whole = -s;
    out.second = Vec<T>{};
    return out;
  }
};

// A family as a kernel of exponents, e = -t log2(e).
template <typename Family>
struct OfExponent {
  template <typename T>
  CGM_INLINE static auto less_one_where_near(Vec<T> e, Vec<T>& value, Vec<T>& slope) {
    // Finite, lest a vanished kernel becomes NaN; and not below 0, where rounding may leave it.
    const Vec<T> largest = splat(sizeof(T) == 4 ? T(1e30) : T(1e300));
    const Vec<T> t = at_least(at_least(e, -largest) * T(-0.69314718055994530942), Vec<T>{});
    const Radial<T> k = Family::template at<T>(t);
    constexpr bool kVanishes = vanishes(Family::kKernel);
    const auto near = near_lanes(kVanishes ? k.less + k.less : Vec<T>{});
    value = kVanishes ? select(near, k.less, k.whole) : k.less;
    slope = k.slope;
    return near;
  }

  template <typename T>
  CGM_INLINE static void shifted(Vec<T>, Vec<T>&, Vec<T>&) {}  // the Gaussian's alone
};

// Calls body(family) for the kernel's family.
template <typename Body>
CGM_INLINE void with_family(Kernel kernel, const Body& body) {
  switch (kernel) {
    case Kernel::gaussian:
      return body(GaussianOfT());
    case Kernel::laplacian:
      return body(Laplacian());
    case Kernel::matern32:
      return body(Matern32());
    case Kernel::matern52:
      return body(Matern52());
    case Kernel::rational_quadratic:
      return body(RationalQuadratic());
    case Kernel::imq:
      return body(InverseMultiquadric());
    case Kernel::energy:
      return body(Energy());
  }
}

}  // namespace
}  // namespace cgm_fast
