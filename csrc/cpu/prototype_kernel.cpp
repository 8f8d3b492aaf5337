// Distances to prototypes, the nearest of them, and which of the others lie within the margin; see
// prototype_kernel.h. Compiled once per instruction set.
#include "cpu/prototype_kernel.h"

#include "cpu/products.h"

namespace cgm_fast {
namespace {

template <typename T>
void distances(const Block<T>& v) {
  each_register_block(v, [&](auto vectors, int64_t i, int64_t j, int64_t begin,
                             int64_t end) __attribute__((always_inline)) {
    constexpr int C = decltype(vectors)::kCount;
    Vec<T> e[kR][C];
    exponents<T, C, true>(v, i, j, begin, end, e);
    for (int r = 0; r < kR; ++r)
      for (int c = 0; c < C; ++c)
        store(v.w + (i + r) * v.columns + j + c * Simd<T>::kLanes, end < v.d ? e[r][c] : -e[r][c]);
  });
}

// The least of a vector's lanes and its column, the lowest of equals: lane l stands for column
// at[l] + l. NaNs lose, unless there is nothing else.
template <typename T>
CGM_INLINE void least_lane(Vec<T> lowest, typename Simd<T>::Bits at, T& best, int64_t& where) {
  constexpr int kLanes = Simd<T>::kLanes;
  using Bits = typename Simd<T>::Bits;
  alignas(64) T values[kLanes];
  alignas(64) typename Simd<T>::Index columns_of[kLanes];
  store(values, lowest);
  *reinterpret_cast<Bits*>(columns_of) = at;
  best = values[0];
  where = columns_of[0];
  for (int lane = 1; lane < kLanes; ++lane) {
    const int64_t candidate = columns_of[lane] + lane;
    const bool better = values[lane] < best || (values[lane] == best && candidate < where);
    best = better ? values[lane] : best;
    where = better ? candidate : where;
  }
}

#if defined(__AVX512F__)
template <>
CGM_INLINE void least_lane<float>(Vec<float> lowest, Simd<float>::Bits at, float& best,
                                  int64_t& where) {
  const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  best = _mm512_reduce_min_ps(lowest);
  const __mmask16 mask = _mm512_cmpeq_ps_mask(lowest, splat(best));
  where = mask ? _mm512_mask_reduce_min_epi32(mask, _mm512_add_epi32((__m512i)at, lane)) : 0;
}
#endif

// The vector of u at j, infinite from `count` on; and in column `own`.
template <typename T>
CGM_INLINE Vec<T> there(const T* u, int64_t j, int64_t count) {
  const Vec<T> value = load(u + j);
  if (j + Simd<T>::kLanes <= count) return value;
  const Vec<T> far = splat(T(__builtin_inf()));
  return lane_numbers<T>() < typename Simd<T>::Index(count - j) ? value : far;
}

template <typename T>
CGM_INLINE Vec<T> others(const T* u, int64_t j, int64_t count, int64_t own) {
  const Vec<T> far = splat(T(__builtin_inf()));
  return lane_numbers<T>() == typename Simd<T>::Index(own - j) ? far : there(u, j, count);
}

template <typename T>
void nearest(const T* u, int64_t count, int64_t first, T& least, int64_t& index) {
  constexpr int kLanes = Simd<T>::kLanes;
  using Bits = typename Simd<T>::Bits;
  Vec<T> lowest = there(u, 0, count);
  Bits at = {}, column = {};
  for (int64_t j = kLanes; j < count; j += kLanes) {
    column += kLanes;
    const Vec<T> value = there(u, j, count);
    const Bits less = value < lowest;
    lowest = less ? value : lowest;
    at = less ? column : at;
  }
  T best;
  int64_t where;
  least_lane<T>(lowest, at, best, where);
  if (first == 0 || best < least) {
    least = best;
    index = first + where;
  }
}

template <typename T>
double hinge(const T* u, int64_t count, int64_t own, T margin, int64_t& within) {
  constexpr int kLanes = Simd<T>::kLanes;
  using Bits = typename Simd<T>::Bits;
  Bits any = {};  // "not beyond" is not "within": a NaN is neither, and has to reach the loss
  for (int64_t j = 0; j < count; j += kLanes) any |= ~Bits(others(u, j, count, own) >= margin);
  if (!any_lane<T>(any)) return 0;
  const Vec<T> zero = {}, one = splat(T(1));
  Vec<T> sum = {}, ones = {};
  for (int64_t j = 0; j < count; j += kLanes) {
    const Vec<T> value = others(u, j, count, own);
    const Bits beyond = value >= margin;
    sum += beyond ? zero : margin - value;
    ones += value < margin ? one : zero;
  }
  alignas(64) T lanes[kLanes];
  store(lanes, sum);
  const double total = sum_of_lanes(widen_all(lanes));
  store(lanes, ones);
  within += int64_t(sum_of_lanes(widen_all(lanes)));
  return total;
}

template <typename T>
void activate(T* u, int64_t columns, int64_t count, int64_t own, T margin) {
  const Vec<T> zero = {}, one = splat(T(1));
  for (int64_t j = 0; j < columns; j += Simd<T>::kLanes)
    store(u + j, others(u, j, count, own) < margin ? one : zero);
}

template <typename T>
void pair(const T* a, const T* b, int64_t d, double factor, T* out, double* sum) {
  int64_t f = 0;
  for (; f + kWideLanes <= d; f += kWideLanes) {
    const Wide difference = widen(a + f) - widen(b + f);
    if (sum) narrow(widen(sum + f) + difference, sum + f);
    if (out) narrow(factor * difference, out + f);
  }
  for (; f < d; ++f) {
    const double difference = double(a[f]) - double(b[f]);
    if (sum) sum[f] += difference;
    if (out) out[f] = T(factor * difference);
  }
}

template <typename T>
void push(const T* value, const double* sums, int64_t d, double within, double factor, T* out) {
  int64_t f = 0;
  for (; f + kWideLanes <= d; f += kWideLanes)
    narrow(widen(out + f) + factor * (within * widen(value + f) - widen(sums + f)), out + f);
  for (; f < d; ++f) out[f] = T(double(out[f]) + factor * (within * double(value[f]) - sums[f]));
}

template <typename T>
void products(const Block<T>& v, bool with_rows, bool with_columns) {
  if (with_rows) all_rows(v);
  if (with_columns) all_columns(v);
}

template <typename T>
constexpr PrototypeKernels<T> kernels = {distances<T>, nearest<T>, hinge<T>,
                                         activate<T>,  pair<T>,    push<T>,
                                         products<T>,  flush<T>,   flush_lanes<T>};

}  // namespace

namespace CGM_FAST_ISA {
extern const PrototypeKernels<float> prototype_kernels_float = kernels<float>;
extern const PrototypeKernels<double> prototype_kernels_double = kernels<double>;
}  // namespace CGM_FAST_ISA

}  // namespace cgm_fast
