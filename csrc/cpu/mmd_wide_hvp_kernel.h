// One visit of MMD²'s Hessian-vector product for many features: two tiles of rows
// (mmd_wide_hvp.cpp drives it). p and p' are those of mmd_hvp_kernel.h, and symmetric in a pair.
#pragma once

#include "cpu/wide.h"
#include "kernels.h"

namespace cgm_fast {

// One of the two tiles.
template <typename T>
struct WideHvpSide {
  WideTile<T> z, t;       // coordinates and tangents
  const T* squares;       // [rows], |z_i|^2
  const T* products;      // [rows], <z_i, t_i>
  const T *w, *w_dot;     // [rows], weights and their derivatives
  bool moves;             // whether a tangent of these rows is other than 0
  int64_t begin, end;     // rows whose derivative is wanted
  T* sums;                // [end - begin, d], to which sum_j p'_ij z_j + p_ij t_j is added
  double *of_p, *of_dot;  // [rows], to which sum_j p_ij and sum_j p'_ij are
  double* weights;        // [rows], to which half of dL/dw_i is
};

template <typename T>
struct WideHvpVisit {
  Kernel kernel;
  int64_t d;
  WideHvpSide<T> rows, columns;
  bool own;                  // a tile with itself: every ordered pair i != j, for the rows' sums
  T relation, relation_dot;  // of the two groups, and its derivative
  T unit;                    // u in the caller's units, over u of the coordinates here
  int64_t scales;            // as in mmd_hvp_kernel.h
  const T *variance, *variance_dot, *kernel_weight;
  bool with_variance;

  WideScratch<T> scratch;
  T* w_dot;       // as scratch.w
  T* of_columns;  // [3, kWideTile], scratch
  T* of_scales;   // [scales, lanes], scratch

  // What is added to, sums over both orders of the pairs: the derivatives in each h, and in the
  // relation of the two groups.
  double* variance_sums;  // [scales]
  double* relation_sum;
};

template <typename T>
struct WideHvpKernels {
  void (*visit)(const WideHvpVisit<T>&);
};

template <typename T>
const WideHvpKernels<T>& wide_hvp_kernels();

}  // namespace cgm_fast
