// What checks are made of: random numbers, exact arrays, derivatives in double, budgets.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <initializer_list>
#include <limits>
#include <memory>
#include <string>
#include <type_traits>
#include <vector>

namespace checks {

using Vector = std::vector<double>;

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

inline int failures = 0;
inline std::string now_checking;

inline void expect(bool good, const char* what, double found = kNan, double limit = kNan) {
  if (good) return;
  ++failures;
  std::printf("FAILED %s: %s (%.3g, limit %.3g)\n", now_checking.c_str(), what, found, limit);
}

struct Random {  // splitmix64: the same problems with every standard library
  uint64_t state;
  uint64_t next() {
    uint64_t bits = state += 0x9e3779b97f4a7c15;
    bits = (bits ^ bits >> 30) * 0xbf58476d1ce4e5b9;
    bits = (bits ^ bits >> 27) * 0x94d049bb133111eb;
    return bits ^ bits >> 31;
  }
  double uniform() { return double(next() >> 11) * 0x1p-53; }
  double normal() { return 2 * (uniform() + uniform() + uniform()) - 3; }  // near enough
  int64_t below(int64_t end) { return int64_t(next() % uint64_t(end)); }
  bool chance(double p) { return uniform() < p; }
  template <typename U>
  U pick(std::initializer_list<U> choices) {
    return choices.begin()[below(int64_t(choices.size()))];
  }
};

// Elements that end where their heap block ends, so that AddressSanitizer sees an overrun, and
// begin one element into it, so that nothing is aligned by luck. NaN (or -1) until written.
template <typename T>
struct Array {
  explicit Array(int64_t size, bool wanted = true)
      : size(wanted ? size : 0), block(new T[size + 1]), data(wanted ? block.get() + 1 : nullptr) {
    std::fill_n(block.get(), size + 1, std::is_integral_v<T> ? T(-1) : T(kNan));
  }
  bool operator==(const Array& other) const {
    return size == other.size && (size == 0 || !std::memcmp(data, other.data, size * sizeof(T)));
  }
  int64_t size;
  std::unique_ptr<T[]> block;
  T* data;
};

template <typename T>
Array<T> to_array(const Vector& values, bool wanted = true) {
  Array<T> out(int64_t(values.size()), wanted);
  if (wanted) std::copy(values.begin(), values.end(), out.data);
  return out;
}

// A value and its derivative along a direction. All second derivatives follow from the first.
struct Dual {
  double value = 0, dot = 0;
};
inline Dual operator+(Dual p, Dual q) { return {p.value + q.value, p.dot + q.dot}; }
inline Dual operator-(Dual p, Dual q) { return {p.value - q.value, p.dot - q.dot}; }
inline Dual operator*(Dual p, Dual q) {
  return {p.value * q.value, p.dot * q.value + p.value * q.dot};
}
inline Dual operator*(double p, Dual q) { return {p * q.value, p * q.dot}; }
inline Dual operator/(Dual p, Dual q) {
  const double value = p.value / q.value;
  return {value, (p.dot - value * q.dot) / q.value};
}
inline Dual expm1(Dual p) { return {std::expm1(p.value), std::exp(p.value) * p.dot}; }
inline Dual operator+(double p, Dual q) { return {p + q.value, q.dot}; }
// Of a number that is constantly 0: 0.
inline Dual sqrt(Dual p) {
  const double root = std::sqrt(p.value);
  return {root, root == 0 ? 0 : p.dot / (2 * root)};
}
inline Dual exp(Dual p) { return {std::exp(p.value), std::exp(p.value) * p.dot}; }

struct Sums {  // of one quantity per element, and of the magnitudes of what was added up
  explicit Sums(int64_t size) : sum(size), size(size) {}
  void add(int64_t at, Dual part, bool second) {
    sum[at] += second ? part.dot : part.value;
    size[at] += std::fabs(second ? part.dot : part.value);
  }
  Vector sum, size;
};

// |found - wanted| <= tolerance * |magnitudes| over a range of elements; a NaN anywhere fails.
template <typename T>
void expect_near(const char* what, const T* found, const Sums& wanted, int64_t begin, int64_t count,
                 double tolerance) {
  double error = 0, size = 0;
  for (int64_t i = 0; i < count; ++i) {
    const double difference = double(found[i]) - wanted.sum[begin + i];
    error += difference * difference;
    size += wanted.size[begin + i] * wanted.size[begin + i];
  }
  // In float a kernel underflows where it does not in double.
  const double limit = tolerance * std::sqrt(size) + 1e-30;
  expect(std::sqrt(error) <= limit, what, std::sqrt(error), limit);
}

}  // namespace checks
