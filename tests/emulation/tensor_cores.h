// Products on tensor cores, a warp's fragments to the letter: which lane has what, operands of 11
// bits, products exact, and their sum with what was there cut towards zero.
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
  const std::array<double, 4> sums = collective(mine, place, [&](const auto& of_lane) {
    std::array<double, 4> found{c[0], c[1], c[2], c[3]};
    for (int column = 0; column < 2; ++column) {
      for (int quarter = 0; quarter < 4; ++quarter) {
        const Parts of_a = of_lane(g * 4 + quarter);
        const Parts of_b = of_lane((2 * t + column) * 4 + quarter);
        for (int row = 0; row < 2; ++row) {
          for (int half = 0; half < 2; ++half) {
            for (int k = 0; k < kOfWord; ++k) {
              found[static_cast<std::size_t>(2 * row + column)] +=
                  number(of_a.a[row + 2 * half], k) * number(of_b.b[half], k);
            }
          }
        }
      }
    }
    return found;
  });
  for (std::size_t at = 0; at < 4; ++at) c[at] = toward_zero(sums[at]);
}

}  // namespace cuda_on_cpu
