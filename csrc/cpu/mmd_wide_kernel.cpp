// The MMD² visit for many features; see mmd_wide_kernel.h. Compiled once per instruction set.
//
// Three matrix products of two tiles, and what lies between them: exponents become weights, which
// are complete, with those of both rows and the groups' relation, so that one tile of them serves
// rows and columns.
#include "cpu/mmd_wide_kernel.h"

#include "cpu/mmd_weights.h"
#include "cpu/radial.h"
#include "cpu/wide_products.h"
#include "cpu/wide_rows.h"

namespace cgm_fast {
namespace {

// The sums of one row, in lanes.
template <typename T>
struct RowSums {
  Vec<T> values, slopes, fars;
};

// A row i and a vector of columns j with exponents e, of which `own` is 0 where they are the same
// row.
template <typename Kernel, typename T, bool kShifted>
CGM_INLINE void weigh(const MmdWideVisit<T>& v, int64_t i, int64_t j, Vec<T> own,
                      RowSums<T>& sums) {
  constexpr T kLn2 = T(0.69314718055994530942), kShift = kShifted ? T(1) : T(0);
  constexpr int kLanes = Simd<T>::kLanes;
  T* w = v.scratch.w + i * kWideStride + j;
  Vec<T> e = load(w);
  if (!v.differences) e += load(v.columns.bias + j) + v.rows.bias[i];
  const T a_i = v.rows.weight[i];
  const Vec<T> a_j = load(v.columns.weight + j) * own, pair = a_i * a_j;
  Vec<T> values = {}, slopes = {}, fars = {};
  for (int64_t s = 0; s < v.scales; ++s) {
    const Vec<T> exponent = e * v.ratio[s];
    T *nears = v.of_scales + s * kLanes, *others = nears + v.scales * kLanes;
    Vec<T> value, slope;
    if (kShifted) {
      Kernel::template shifted<T>(exponent, value, slope);
    } else {
      const auto near = Kernel::template less_one_where_near<T>(exponent, value, slope);
      store(nears, add_where(near, load(nears), pair));
      if (v.far) store(others, load(others) + add_where(near, pair, -pair));
      const Vec<T> weight = splat(v.value_weight[s]);
      if (v.rows.values) fars += add_where(near, weight, -weight);
    }
    values += value * v.value_weight[s];
    slopes += slope * v.slope_weight[s];
    if (v.with_variance) {
      T* variance = others + v.scales * kLanes;
      store(variance, load(variance) + exponent * (slope + kShift) * pair * -kLn2);
    }
  }
  sums.values += values * a_j;
  if (v.rows.values) {
    const Vec<T> less = values - fars;
    sums.fars += less * a_j;
    T* of_column = v.of_columns + kWideTile + j;
    store(of_column, load(of_column) + less * a_i);
  }
  slopes = slopes * pair * T(v.relation);
  sums.slopes += slopes;
  store(v.of_columns + j, load(v.of_columns + j) + slopes);
  store(w, slopes);
}

template <typename Kernel, typename T, bool kShifted>
void weigh_all(const MmdWideVisit<T>& v) {
  constexpr int kLanes = Simd<T>::kLanes;
  __builtin_memset(v.of_columns, 0, 2 * kWideTile * sizeof(T));
  __builtin_memset(v.of_scales, 0, 3 * v.scales * kLanes * sizeof(T));
  const double times = v.own ? 1 : 2;
  double small = 0;
  for (int64_t i = 0; i < v.rows.rows; ++i) {
    RowSums<T> sums = {};
    const Vec<T> one = splat(T(1));
    for (int64_t j = 0; j < v.columns.rows; j += kLanes) {
      if (v.own && j <= i && i < j + kLanes) {
        Vec<T> own = one;
        own[i - j] = T(0);
        weigh<Kernel, T, kShifted>(v, i, j, own, sums);
      } else {
        weigh<Kernel, T, kShifted>(v, i, j, one, sums);
      }
    }
    small += double(v.rows.weight[i]) * in_double<T>(sums.values);
    v.rows.slopes[i] += in_double<T>(sums.slopes);
    if (v.rows.values) v.rows.values[i] += v.relation * in_double<T>(sums.fars);
  }
  *v.small += times * small;
  for (int64_t s = 0; s < v.scales; ++s) {
    const T *nears = v.of_scales + s * kLanes, *fars = nears + v.scales * kLanes;
    if (v.near) v.near[s] += times * sum_of_lanes(widen_all(nears));
    if (v.far) v.far[s] += times * sum_of_lanes(widen_all(fars));
    if (v.with_variance)
      v.variance[s] += times * v.relation * sum_of_lanes(widen_all(fars + v.scales * kLanes));
  }
  if (v.own) return;  // every order of a pair was its row's
  for (int64_t j = 0; j < v.columns.rows; ++j) {
    v.columns.slopes[j] += double(v.of_columns[j]);
    if (v.columns.values) v.columns.values[j] += v.relation * double(v.of_columns[kWideTile + j]);
  }
}

template <typename T>
void visit(const MmdWideVisit<T>& v) {
  if (v.differences)
    wide_exponents<T, true>(v.rows, v.columns, v.d, v.scratch);
  else
    wide_exponents<T, false>(v.rows, v.columns, v.d, v.scratch);
  if (v.shifted)
    weigh_all<Gaussian, T, true>(v);
  else if (v.kernel == Kernel::gaussian)
    weigh_all<Gaussian, T, false>(v);
  else
    with_family(v.kernel, [&](auto family) {
      using Family = decltype(family);
      if constexpr (Family::kKernel != Kernel::gaussian) weigh_all<OfExponent<Family>, T, false>(v);
    });
  const T* w = v.scratch.w;
  add_wide_rows<T, kWideStride, 1>(w, v.rows.begin, v.rows.end, v.columns, v.d, v.rows.gradient);
  if (!v.own)
    add_wide_rows<T, 1, kWideStride>(w, v.columns.begin, v.columns.end, v.rows, v.d,
                                     v.columns.gradient);
}

}  // namespace

namespace CGM_FAST_ISA {
extern const MmdWideKernels<float> mmd_wide_kernels_float = {visit<float>};
extern const MmdWideKernels<double> mmd_wide_kernels_double = {visit<double>};
extern const WideRowKernels<float> wide_row_kernels_float = {add_row<float>, centre_row<float>,
                                                             scale_row<float>, finish_row<float>};
extern const WideRowKernels<double> wide_row_kernels_double = {
    add_row<double>, centre_row<double>, scale_row<double>, finish_row<double>};
}  // namespace CGM_FAST_ISA

}  // namespace cgm_fast
