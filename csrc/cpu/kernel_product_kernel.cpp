// One visit of K V and its derivatives: see kernel_product_kernel.h. Compiled once per instruction
// set.
//
// Three steps with a block's pairs in the first-level cache between them: exponents and <u_i, v_j>,
// which are matrix products; the kernel, one function of each family; and the sums over columns,
// matrix products again (products.h).
#include "cpu/kernel_product_kernel.h"

#include "cpu/products.h"
#include "cpu/radial.h"

namespace cgm_fast {
namespace {

// t >= 0 of an exponent of the first bandwidth, or of -|x - y|^2. Finite, lest a vanished kernel
// becomes NaN.
template <typename T>
CGM_INLINE Vec<T> argument(Vec<T> e, T ratio) {
  const Vec<T> largest = splat(sizeof(T) == 4 ? T(1e30) : T(1e300));
  return at_least(-at_least(e * ratio, -largest), Vec<T>{});
}

// The kernel of all pairs. kSlopes: what derivatives need besides its values.
template <typename Family, typename T, bool kSlopes>
CGM_INLINE void kernel_of_pairs(const KernelProductVisit<T>& v) {
  constexpr int kLanes = Simd<T>::kLanes;
  const int64_t columns = v.coordinates.columns;
  for (int i = 0; i < v.coordinates.rows; ++i) {
    T *k = v.coordinates.w + i * columns, *s = v.values.w + i * columns;
    Vec<T> sum = {};
    for (int64_t j = 0; j < columns; j += kLanes) {
      const Vec<T> e = load(k + j);
      Vec<T> value = {}, slope = {}, pair = {};
      if constexpr (kSlopes) pair = load(s + j);
      for (int64_t scale = 0; scale < v.scales; ++scale) {
        const Vec<T> t = argument<T>(e, v.ratio[scale]);
        const Radial<T> of = Family::template at<T>(t);
        value += of.whole * v.value_weight[scale];
        if constexpr (kSlopes) {
          slope += of.slope * v.slope_weight[scale];
          if (!v.with_variance) continue;
          T* sums = v.variance_sums + scale * kTileAlign;
          store(sums, load(sums) + pair * (t * of.slope));
        }
      }
      if (v.with_product) store(k + j, value);
      if constexpr (kSlopes) {
        const Vec<T> weight = pair * slope;
        sum += weight;
        store(s + j, weight);
      }
    }
    if constexpr (kSlopes) {
      T* sums = v.slope_sums + i * kTileAlign;
      store(sums, load(sums) + sum);
    }
  }
}

template <typename T>
void visit(const KernelProductVisit<T>& v) {
  const bool slopes = v.with_x || v.with_variance;
  v.differences ? all_exponents<T, true>(v.coordinates) : all_exponents<T, false>(v.coordinates);
  if (slopes) all_exponents<T, false>(v.values);
  with_family(v.kernel, [&](auto family) {
    using Family = decltype(family);
    slopes ? kernel_of_pairs<Family, T, true>(v) : kernel_of_pairs<Family, T, false>(v);
  });
  if (v.with_product) {
    Block<T> block = v.values;
    block.w = v.coordinates.w;
    all_rows(block);
  }
  if (v.with_x) {
    Block<T> block = v.coordinates;
    block.w = v.values.w;
    v.differences ? all_rows<T, true>(block) : all_rows(block);
  }
}

template <typename T>
constexpr KernelProductKernels<T> kernels = {visit<T>, flush<T>, flush_lanes<T>};

}  // namespace

namespace CGM_FAST_ISA {
extern const KernelProductKernels<float> kernel_product_kernels_float = kernels<float>;
extern const KernelProductKernels<double> kernel_product_kernels_double = kernels<double>;
}  // namespace CGM_FAST_ISA

}  // namespace cgm_fast
