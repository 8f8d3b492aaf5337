// A vector of floats or doubles in the instruction set that the including file is compiled for.
//
// Included only by kernels that are compiled once per instruction set. Everything here and there
// has internal linkage, and no standard template is used: the linker must never merge a function
// compiled for AVX-512 with its namesake that a lesser processor runs.
#pragma once

#include <stdint.h>

#if defined(_MSC_VER) && !defined(__clang__)
#error "the kernels need the vector extensions of GCC or Clang"
#endif

namespace cgm_fast {
namespace {

#define CGM_INLINE inline __attribute__((always_inline))

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else  // SSE2, NEON, or whatever the compiler makes of it
constexpr int kVectorBytes = 16;
#endif

template <typename T>
struct Simd;

template <>
struct Simd<float> {
  static constexpr int kLanes = kVectorBytes / 4;
  typedef float Vec __attribute__((vector_size(kVectorBytes)));
  typedef int32_t Bits __attribute__((vector_size(kVectorBytes)));
  static constexpr int kMantissa = 23, kBias = 127;
  static constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
};

template <>
struct Simd<double> {
  static constexpr int kLanes = kVectorBytes / 8;
  typedef double Vec __attribute__((vector_size(kVectorBytes)));
  typedef int64_t Bits __attribute__((vector_size(kVectorBytes)));
  static constexpr int kMantissa = 52, kBias = 1023;
  static constexpr double kRound = 6755399441055744.0;  // 1.5 * 2^52
};

template <typename T>
using Vec = typename Simd<T>::Vec;

template <typename T>
CGM_INLINE Vec<T> load(const T* aligned) {
  return *reinterpret_cast<const Vec<T>*>(aligned);
}

template <typename T>
CGM_INLINE void store(T* aligned, Vec<T> value) {
  *reinterpret_cast<Vec<T>*>(aligned) = value;
}

template <typename T>
CGM_INLINE Vec<T> splat(T value) {
  return value - Vec<T>{};
}

// Minimax polynomials of (2^f - 1)/f on [-1/2, 1/2]; relative errors of 2^f - 1: 7.5e-9, 1.2e-17.
CGM_INLINE Vec<float> exp2_polynomial(Vec<float> f) {
  Vec<float> q = splat(1.5469735205486631811e-4f);
  q = q * f + 1.3390866847232127857e-3f;
  q = q * f + 9.6180307705219569407e-3f;
  q = q * f + 5.5503571055175024990e-2f;
  q = q * f + 2.4022651084215122803e-1f;
  return q * f + 6.9314718802895101201e-1f;
}

CGM_INLINE Vec<double> exp2_polynomial(Vec<double> f) {
  Vec<double> q = splat(4.4566755710138822318e-10);
  q = q * f + 7.0725861813463670926e-9;
  q = q * f + 1.0178051727399185754e-7;
  q = q * f + 1.3215442586612870547e-6;
  q = q * f + 1.5252733853282352968e-5;
  q = q * f + 1.5403530441738513431e-4;
  q = q * f + 1.3333558146396001579e-3;
  q = q * f + 9.6181291076068868088e-3;
  q = q * f + 5.5504108664821659755e-2;
  q = q * f + 2.4022650695910098223e-1;
  return q * f + 6.9314718055994530909e-1;
}

// 2^e - shift for e <= 0, with shift 0 or 1: 2^n q(f) + (2^n - shift) does not cancel. Rounding may
// have left e a little above 0; a NaN stays.
template <typename T>
CGM_INLINE Vec<T> exp2_minus(Vec<T> e, T shift) {
  using S = Simd<T>;
  using Bits = typename S::Bits;
  const Vec<T> lowest = splat<T>(-T(S::kBias));  // 2^lowest becomes an exact zero
  e = e < lowest ? lowest : e;
  e = e > Vec<T>{} ? Vec<T>{} : e;
  const Vec<T> shifted = e + S::kRound;  // its low bits hold n
  const Vec<T> f = e - (shifted - S::kRound);
  const Bits exponent = (Bits)shifted - (Bits)splat<T>(S::kRound) + S::kBias;
  const Vec<T> power = (Vec<T>)(exponent << S::kMantissa);
  return power * (exp2_polynomial(f) * f) + (power - shift);
}

}  // namespace
}  // namespace cgm_fast
