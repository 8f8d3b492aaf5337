// Products on tensor cores, a warp's fragments to the letter: which lane has what, operands of 11
// bits, products exact, and their sum with what was there cut towards zero; or, add_aligned, the
// pessimistic adder of tests/tensor_cores.py.
#pragma once

#include "cpu/read.h"

namespace cuda_on_cpu {

inline float as_tf32(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, 4);
  bits &= 0xffffe000u;
  std::memcpy(&value, &bits, 4);
  return value;
}

inline float toward_zero(double value) {
  const float nearest = static_cast<float>(value);
  return std::fabs(static_cast<double>(nearest)) > std::fabs(value) ? std::nextafterf(nearest, 0.f)
                                                                    : nearest;
}

inline bool add_aligned = false;

// Of the first bit; of what is no finite number, or zero, nobody's largest.
inline int exponent(double value) {
  return value == 0 || !std::isfinite(value) ? -400 : std::ilogb(value);
}

// total + the products, of which `exponents` are the sums of their factors', before normalising.
template <std::size_t kCount>
float sum_aligned(float total, const std::array<double, kCount>& products,
                  const std::array<int, kCount>& exponents) {
  constexpr std::size_t kFew = 4;
  constexpr int kFraction = 24;
  const auto cut = [](double value, int last) {
    return std::ldexp(std::trunc(std::ldexp(value, -last)), last);
  };
  for (std::size_t first = 0; first < kCount; first += kFew) {
    int largest = exponent(total);
    for (std::size_t k = first; k < first + kFew; ++k) largest = std::max(largest, exponents[k]);
    const int last = largest - kFraction;
    double sum = cut(static_cast<double>(total), last);
    for (std::size_t k = first; k < first + kFew; ++k) sum += cut(products[k], last);
    total = toward_zero(sum);
  }
  return total;
}

// c [16, 8] += a [16, kDepth] @ b [kDepth, 8]. A lane has four words of a, two of b, four numbers
// of c; `number(word, k)` is the k-th of a word's numbers. With g = lane / 4, t = lane % 4 and n
// numbers to a word: a (g or g + 8, n t.. or n (t + 4)..), b (n t.. or n (t + 4).., g), c (g or
// g + 8, 2t..).
template <int kDepth, typename Word, typename Number>
void mma(float (&c)[4], const Word (&a)[4], const Word (&b)[2], const char* place,
         const Number& number) {
  constexpr int kOfWord = kDepth / 8;
  struct Parts {
    Word a[4], b[2];
  };
  const Parts mine{{a[0], a[1], a[2], a[3]}, {b[0], b[1]}};
  const int g = Block::fiber().lane / 4, t = Block::fiber().lane % 4;
  // Of each of the four numbers, in the order of k.
  using Products = std::array<std::array<double, kDepth>, 4>;
  using Exponents = std::array<std::array<int, kDepth>, 4>;
  Products products;
  Exponents exponents;
  collective(mine, place, [&](const auto& of_lane) {
    for (int column = 0; column < 2; ++column) {
      for (int quarter = 0; quarter < 4; ++quarter) {
        const Parts of_a = of_lane(g * 4 + quarter);
        const Parts of_b = of_lane((2 * t + column) * 4 + quarter);
        for (int row = 0; row < 2; ++row) {
          for (int half = 0; half < 2; ++half) {
            for (int k = 0; k < kOfWord; ++k) {
              const double left = number(of_a.a[row + 2 * half], k);
              const double right = number(of_b.b[half], k);
              const auto to = static_cast<std::size_t>(2 * row + column);
              const auto at = static_cast<std::size_t>(half * kDepth / 2 + quarter * kOfWord + k);
              products[to][at] = left * right;
              if (add_aligned) exponents[to][at] = exponent(left) + exponent(right);
            }
          }
        }
      }
    }
    return true;
  });
  for (std::size_t at = 0; at < 4; ++at) {
    if (add_aligned) {
      c[at] = sum_aligned(c[at], products[at], exponents[at]);
    } else {
      c[at] = toward_zero(
          std::accumulate(products[at].begin(), products[at].end(), static_cast<double>(c[at])));
    }
  }
}

}  // namespace cuda_on_cpu
