// Distances to prototypes, the nearest of them, and which of the others lie within the margin; see
// prototype_kernel.h. Compiled once per instruction set.
#include "cpu/prototype_kernel.h"

#include "cpu/products.h"

namespace cgm_fast {
namespace {

template <typename T, int C>
CGM_INLINE void distances_of_rows(const Block<T>& v, int64_t i, int64_t j, int64_t begin,
                                  int64_t end) {
  Vec<T> e[kR][C];
  exponents<T, C, true>(v, i, j, begin, end, e);
  for (int r = 0; r < kR; ++r)
    for (int c = 0; c < C; ++c)
      store(v.w + (i + r) * v.columns + j + c * Simd<T>::kLanes, end < v.d ? e[r][c] : -e[r][c]);
}

template <typename T>
void distances(const Block<T>& v) {
  constexpr int kLanes = Simd<T>::kLanes;
  constexpr int64_t kChunk = 512;  // features whose panel stays near
  for (int64_t begin = 0; begin < v.d; begin += kChunk) {
    const int64_t end = begin + kChunk < v.d ? begin + kChunk : v.d;
    for (int64_t i = 0; i < v.rows; i += kR) {
      int64_t j = 0;
      for (; j + kPairColumns * kLanes <= v.columns; j += kPairColumns * kLanes)
        distances_of_rows<T, kPairColumns>(v, i, j, begin, end);
      for (; j + 2 * kLanes <= v.columns; j += 2 * kLanes)
        distances_of_rows<T, 2>(v, i, j, begin, end);
      for (; j < v.columns; j += kLanes) distances_of_rows<T, 1>(v, i, j, begin, end);
    }
  }
}

template <typename T>
void nearest(const T* u, int64_t columns, int64_t first, T& least, int64_t& index) {
  constexpr int kLanes = Simd<T>::kLanes;
  using Bits = typename Simd<T>::Bits;
  Vec<T> lowest = load(u);
  Bits at = {}, column = {};
  for (int64_t j = kLanes; j < columns; j += kLanes) {
    column += kLanes;
    const Vec<T> value = load(u + j);
    const Bits less = value < lowest;
    lowest = less ? value : lowest;
    at = less ? column : at;
  }
  T best = lowest[0];
  int64_t where = at[0];
  for (int lane = 1; lane < kLanes; ++lane) {
    const int64_t candidate = at[lane] + lane;
    if (lowest[lane] < best || (lowest[lane] == best && candidate < where)) {
      best = lowest[lane];
      where = candidate;
    }
  }
  if (first == 0 || best < least) {
    least = best;
    index = first + where;
  }
}

template <typename T>
double hinge(T* u, int64_t columns, T margin, int64_t& count) {
  constexpr int kLanes = Simd<T>::kLanes;
  using Bits = typename Simd<T>::Bits;
  const Vec<T> zero = {}, one = splat(T(1));
  Vec<T> sum = {};
  Bits within = {};
  for (int64_t j = 0; j < columns; j += kLanes) {
    const Vec<T> value = load(u + j);
    const Bits beyond = value >= margin;  // a NaN is not, and so reaches the loss
    sum += beyond ? zero : margin - value;
    const Bits active = value < margin;
    within -= active;  // a true lane is -1
    store(u + j, active ? one : zero);
  }
  int64_t found = 0;
  double total = 0;
  for (int lane = 0; lane < kLanes; ++lane) {
    found += within[lane];
    total += double(sum[lane]);
  }
  count += found;
  return total;
}

template <typename T>
void products(const Block<T>& v, bool with_rows, bool with_columns) {
  if (with_rows) all_rows(v);
  if (with_columns) all_columns(v);
}

template <typename T>
constexpr PrototypeKernels<T> kernels = {distances<T>, nearest<T>, hinge<T>,
                                         products<T>,  take<T>,    take_lanes<T>};

}  // namespace

namespace CGM_FAST_ISA {
extern const PrototypeKernels<float> prototype_kernels_float = kernels<float>;
extern const PrototypeKernels<double> prototype_kernels_double = kernels<double>;
}  // namespace CGM_FAST_ISA

}  // namespace cgm_fast
