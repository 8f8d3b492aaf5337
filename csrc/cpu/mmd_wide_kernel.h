// One visit of the MMD² pass for many features: two tiles of rows (mmd_wide.cpp drives it).
#pragma once

#include "cpu/wide.h"
#include "kernels.h"

namespace cgm_fast {

// One of the two tiles.
template <typename T>
struct MmdWideSide : WideTile<T> {
  const T* bias;       // [rows]: -|z_i|^2 / 2
  const T* weight;     // [rows]: a_i; padding weighs 0
  int64_t begin, end;  // rows whose gradient is wanted
  T* gradient;         // [end - begin, d], to which sum_j w_ij z_j is added; see `relation`
  double* slopes;      // [rows], to which sum_j w_ij is
  double* values;      // [rows], to which relation sum_j a_j (k_ij - 1) is; or null
};

template <typename T>
struct MmdWideVisit {
  Kernel kernel;
  int64_t d;
  MmdWideSide<T> rows, columns;
  bool own;         // a tile with itself: every ordered pair i != j, for the rows' sums
  double relation;  // of the two groups; a pair weighs w_ij = relation a_i a_j slope_ij

  int64_t scales;         // bandwidths, as in mmd_kernel.h
  const T* ratio;         // [scales]
  const T* value_weight;  // [scales]
  const T* slope_weight;  // [scales]
  bool shifted, differences, with_variance;

  WideScratch<T> scratch;
  T* of_columns;  // [2, kWideTile], scratch: sums of the columns
  T* of_scales;   // [3, scales, lanes], scratch

  // What is added to: sums of both orders of the pairs, of a_i a_j times k - k(0), or k of far
  // pairs where not `shifted`; of a_i a_j over near and far ones; and of relation a_i a_j t k_s.
  double* small;
  double *near, *far;  // [scales]; null: not wanted
  double* variance;    // [scales]
};

template <typename T>
struct MmdWideKernels {
  void (*visit)(const MmdWideVisit<T>&);
};

template <typename T>
const MmdWideKernels<T>& mmd_wide_kernels();

}  // namespace cgm_fast
