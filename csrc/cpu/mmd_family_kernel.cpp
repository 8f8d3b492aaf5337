// The visit of mmd_kernel.cpp with other kernels than the Gaussian: the same two products, and an
// exponent that becomes t, by plain differences, lest every family be compiled twice. Compiled once
// per instruction set.
#include "cpu/mmd_weights.h"
#include "cpu/radial.h"

namespace cgm_fast {
namespace {

// A family as a kernel of exponents, e = -t log2(e).
template <typename Family>
struct OfExponent {
  template <typename T>
  CGM_INLINE static auto less_one_where_near(Vec<T> e, Vec<T>& value, Vec<T>& slope) {
    // Finite, lest a vanished kernel becomes NaN; and not below 0, where rounding may leave it.
    const Vec<T> largest = splat(sizeof(T) == 4 ? T(1e30) : T(1e300));
    const Vec<T> t = at_least(at_least(e, -largest) * T(-0.69314718055994530942), Vec<T>{});
    const Radial<T> k = Family::template at<T>(t);
    constexpr bool kVanishes = vanishes(Family::kKernel);
    const auto near = near_lanes(kVanishes ? k.less + k.less : Vec<T>{});
    value = kVanishes ? select(near, k.less, k.whole) : k.less;
    slope = k.slope;
    return near;
  }

  template <typename T>
  CGM_INLINE static void shifted(Vec<T>, Vec<T>&, Vec<T>&) {}  // the Gaussian's alone
};

// Step 1 for 4 rows and C vectors of columns, of one bandwidth.
template <typename Kernel, typename T, int C>
CGM_INLINE void weights_of_family(const MmdVisit<T>& v, int64_t i, int64_t j, int64_t begin,
                                  int64_t end) {
  constexpr int kLanes = Simd<T>::kLanes;
  Vec<T> e[kR][C];
  exponents<T, C, true>(v, i, j, begin, end, e);
  CGM_UNROLL for (int r = 0; r < kR; ++r) {
    T* w = v.w + (i + r) * v.columns + j;
    T* values = v.value_sums + (i + r) * kTileAlign;
    T* slopes = v.slope_sums + (i + r) * kTileAlign;
    T* nears = v.near_sums + (i + r) * kTileAlign;
    T* fars = v.far_sums ? v.far_sums + (i + r) * kTileAlign : nullptr;
    CGM_UNROLL for (int c = 0; c < C; ++c) {
      if (end < v.d) {
        store(w + c * kLanes, e[r][c]);
        continue;
      }
      Vec<T> value, slope, weight = load(v.column_weight + j + c * kLanes);
      leave_out_own<T>(v, i + r, j + c * kLanes, weight);
      const auto near = Kernel::template less_one_where_near<T>(e[r][c], value, slope);
      leave_out_own<T>(v, i + r, j + c * kLanes, slope);
      store(values, load(values) + value * weight);
      store(slopes, load(slopes) + slope * weight);
      store(nears, add_where(near, load(nears), weight));
      if (fars) store(fars, load(fars) + add_where(near, weight, -weight));
      store(w + c * kLanes, slope);
    }
  }
}

template <typename Kernel, typename T>
void all_weights(const MmdVisit<T>& v) {
  if (v.scaled)
    each_register_block<1>(v, [&](auto vectors, int64_t i, int64_t j, int64_t begin,
                                  int64_t end) __attribute__((always_inline)) {
      constexpr int C = decltype(vectors)::kCount;
      weights_of_scales<Kernel, T, C, true, false>(v, i, j, begin, end);
    });
  else
    each_register_block<2>(v, [&](auto vectors, int64_t i, int64_t j, int64_t begin, int64_t end)
                                  __attribute__((always_inline)) {
                                    constexpr int C = decltype(vectors)::kCount;
                                    weights_of_family<Kernel, T, C>(v, i, j, begin, end);
                                  });
}

template <typename T>
void visit(const MmdVisit<T>& v) {
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
