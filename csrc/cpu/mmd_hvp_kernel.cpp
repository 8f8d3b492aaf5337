// The Hessian-vector product of MMD² over a block of pairs; see mmd_hvp_kernel.h. Compiled once per
// instruction set.
#include "cpu/mmd_hvp_kernel.h"

#include "cpu/mmd_hvp_pair.h"
#include "cpu/products.h"
#include "cpu/radial.h"

namespace cgm_fast {
namespace {

constexpr int kRows = 2, kVectors = 2;  // in registers: twice that many sums, and their operands

// What a pair adds up, for one row and one vector of columns.
template <typename Family, typename T>
CGM_INLINE void add_pair(const HvpVisit<T>& v, int64_t i, int64_t j, Vec<T> u, Vec<T> u_dot) {
  const T w_i = v.row_w[i], w_i_dot = v.row_w_dot[i];
  const T relation = v.relation, relation_dot = v.relation_dot;
  const Vec<T> w_j = load(v.column_w + j), w_j_dot = load(v.column_w_dot + j);
  const Vec<T> ww = w_i * w_j, ww_dot = w_i_dot * w_j + w_i * w_j_dot;
  const HvpScales<T> scales = {v.scales, v.variance, v.variance_dot, v.kernel_weight,
                               v.with_variance ? v.variance_sums : nullptr};
  const HvpWeights<T> by = {relation * ww, relation * ww_dot + relation_dot * ww};
  HvpPair<T> pair = hvp_pair<Family, T>(scales, by, u, u_dot);
  const int64_t own = v.diagonal + i - j;
  if (v.diagonal >= 0 && own >= 0 && own < Simd<T>::kLanes) pair.p[own] = pair.p_dot[own] = T(0);
  store(v.w + i * v.columns + j, pair.p);
  store(v.w_dot + i * v.columns + j, pair.p_dot);
  T* lanes = v.lanes + i * 3 * kTileAlign;
  store(lanes, load(lanes) + pair.p_dot);
  store(lanes + kTileAlign, load(lanes + kTileAlign) + pair.p);
  const Vec<T> inside =
      (relation_dot * w_j + relation * w_j_dot) * pair.less + relation * w_j * pair.less_dot;
  store(lanes + 2 * kTileAlign, load(lanes + 2 * kTileAlign) + inside);
  if (v.with_relation)
    store(v.relation_sums, load(v.relation_sums) + (ww_dot * pair.less + ww * pair.less_dot));
}

template <typename Family, typename T, int C>
CGM_INLINE void pairs_of_rows(const HvpVisit<T>& v, int64_t i, int64_t j) {
  constexpr int kLanes = Simd<T>::kLanes;
  Vec<T> u[kRows][C], u_dot[kRows][C];
  CGM_UNROLL for (int r = 0; r < kRows; ++r) CGM_UNROLL for (int c = 0; c < C; ++c) u[r][c] =
      u_dot[r][c] = Vec<T>{};
  const T *z = v.rows_z + i * v.features, *t = v.rows_t + i * v.features;
  const T *panel = v.panel + j, *panel_t = v.panel_t + j;
  for (int64_t f = 0; f < v.d; ++f, panel += v.stride, panel_t += v.stride) {
    CGM_UNROLL for (int c = 0; c < C; ++c) {
      const Vec<T> z_j = load(panel + c * kLanes), t_j = load(panel_t + c * kLanes);
      CGM_UNROLL for (int r = 0; r < kRows; ++r) {
        const Vec<T> difference = z[r * v.features + f] - z_j;
        u[r][c] += difference * difference;
        u_dot[r][c] += difference * (t[r * v.features + f] - t_j);
      }
    }
  }
  for (int r = 0; r < kRows; ++r)
    for (int c = 0; c < C; ++c)
      add_pair<Family, T>(v, i + r, j + c * kLanes, u[r][c] * v.unit,
                          u_dot[r][c] * (T(2) * v.unit));
}

template <typename Family, typename T>
void pairs_of_family(const HvpVisit<T>& v) {
  constexpr int kLanes = Simd<T>::kLanes;
  for (int64_t i = 0; i < v.rows; i += kRows) {
    int64_t j = 0;
    for (; j + kVectors * kLanes <= v.columns; j += kVectors * kLanes)
      pairs_of_rows<Family, T, kVectors>(v, i, j);
    for (; j < v.columns; j += kLanes) pairs_of_rows<Family, T, 1>(v, i, j);
  }
}

template <typename T>
void pairs(const HvpVisit<T>& v) {
  with_family(v.kernel, [&](auto family) {
    // Where there is a kink there is no second derivative: callers have refused.
    using Family = decltype(family);
    if constexpr (!has_kink(Family::kKernel)) pairs_of_family<Family, T>(v);
  });
}

template <typename T>
void add_rows(const Block<T>& block) {
  all_rows(block);
}

template <typename T>
constexpr HvpKernels<T> kernels = {pairs<T>, add_rows<T>, flush<T>, flush_lanes<T>};

}  // namespace

namespace CGM_FAST_ISA {
extern const HvpKernels<float> hvp_kernels_float = kernels<float>;
extern const HvpKernels<double> hvp_kernels_double = kernels<double>;
}  // namespace CGM_FAST_ISA

}  // namespace cgm_fast
