// exp(-t) and exp(-t) - 1 for t >= 0, as straight-line code that compilers vectorise.
#pragma once

#include <cstdint>
#include <type_traits>

namespace cgm_fast {

template <typename T>
struct ExpTraits;

template <>
struct ExpTraits<float> {
  using Bits = int32_t;
  static constexpr int kMantissa = 23, kBias = 127, kDegree = 7;
  static constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  // ln 2 in two parts, the first short enough for n * kLn2High to be exact.
  static constexpr float kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f;
};

template <>
struct ExpTraits<double> {
  using Bits = int64_t;
  static constexpr int kMantissa = 52, kBias = 1023, kDegree = 13;
  static constexpr double kRound = 6755399441055744.0;  // 1.5 * 2^52
  static constexpr double kLn2High = 6.93147180369123816490e-01;
  static constexpr double kLn2Low = 1.90821492927058770002e-10;
};

// With -t = n ln 2 + f, |f| <= ln 2 / 2, and q = exp(f) - 1 by its Taylor polynomial:
// exp(-t) = 2^n + 2^n q and exp(-t) - 1 = 2^n q + (2^n - 1), neither of which cancels.
template <typename T>
inline void exp_neg(T t, T& value, T& minus_one) {
  using E = ExpTraits<T>;
  using Bits = typename E::Bits;
  constexpr T kLog2e = T(1.4426950408889634);
  constexpr T kLargest = T(E::kBias * 0.6931471805599453);  // here 2^n becomes an exact zero
  t = kLargest < t ? kLargest : t;                          // NaN stays
  const T shifted = -t * kLog2e + E::kRound;                // its low bits hold n
  const T n = shifted - E::kRound;
  const T f = (-t - n * E::kLn2High) - n * E::kLn2Low;
  T q = T(1);
  for (int i = E::kDegree; i >= 2; --i) q = T(1) + f * q * T(1.0 / i);
  q *= f;
  const Bits exponent = __builtin_bit_cast(Bits, shifted) - __builtin_bit_cast(Bits, E::kRound);
  using Unsigned = std::make_unsigned_t<Bits>;  // a NaN's bits may be negative: those do not shift
  const T power = __builtin_bit_cast(T, Unsigned(exponent + E::kBias) << E::kMantissa);
  value = power + power * q;
  minus_one = power * q + (power - T(1));
}

}  // namespace cgm_fast
