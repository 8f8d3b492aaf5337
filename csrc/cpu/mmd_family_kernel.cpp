// The visit of mmd_kernel.cpp with other kernels than the Gaussian: the same products. Exponents
// wait in the first-level cache for their kernel, so that what is compiled for every family is its
// own function. Compiled once per instruction set.
#include "cpu/mmd_weights.h"
#include "cpu/radial.h"

namespace cgm_fast {
namespace {

// Sums of a row over columns, in lanes.
template <typename T>
struct OfRow {
  Vec<T> values, slopes, nears, fars;
};

// Step 1 behind the exponents, of one bandwidth: columns [begin, end) of a row, among which kOwn
// says that its pair with itself may be.
template <typename Kernel, typename T, bool kOwn>
CGM_INLINE void weights_of_row(const MmdVisit<T>& v, int64_t i, int64_t begin, int64_t end,
                               OfRow<T>& sums) {
  T* w = v.w + i * v.columns;
  for (int64_t j = begin; j < end; j += Simd<T>::kLanes) {
    Vec<T> value, slope, weight = load(v.column_weight + j);
    if (kOwn) leave_out_own<T>(v, i, j, weight);
    const auto near = Kernel::template less_one_where_near<T>(load(w + j), value, slope);
    if (kOwn) leave_out_own<T>(v, i, j, slope);
    sums.values += value * weight;
    sums.slopes += slope * weight;
    sums.nears = add_where(near, sums.nears, weight);
    if (v.far_sums) sums.fars += add_where(near, weight, -weight);
    store(w + j, slope);
  }
}

// The whole row.
template <typename Kernel, typename T>
CGM_INLINE void weights_of_row(const MmdVisit<T>& v, int64_t i) {
  constexpr int64_t kLanes = Simd<T>::kLanes;
  OfRow<T> sums = {};
  int64_t begin = 0;
  if (v.diagonal >= 0 && v.diagonal + i < v.columns) {
    const int64_t own = (v.diagonal + i) / kLanes * kLanes;
    weights_of_row<Kernel, T, false>(v, i, 0, own, sums);
    weights_of_row<Kernel, T, true>(v, i, own, begin = own + kLanes, sums);
  }
  weights_of_row<Kernel, T, false>(v, i, begin, v.columns, sums);
  const auto add = [i](T* to, Vec<T> value) {
    store(to + i * kTileAlign, load(to + i * kTileAlign) + value);
  };
  add(v.value_sums, sums.values);
  add(v.slope_sums, sums.slopes);
  add(v.near_sums, sums.nears);
  if (v.far_sums) add(v.far_sums, sums.fars);
}

template <typename Kernel, typename T>
void all_weights(const MmdVisit<T>& v) {
  for (int64_t i = 0; i < v.rows; ++i) {
    if (!v.scaled) {
      weights_of_row<Kernel, T>(v, i);
      continue;
    }
    const RowOfScales<T> row(v, i);
    for (int64_t j = 0; j < v.columns; j += Simd<T>::kLanes)
      weight_of_scales<Kernel, T, false>(v, row, j, load(row.w + j));
  }
}

template <typename T>
void visit(const MmdVisit<T>& v) {
  v.differences ? all_exponents<T, true>(v) : all_exponents<T, false>(v);
  with_family(v.kernel, [&](auto family) {
    // The Gaussian has a kernel of its own (mmd_kernel.cpp).
    using Family = decltype(family);
    if constexpr (Family::kKernel != Kernel::gaussian) all_weights<OfExponent<Family>, T>(v);
  });
  if (v.with_rows) all_rows(v);
  if (v.with_columns) all_columns(v);
}

}  // namespace

namespace CGM_FAST_ISA {
extern const FamilyKernels<float> family_kernels_float = {visit<float>};
extern const FamilyKernels<double> family_kernels_double = {visit<double>};
}  // namespace CGM_FAST_ISA

}  // namespace cgm_fast
