// From exponents to what pairs weigh, for every radial kernel; see mmd_kernel.h. Included by
// kernels that are compiled once per instruction set.
//
// A kernel is a function of the exponent e: less_one_where_near() gives k - k(0) in near lanes and
// k in others, the slope -2 h dk/du, and which lanes are near; shifted(), both less 1.
#pragma once

#include "cpu/mmd_kernel.h"
#include "cpu/products.h"

namespace cgm_fast {
namespace {

// A radial kernel as a function of the exponent e: its value and its slope -2 h dk/du. For the
// Gaussian they are one.
struct Gaussian {
  // Both less 1.
  template <typename T>
  CGM_INLINE static void shifted(Vec<T> e, Vec<T>& value, Vec<T>& slope) {
    Vec<T> power, rest;
    split_exp2<T>(e, power, rest);
    slope = value = rest + (power - T(1));
  }

  // The value less 1 in near lanes, which are returned, and the slope.
  template <typename T>
  CGM_INLINE static auto less_one_where_near(Vec<T> e, Vec<T>& value, Vec<T>& slope) {
    const auto near = near_lanes(e);
    Vec<T> power, rest;
    split_exp2<T>(e, power, rest);
    value = rest + add_where(near, power, splat(T(-1)));
    slope = rest + power;
    return near;
  }
};

// Zeroes the lane of row i's pair with itself: its gradient vanishes, and where all other pairs are
// many bandwidths apart its rounding would be all there is.
template <typename T>
CGM_INLINE void leave_out_own(const MmdVisit<T>& v, int64_t i, int64_t j, Vec<T>& value) {
  const int64_t lane = v.diagonal + i - j;
  if (v.diagonal >= 0 && lane >= 0 && lane < Simd<T>::kLanes) value[lane] = T(0);
}

// A row of a visit with several bandwidths, or with derivatives in them.
template <typename T>
struct RowOfScales {
  int64_t i;
  T a_i, *w, *value_sums, *slope_sums, *far_values;

  CGM_INLINE RowOfScales(const MmdVisit<T>& v, int64_t i)
      : i(i),
        a_i(v.rows_weighted[i * v.features + v.d]),
        w(v.w + i * v.columns),
        value_sums(v.value_sums + i * kTileAlign),
        slope_sums(v.slope_sums + i * kTileAlign),
        far_values(v.far_values ? v.far_values + i * kTileAlign : nullptr) {}
};

// Such a row and a vector of columns with exponents e.
template <typename Kernel, typename T, bool kShifted>
CGM_INLINE void weight_of_scales(const MmdVisit<T>& v, const RowOfScales<T>& row, int64_t j,
                                 Vec<T> e) {
  constexpr T kLn2 = T(0.69314718055994530942), kShift = kShifted ? T(1) : T(0);
  const T a_i = row.a_i;
  Vec<T> own = splat(T(1));
  leave_out_own<T>(v, row.i, j, own);
  const Vec<T> a_j = load(v.column_weight + j) * own;
  Vec<T> values = {}, slopes = {};
  for (int64_t s = 0; s < v.scales; ++s) {
    const Vec<T> exponent = e * v.ratio[s];
    Vec<T> value, slope;
    if (kShifted) {
      Kernel::template shifted<T>(exponent, value, slope);
    } else {
      const auto near = Kernel::template less_one_where_near<T>(exponent, value, slope);
      T* nears = v.near_of_scale + s * kTileAlign;
      const Vec<T> pair = a_i * a_j;
      store(nears, add_where(near, load(nears), pair));
      if (v.far_of_scale) {
        T* fars = v.far_of_scale + s * kTileAlign;
        store(fars, load(fars) + add_where(near, pair, -pair));
      }
      if (row.far_values) {
        const Vec<T> weight = v.value_weight[s] * a_j;
        store(row.far_values, load(row.far_values) + add_where(near, weight, -weight));
      }
    }
    values += value * v.value_weight[s];
    slopes += slope * v.slope_weight[s];
    if (v.with_variance) {
      T* sums = v.variance_sums + s * kTileAlign;
      store(sums, load(sums) + exponent * (slope + kShift) * (-kLn2 * a_i) * a_j);
    }
  }
  store(row.value_sums, load(row.value_sums) + values * a_j);
  store(row.slope_sums, load(row.slope_sums) + slopes * a_j);
  store(row.w + j, slopes * own);
}

}  // namespace
}  // namespace cgm_fast
