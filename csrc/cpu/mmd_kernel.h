// One visit of the fast MMD² pass: a block of rows against a tile of columns.
//
// The driver (mmd.cpp) lays the data out and calls; the kernel (mmd_kernel.cpp) is compiled once
// per instruction set. The kernel is 2^e. Coordinates are centred and scaled: e_ij = -|z_i - z_j|^2
// / 2 for the first bandwidth, as bias_i + bias_j + z_i . z_j; or, where the data is wide and that
// would cancel, e_ij = -|z_i - z_j|^2.
#pragma once

#include "cpu/block.h"
#include "kernels.h"

namespace cgm_fast {

template <typename T>
struct MmdVisit : Block<T> {
  Kernel kernel;
  const T* column_weight;  // [columns]: a_j

  // Bandwidths: exponents e * ratio, weights of each k in the loss and in its slope -2 h_0 dk/du.
  // Not `scaled`: there is one, of weight 1, and no derivative in it.
  bool scaled;
  int64_t scales;
  const T* ratio;         // [scales], h_0 / h_s
  const T* value_weight;  // [scales], kernel weight
  const T* slope_weight;  // [scales], kernel weight times h_0 / h_s

  int64_t diagonal;  // column of row 0's own pair, which is left out; negative: not among these
  bool shifted;      // slopes are less 1, as values always are
  bool differences;  // distances by plain differences: the data is many bandwidths wide
  bool with_rows, with_columns, with_variance;

  // [kBlockRows, kTileAlign]: per row, lanes of sum_j a_j (k - 1); where not `shifted`, of k itself
  // for far pairs, those of k < 1/2. Weights of near pairs are then added up apart:
  T* value_sums;
  T* near_sums;      // per row, lanes of sum_j a_j over near pairs; not `shifted` nor `scaled`
  T* slope_sums;     // per row, lanes of sum_j a_j slope; `scaled`, or not the Gaussian
  T* near_of_scale;  // [scales, kTileAlign]: lanes of sum_ij a_i a_j over near pairs; `scaled`
  T* far_values;     // per row, lanes of sum_s kernel weight sum_j a_j over far pairs; or null
  // The same as near_sums and near_of_scale for far pairs, where rows have weights of their own;
  // else null, and far pairs are all others.
  T *far_sums, *far_of_scale;
  T* variance_sums;  // [scales, kTileAlign]: lanes of sum_ij a_i a_j t k_s, t = u / 2h_s
};

template <typename T>
struct MmdKernels {
  void (*visit)(const MmdVisit<T>&);
  // Flush to double: out[i] += factor * from[i], [count], which become 0.
  void (*flush)(T* from, int64_t count, double factor, double* out);
  // out[i] += factor * the sum of lanes[i], [count, kTileAlign], which become 0.
  void (*flush_lanes)(T* lanes, int64_t count, double factor, double* out);
};

// The same visit with other kernels than the Gaussian (mmd_family_kernel.cpp).
template <typename T>
struct FamilyKernels {
  void (*visit)(const MmdVisit<T>&);
};

// The kernels in the best instruction set that this processor has.
template <typename T>
const MmdKernels<T>& mmd_kernels();
template <typename T>
const FamilyKernels<T>& family_kernels();

}  // namespace cgm_fast
