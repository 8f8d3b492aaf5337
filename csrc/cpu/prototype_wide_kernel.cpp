// Bounds on distances to prototypes with many features, and distances; see prototype_wide_kernel.h.
#include "cpu/prototype_wide_kernel.h"

#include "cpu/wide_products.h"

namespace cgm_fast {
namespace {

template <typename T>
int64_t bounds(T* w, const T* squares_g, int64_t count, T squares_r, T slack) {
  constexpr int kLanes = Simd<T>::kLanes;
  const T left = T(1) - slack;
  for (int64_t j = 0; j < count; j += kLanes)
    store(w + j, (load(squares_g + j) + squares_r) * left - T(2) * load(w + j));
  int64_t least = 0;
  Vec<T> lowest = splat(T(__builtin_inf()));
  for (int64_t j = 0; j + kLanes <= count; j += kLanes) {
    const auto less = less_than(load(w + j), lowest);
    if (!some(less)) continue;  // seldom after the first few
    for (int64_t k = j; k < j + kLanes; ++k)
      if (w[k] < lowest[0]) lowest = splat(w[least = k]);
  }
  for (int64_t k = count - count % kLanes; k < count; ++k)
    if (w[k] < lowest[0]) lowest = splat(w[least = k]);
  return least;
}

template <typename T>
int64_t below(const T* w, int64_t count, T limit, int* columns) {
  constexpr int kLanes = Simd<T>::kLanes;
  int64_t found = 0;
  for (int64_t j = 0; j < count; j += kLanes) {
    const Vec<T> value = load(w + j);
    if (!any_lane<T>(~typename Simd<T>::Bits(value >= limit))) continue;
    for (int64_t k = j; k < j + kLanes && k < count; ++k)
      if (!(w[k] >= limit)) columns[found++] = int(k);
  }
  return found;
}

template <typename T>
T distance(const T* a, const T* b, int64_t d) {
  Wide sum[2] = {};
  int64_t f = 0;
  for (; f + 2 * kWideLanes <= d; f += 2 * kWideLanes)
    CGM_UNROLL for (int half = 0; half < 2; ++half) {
      const int64_t at = f + half * kWideLanes;
      const Wide difference = widen(a + at) - widen(b + at);
      sum[half] += difference * difference;
    }
  double rest = 0;
  for (; f < d; ++f) rest += (double(a[f]) - double(b[f])) * (double(a[f]) - double(b[f]));
  return T(sum_of_lanes(sum[0] + sum[1]) + rest);
}

template <typename T>
void products(const WideTile<T>& r, const WideTile<T>& g, int64_t d,
              const WideScratch<T>& scratch) {
  wide_exponents<T, false>(r, g, d, scratch);
}

}  // namespace

namespace CGM_FAST_ISA {
extern const PrototypeWideKernels<float> prototype_wide_kernels_float = {
    products<float>, bounds<float>, below<float>, distance<float>};
extern const PrototypeWideKernels<double> prototype_wide_kernels_double = {
    products<double>, bounds<double>, below<double>, distance<double>};
}  // namespace CGM_FAST_ISA

}  // namespace cgm_fast
