// A vector of floats or doubles in the instruction set that the including file is compiled for.
//
// Included only by kernels that are compiled once per instruction set. Everything here and there
// has internal linkage, and no standard template is used: the linker must never merge a function
// compiled for AVX-512 with its namesake that a lesser processor runs.
#pragma once

#include <stdint.h>

#if defined(__SSE2__)
#include <immintrin.h>
#endif

#if defined(_MSC_VER) && !defined(__clang__)
#error "the kernels need the vector extensions of GCC or Clang"
#endif

namespace cgm_fast {
namespace {

#define CGM_INLINE inline __attribute__((always_inline))

// Before loops over arrays of vectors that are to stay in registers.
#if defined(__clang__)
#define CGM_UNROLL _Pragma("unroll")
#else
#define CGM_UNROLL _Pragma("GCC unroll 16")
#endif

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
  typedef int32_t Index;
  typedef int32_t Bits __attribute__((vector_size(kVectorBytes)));
  static constexpr int kMantissa = 23;
  static constexpr float kBias = 127;
  // 1.5 * 2^23 + bias: adding it rounds to an integer and leaves that plus the bias in the low
  // bits.
  static constexpr float kRound = 12582912.0f + kBias;
};

template <>
struct Simd<double> {
  static constexpr int kLanes = kVectorBytes / 8;
  typedef double Vec __attribute__((vector_size(kVectorBytes)));
  typedef int64_t Index;
  typedef int64_t Bits __attribute__((vector_size(kVectorBytes)));
  static constexpr int kMantissa = 52;
  static constexpr double kBias = 1023;
  static constexpr double kRound = 6755399441055744.0 + kBias;  // 1.5 * 2^52 + bias
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

// The larger of the two, or `value` where that is NaN. x86's own instruction does just that, but
// compilers make two of the comparison.
CGM_INLINE Vec<float> at_least(Vec<float> value, Vec<float> bound) {
#if defined(__AVX512F__)
  return _mm512_max_ps(bound, value);
#elif defined(__AVX2__)
  return _mm256_max_ps(bound, value);
#elif defined(__SSE2__)
  return _mm_max_ps(bound, value);
#else
  return value < bound ? bound : value;
#endif
}

CGM_INLINE Vec<double> at_least(Vec<double> value, Vec<double> bound) {
#if defined(__AVX512F__)
  return _mm512_max_pd(bound, value);
#elif defined(__AVX2__)
  return _mm256_max_pd(bound, value);
#elif defined(__SSE2__)
  return _mm_max_pd(bound, value);
#else
  return value < bound ? bound : value;
#endif
}

// The square root of every lane.
CGM_INLINE Vec<float> root(Vec<float> value) {
#if defined(__AVX512F__)
  return _mm512_sqrt_ps(value);
#elif defined(__AVX2__)
  return _mm256_sqrt_ps(value);
#elif defined(__SSE2__)
  return _mm_sqrt_ps(value);
#else
  CGM_UNROLL for (int i = 0; i < Simd<float>::kLanes; ++i) value[i] = __builtin_sqrtf(value[i]);
  return value;
#endif
}

CGM_INLINE Vec<double> root(Vec<double> value) {
#if defined(__AVX512F__)
  return _mm512_sqrt_pd(value);
#elif defined(__AVX2__)
  return _mm256_sqrt_pd(value);
#elif defined(__SSE2__)
  return _mm_sqrt_pd(value);
#else
  CGM_UNROLL for (int i = 0; i < Simd<double>::kLanes; ++i) value[i] = __builtin_sqrt(value[i]);
  return value;
#endif
}

// Which lanes of an exponent are near: 2^e >= 1/2. Not those that are NaN.
#if defined(__AVX512F__)
CGM_INLINE __mmask16 near_lanes(Vec<float> e) {
  return _mm512_cmp_ps_mask(e, splat(-1.0f), _CMP_GE_OQ);
}
CGM_INLINE __mmask8 near_lanes(Vec<double> e) {
  return _mm512_cmp_pd_mask(e, splat(-1.0), _CMP_GE_OQ);
}
CGM_INLINE Vec<float> select(__mmask16 lanes, Vec<float> value, Vec<float> other) {
  return _mm512_mask_mov_ps(other, lanes, value);
}
CGM_INLINE Vec<double> select(__mmask8 lanes, Vec<double> value, Vec<double> other) {
  return _mm512_mask_mov_pd(other, lanes, value);
}
CGM_INLINE __mmask16 less_than(Vec<float> a, Vec<float> b) {
  return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ);
}
CGM_INLINE __mmask8 less_than(Vec<double> a, Vec<double> b) {
  return _mm512_cmp_pd_mask(a, b, _CMP_LT_OQ);
}
// sum + value in those lanes, and sum in the others.
CGM_INLINE Vec<float> add_where(__mmask16 lanes, Vec<float> sum, Vec<float> value) {
  return _mm512_mask_add_ps(sum, lanes, sum, value);
}
CGM_INLINE Vec<double> add_where(__mmask8 lanes, Vec<double> sum, Vec<double> value) {
  return _mm512_mask_add_pd(sum, lanes, sum, value);
}
#else
CGM_INLINE Simd<float>::Bits near_lanes(Vec<float> e) { return e >= splat(-1.0f); }
CGM_INLINE Simd<double>::Bits near_lanes(Vec<double> e) { return e >= splat(-1.0); }
// The lanes of one where those of a comparison are set, and of the other elsewhere.
CGM_INLINE Vec<float> select(Simd<float>::Bits lanes, Vec<float> value, Vec<float> other) {
  typedef Simd<float>::Bits Bits;
  return (Vec<float>)(((Bits)value & lanes) | ((Bits)other & ~lanes));
}
CGM_INLINE Vec<double> select(Simd<double>::Bits lanes, Vec<double> value, Vec<double> other) {
  typedef Simd<double>::Bits Bits;
  return (Vec<double>)(((Bits)value & lanes) | ((Bits)other & ~lanes));
}
CGM_INLINE Simd<float>::Bits less_than(Vec<float> a, Vec<float> b) { return a < b; }
CGM_INLINE Simd<double>::Bits less_than(Vec<double> a, Vec<double> b) { return a < b; }
CGM_INLINE Vec<float> add_where(Simd<float>::Bits lanes, Vec<float> sum, Vec<float> value) {
  return sum + (Vec<float>)((Simd<float>::Bits)value & lanes);
}
CGM_INLINE Vec<double> add_where(Simd<double>::Bits lanes, Vec<double> sum, Vec<double> value) {
  return sum + (Vec<double>)((Simd<double>::Bits)value & lanes);
}
#endif

// The least normal number: what is below counts as 0.
template <typename T>
constexpr T kLeast = sizeof(T) == 4 ? T(1.17549435e-38) : T(2.2250738585072014e-308);

// sqrt(t) and 1/sqrt(t) for t >= 0, both 0 where t is. In float to 2e-7: the processor's estimate
// of the second, and a step of Newton's method for each, in place of a root and a division.
CGM_INLINE void roots(Vec<float> t, Vec<float>& root_of_t, Vec<float>& inverse) {
#if defined(__SSE2__)
#if defined(__AVX512F__)
  Vec<float> about = _mm512_rsqrt14_ps(t);
#elif defined(__AVX2__)
  Vec<float> about = _mm256_rsqrt_ps(t);
#else
  Vec<float> about = _mm_rsqrt_ps(t);
#endif
  about = select(less_than(t, splat(kLeast<float>)), Vec<float>{}, about);
  const Vec<float> first = t * about, half = 0.5f * about;
  root_of_t = first + half * (t - first * first);
  inverse = about + half * (1.0f - first * about);
#else
  root_of_t = root(t);
  inverse = select(less_than(t, splat(kLeast<float>)), Vec<float>{}, 1.0f / root_of_t);
#endif
}

CGM_INLINE void roots(Vec<double> t, Vec<double>& root_of_t, Vec<double>& inverse) {
  root_of_t = root(t);
  inverse = select(less_than(t, splat(kLeast<double>)), Vec<double>{}, 1.0 / root_of_t);
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

// 2^e = power + rest for e <= 0 (or a rounding error above), where power is exact and rest small,
// so that 2^e - 1 = rest + (power - 1) does not cancel. A NaN stays.
template <typename T>
CGM_INLINE void split_exp2(Vec<T> e, Vec<T>& power, Vec<T>& rest) {
  using S = Simd<T>;
  e = at_least(e, splat<T>(-S::kBias));  // 2^-bias becomes an exact zero
  const Vec<T> shifted = e + S::kRound;  // its low bits hold n + bias, which is all of 2^n
  const Vec<T> f = e - (shifted - S::kRound);
  power = (Vec<T>)((typename S::Bits)shifted << S::kMantissa);
  rest = power * (exp2_polynomial(f) * f);
}

// Half a vector's lanes of floats, or a vector of doubles, as doubles.
constexpr int kWideLanes = kVectorBytes / 8;
typedef double Wide __attribute__((vector_size(kVectorBytes)));

CGM_INLINE Wide widen(const float* from) {
  typedef float Half __attribute__((vector_size(kVectorBytes / 2), aligned(4), may_alias));
  return __builtin_convertvector(*reinterpret_cast<const Half*>(from), Wide);
}

typedef double UnalignedWide __attribute__((vector_size(kVectorBytes), aligned(8), may_alias));

CGM_INLINE Wide widen(const double* from) { return *reinterpret_cast<const UnalignedWide*>(from); }

// The other way: rounds to T and stores.
CGM_INLINE void narrow(Wide value, float* to) {
  typedef float Half __attribute__((vector_size(kVectorBytes / 2)));
  typedef float Unaligned __attribute__((vector_size(kVectorBytes / 2), aligned(4), may_alias));
  *reinterpret_cast<Unaligned*>(to) = __builtin_convertvector(value, Half);
}

CGM_INLINE void narrow(Wide value, double* to) { *reinterpret_cast<UnalignedWide*>(to) = value; }

// A vector's lanes as doubles, pairs of them added up.
template <typename T>
CGM_INLINE Wide widen_all(const T* aligned) {
  if constexpr (Simd<T>::kLanes > kWideLanes)
    return widen(aligned) + widen(aligned + kWideLanes);
  else
    return widen(aligned);
}

CGM_INLINE double sum_of_lanes(Wide value) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_pd(value);
#else
  double total = 0;
  CGM_UNROLL for (int i = 0; i < kWideLanes; ++i) total += value[i];
  return total;
#endif
}

// The sum of a vector's lanes, in double.
template <typename T>
CGM_INLINE double in_double(Vec<T> sum) {
  return sum_of_lanes(widen_all(reinterpret_cast<const T*>(&sum)));
}

// 0, 1, 2, ... for the lanes of a vector of T.
template <typename T>
CGM_INLINE typename Simd<T>::Bits lane_numbers() {
  alignas(64) static const typename Simd<T>::Index numbers[16] = {0, 1, 2,  3,  4,  5,  6,  7,
                                                                  8, 9, 10, 11, 12, 13, 14, 15};
  return *reinterpret_cast<const typename Simd<T>::Bits*>(numbers);
}

// Whether some lane of a comparison's result is true.
template <typename T>
CGM_INLINE bool any_lane(typename Simd<T>::Bits bits) {
#if defined(__AVX512F__)
  return _mm512_test_epi32_mask((__m512i)bits, (__m512i)bits) != 0;
#else
  typedef int64_t Words __attribute__((vector_size(kVectorBytes)));
  const Words words = (Words)bits;
  int64_t any = 0;
  CGM_UNROLL for (int i = 0; i < kWideLanes; ++i) any |= words[i];
  return any != 0;
#endif
}

// The same of what `less_than` gives.
#if defined(__AVX512F__)
CGM_INLINE bool some(__mmask16 lanes) { return lanes != 0; }
CGM_INLINE bool some(__mmask8 lanes) { return lanes != 0; }
#else
template <typename Bits>
CGM_INLINE bool some(Bits lanes) {
#if defined(__AVX2__)
  return _mm256_movemask_epi8((__m256i)lanes) != 0;
#elif defined(__SSE2__)
  return _mm_movemask_epi8((__m128i)lanes) != 0;
#else
  return any_lane<float>((Simd<float>::Bits)lanes);
#endif
}
#endif

// Lane i of the result is the sum of the lanes of value[i].
CGM_INLINE Wide sums_of_lanes(const Wide (&value)[kWideLanes]) {
#if defined(__AVX512F__)
  Wide pair[4], four[2];
  CGM_UNROLL for (int i = 0; i < 4; ++i) {
    const Wide a = value[2 * i], b = value[2 * i + 1];
    pair[i] = _mm512_unpacklo_pd(a, b) + _mm512_unpackhi_pd(a, b);
  }
  CGM_UNROLL for (int i = 0; i < 2; ++i) {
    const Wide a = pair[2 * i], b = pair[2 * i + 1];
    four[i] = _mm512_shuffle_f64x2(a, b, 0x88) + _mm512_shuffle_f64x2(a, b, 0xdd);
  }
  return _mm512_shuffle_f64x2(four[0], four[1], 0x88) +
         _mm512_shuffle_f64x2(four[0], four[1], 0xdd);
#else
  Wide sums;
  CGM_UNROLL for (int i = 0; i < kWideLanes; ++i) sums[i] = sum_of_lanes(value[i]);
  return sums;
#endif
}

#if defined(__clang__)
#define CGM_SHUFFLE(T, a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define CGM_SHUFFLE(T, a, b, ...) __builtin_shuffle(a, b, typename Simd<T>::Bits{__VA_ARGS__})
#endif

// The lanes of two vectors by turns, first halves or second ones: the step of which a transposition
// is made.
template <typename T, int kFrom>
CGM_INLINE Vec<T> interleave(Vec<T> a, Vec<T> b) {
  constexpr int n = Simd<T>::kLanes, i = kFrom;
  if constexpr (n == 16)
    return CGM_SHUFFLE(T, a, b, i, i + 16, i + 1, i + 17, i + 2, i + 18, i + 3, i + 19, i + 4,
                       i + 20, i + 5, i + 21, i + 6, i + 22, i + 7, i + 23);
  else if constexpr (n == 8)
    return CGM_SHUFFLE(T, a, b, i, i + 8, i + 1, i + 9, i + 2, i + 10, i + 3, i + 11);
  else if constexpr (n == 4)
    return CGM_SHUFFLE(T, a, b, i, i + 4, i + 1, i + 5);
  else
    return CGM_SHUFFLE(T, a, b, i, i + 2);
}

// Transposes a square of lanes by lanes.
template <typename T>
CGM_INLINE void transpose_square(Vec<T> (&square)[Simd<T>::kLanes]) {
  constexpr int n = Simd<T>::kLanes;
  for (int step = 1; step < n; step *= 2) {
    Vec<T> out[n];
    CGM_UNROLL for (int i = 0; i < n / 2; ++i) {
      out[2 * i] = interleave<T, 0>(square[i], square[i + n / 2]);
      out[2 * i + 1] = interleave<T, n / 2>(square[i], square[i + n / 2]);
    }
    CGM_UNROLL for (int i = 0; i < n; ++i) square[i] = out[i];
  }
}

}  // namespace
}  // namespace cgm_fast
