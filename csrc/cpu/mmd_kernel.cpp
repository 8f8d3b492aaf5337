// The fast MMD² visit; see mmd_kernel.h. Compiled once per instruction set, as
// cgm_fast::CGM_FAST_ISA::mmd_kernels_float and _double.
//
// Three small matrix products and an exponential, on data that stays in L1 and L2:
//   1. e = bias_i + bias_j + z_i . z_j, w = slope of the kernel at e: registers hold 4 rows by 4
//      vectors of columns, one load of a panel serves 4 rows;
//   2. row_values += w (a z) (rows of the block);
//   3. column_values += w^T (a z) (columns of the tile), for pairs visited once for both orders.
#include "cpu/mmd_kernel.h"

#include "cpu/mmd_weights.h"

namespace cgm_fast {
namespace {

// What exponents are turned into: k - 1 for all pairs, or for near ones only, whose weights are
// then added up; or those of far pairs as well.
enum class Less { all, near, near_and_far };

// Step 1 for 4 rows and C vectors of columns, up to feature `end`.
template <typename Kernel, typename T, int C, bool kDifferences, bool kDiagonal, Less kLess>
CGM_INLINE void weights(const MmdVisit<T>& v, int64_t i, int64_t j, int64_t begin, int64_t end) {
  constexpr int kLanes = Simd<T>::kLanes;
  Vec<T> e[kR][C];
  exponents<T, C, kDifferences>(v, i, j, begin, end, e);
  if (end < v.d) {
    CGM_UNROLL for (int r = 0; r < kR; ++r) CGM_UNROLL for (int c = 0; c < C; ++c)
        store(v.w + (i + r) * v.columns + j + c * kLanes, e[r][c]);
    return;
  }
  constexpr bool kShifted = kLess == Less::all, kFar = kLess == Less::near_and_far;
  Vec<T> a_j[C];
  CGM_UNROLL for (int c = 0; c < C; ++c) a_j[c] = load(v.column_weight + j + c * kLanes);
  CGM_UNROLL for (int r = 0; r < kR; ++r) {
    T* values = v.value_sums + (i + r) * kTileAlign;
    T* nears = v.near_sums + (i + r) * kTileAlign;
    T* w = v.w + (i + r) * v.columns + j;
    T* fars = kFar ? v.far_sums + (i + r) * kTileAlign : nullptr;
    Vec<T> value_sum = load(values), near_sum = Vec<T>{}, far_sum = Vec<T>{};
    if (!kShifted) near_sum = load(nears);
    if (kFar) far_sum = load(fars);
    CGM_UNROLL for (int c = 0; c < C; ++c) {
      Vec<T> value, slope, weight = a_j[c];
      if (kDiagonal) leave_out_own<T>(v, i + r, j + c * kLanes, weight);
      if (kShifted) {
        Kernel::template shifted<T>(e[r][c], value, slope);
      } else {
        const auto near = Kernel::template less_one_where_near<T>(e[r][c], value, slope);
        near_sum = add_where(near, near_sum, weight);
        if (kFar) far_sum += add_where(near, weight, -weight);
      }
      if (kDiagonal) leave_out_own<T>(v, i + r, j + c * kLanes, slope);
      value_sum += value * weight;
      store(w + c * kLanes, slope);
    }
    store(values, value_sum);
    if (!kShifted) store(nears, near_sum);
    if (kFar) store(fars, far_sum);
  }
}

// The same with several bandwidths, or with derivatives in them.
template <typename Kernel, typename T, int C, bool kDifferences, bool kShifted>
CGM_INLINE void weights_of_scales(const MmdVisit<T>& v, int64_t i, int64_t j, int64_t begin,
                                  int64_t end) {
  constexpr int kLanes = Simd<T>::kLanes;
  Vec<T> e[kR][C];
  exponents<T, C, kDifferences>(v, i, j, begin, end, e);
  for (int r = 0; r < kR; ++r) {
    const RowOfScales<T> row(v, i + r);
    for (int c = 0; c < C; ++c) {
      if (end < v.d)
        store(row.w + j + c * kLanes, e[r][c]);
      else
        weight_of_scales<Kernel, T, kShifted>(v, row, j + c * kLanes, e[r][c]);
    }
  }
}

enum class Step { plain, diagonal, scaled };

template <typename Kernel, typename T, bool kDifferences, Less kLess, Step kStep>
void all_weights(const MmdVisit<T>& v) {
  each_register_block(v, [&](auto vectors, int64_t i, int64_t j, int64_t begin,
                             int64_t end) __attribute__((always_inline)) {
    constexpr int C = decltype(vectors)::kCount;
    if constexpr (kStep == Step::scaled)
      weights_of_scales<Kernel, T, C, kDifferences, kLess == Less::all>(v, i, j, begin, end);
    else
      weights<Kernel, T, C, kDifferences, kStep == Step::diagonal, kLess>(v, i, j, begin, end);
  });
}

template <typename Kernel, typename T, bool kDifferences>
CGM_INLINE void weights_in_steps(const MmdVisit<T>& v) {
  if (v.scaled)
    v.shifted ? all_weights<Kernel, T, kDifferences, Less::all, Step::scaled>(v)
              : all_weights<Kernel, T, kDifferences, Less::near, Step::scaled>(v);
  else if (v.shifted)
    v.diagonal >= 0 ? all_weights<Kernel, T, kDifferences, Less::all, Step::diagonal>(v)
                    : all_weights<Kernel, T, kDifferences, Less::all, Step::plain>(v);
  else if (v.far_sums)  // with one instance: the diagonal costs little beside the weights
    all_weights<Kernel, T, kDifferences, Less::near_and_far, Step::diagonal>(v);
  else
    v.diagonal >= 0 ? all_weights<Kernel, T, kDifferences, Less::near, Step::diagonal>(v)
                    : all_weights<Kernel, T, kDifferences, Less::near, Step::plain>(v);
}

template <typename T>
void visit(const MmdVisit<T>& v) {
  if (v.differences)
    weights_in_steps<Gaussian, T, true>(v);
  else
    weights_in_steps<Gaussian, T, false>(v);
  if (v.with_rows) all_rows(v);
  if (v.with_columns) all_columns(v);
}

}  // namespace

namespace CGM_FAST_ISA {
extern const MmdKernels<float> mmd_kernels_float = {visit<float>, flush<float>, flush_lanes<float>};
extern const MmdKernels<double> mmd_kernels_double = {visit<double>, flush<double>,
                                                      flush_lanes<double>};
}  // namespace CGM_FAST_ISA

}  // namespace cgm_fast
