// MMD²'s Hessian-vector product for many features; see mmd_wide_hvp_kernel.h. Compiled once per
// instruction set.
//
// Seven matrix products of two tiles: <z_i, z_j>; <z_i, t_j> + <t_i, z_j>; and p' z + p t for
// the rows and for the columns. Those with tangents that are 0 are left out.
#include "cpu/mmd_wide_hvp_kernel.h"

#include "cpu/block.h"
#include "cpu/mmd_hvp_pair.h"
#include "cpu/wide_products.h"

namespace cgm_fast {
namespace {

template <typename T>
struct HvpRowSums {
  Vec<T> p, p_dot, weights, relation;
};

template <typename Family, typename T>
CGM_INLINE void add_pair(const WideHvpVisit<T>& v, const HvpScales<T>& scales, int64_t i, int64_t j,
                         Vec<T> own, HvpRowSums<T>& sums) {
  T* w = v.scratch.w + i * kWideStride + j;
  T* w_dot = v.w_dot + i * kWideStride + j;
  const WideHvpSide<T>& columns = v.columns;
  const Vec<T> u =
      at_least(v.rows.squares[i] + load(columns.squares + j) - T(2) * load(w), Vec<T>{}) * v.unit;
  const Vec<T> u_dot =
      (v.rows.products[i] + load(columns.products + j) - load(w_dot)) * (T(2) * v.unit);
  const T w_i = v.rows.w[i], w_i_dot = v.rows.w_dot[i];
  const Vec<T> w_j = load(columns.w + j) * own, w_j_dot = load(columns.w_dot + j) * own;
  const Vec<T> ww = w_i * w_j, ww_dot = w_i_dot * w_j + w_i * w_j_dot;
  const HvpWeights<T> by = {v.relation * ww, v.relation * ww_dot + v.relation_dot * ww};
  const HvpPair<T> pair = hvp_pair<Family, T>(scales, by, u, u_dot);
  store(w, pair.p);
  store(w_dot, pair.p_dot);
  sums.p += pair.p;
  sums.p_dot += pair.p_dot;
  sums.weights +=
      (v.relation_dot * w_j + v.relation * w_j_dot) * pair.less + v.relation * w_j * pair.less_dot;
  sums.relation += ww_dot * pair.less + ww * pair.less_dot;
  T *of_p = v.of_columns + j, *of_dot = of_p + kWideTile, *of_weights = of_dot + kWideTile;
  store(of_p, load(of_p) + pair.p);
  store(of_dot, load(of_dot) + pair.p_dot);
  const T by_less = v.relation_dot * w_i + v.relation * w_i_dot, by_dot = v.relation * w_i;
  store(of_weights, load(of_weights) + (by_less * pair.less + by_dot * pair.less_dot));
}

template <typename Family, typename T>
void add_pairs(const WideHvpVisit<T>& v) {
  constexpr int kLanes = Simd<T>::kLanes;
  const HvpScales<T> scales = {v.scales, v.variance, v.variance_dot, v.kernel_weight,
                               v.with_variance ? v.of_scales : nullptr};
  __builtin_memset(v.of_columns, 0, 3 * kWideTile * sizeof(T));
  __builtin_memset(v.of_scales, 0, v.scales * kTileAlign * sizeof(T));
  const double times = v.own ? 1 : 2;
  const Vec<T> one = splat(T(1));
  for (int64_t i = 0; i < v.rows.z.rows; ++i) {
    HvpRowSums<T> sums = {};
    for (int64_t j = 0; j < v.columns.z.rows; j += kLanes) {
      Vec<T> own = one;
      if (v.own && j <= i && i < j + kLanes) own[i - j] = T(0);
      add_pair<Family, T>(v, scales, i, j, own, sums);
    }
    v.rows.of_p[i] += in_double<T>(sums.p);
    v.rows.of_dot[i] += in_double<T>(sums.p_dot);
    v.rows.weights[i] += in_double<T>(sums.weights);
    *v.relation_sum += times * in_double<T>(sums.relation);
  }
  for (int64_t s = 0; v.with_variance && s < v.scales; ++s)
    v.variance_sums[s] += times * sum_of_lanes(widen_all(v.of_scales + s * kTileAlign));
  if (v.own) return;  // every order of a pair was its row's
  for (int64_t j = 0; j < v.columns.z.rows; ++j) {
    v.columns.of_p[j] += double(v.of_columns[j]);
    v.columns.of_dot[j] += double(v.of_columns[kWideTile + j]);
    v.columns.weights[j] += double(v.of_columns[2 * kWideTile + j]);
  }
}

template <typename T>
void visit(const WideHvpVisit<T>& v) {
  const WideHvpSide<T>&rows = v.rows, &columns = v.columns;
  const WideScratch<T> dot = {v.w_dot, v.scratch.packed};
  wide_exponents<T, false>(rows.z, columns.z, v.d, v.scratch);
  if (columns.moves || !rows.moves) wide_exponents<T, false>(rows.z, columns.t, v.d, dot);
  if (rows.moves) wide_exponents<T, false>(rows.t, columns.z, v.d, dot, columns.moves);
  with_family(v.kernel, [&](auto family) {
    // Where there is a kink there is no second derivative: callers have refused.
    using Family = decltype(family);
    if constexpr (!has_kink(Family::kKernel)) add_pairs<Family, T>(v);
  });
  const T *w = v.scratch.w, *w_dot = v.w_dot;
  add_wide_rows<T, kWideStride, 1>(w_dot, rows.begin, rows.end, columns.z, v.d, rows.sums);
  if (columns.moves)
    add_wide_rows<T, kWideStride, 1>(w, rows.begin, rows.end, columns.t, v.d, rows.sums);
  if (v.own) return;
  add_wide_rows<T, 1, kWideStride>(w_dot, columns.begin, columns.end, rows.z, v.d, columns.sums);
  if (rows.moves)
    add_wide_rows<T, 1, kWideStride>(w, columns.begin, columns.end, rows.t, v.d, columns.sums);
}

}  // namespace

namespace CGM_FAST_ISA {
extern const WideHvpKernels<float> wide_hvp_kernels_float = {visit<float>};
extern const WideHvpKernels<double> wide_hvp_kernels_double = {visit<double>};
}  // namespace CGM_FAST_ISA

}  // namespace cgm_fast
