// The Hessian-vector product of MMD²: a block of rows against a tile of columns. Compiled once per
// instruction set (mmd_hvp_kernel.cpp); the driver is mmd_hvp.cpp.
//
// With u_ij = |z_i - z_j|^2, its derivative along the tangents u'_ij = 2 <z_i - z_j, t_i - t_j>,
// and c_ij = relation w_i w_j, the pass needs of every pair
//   p  = c dk/du                       which multiplies t_i - t_j, and
//   p' = c' dk/du + c (dk/du)'         which multiplies z_i - z_j,
// a prime standing for the derivative along the tangents of everything.
#pragma once

#include "cpu/block.h"
#include "kernels.h"

namespace cgm_fast {

template <typename T>
struct HvpVisit : Block<T> {
  Kernel kernel;
  const T* rows_t;                   // [rows, features]: t_i, beside rows_z
  const T* panel_t;                  // [d, stride]: t_j, transposed
  const T *row_w, *row_w_dot;        // [rows]: w_i and its derivative
  const T *column_w, *column_w_dot;  // [columns]
  T relation, relation_dot;          // of the rows' and the columns' groups, and its derivative
  bool with_variance, with_relation;
  int64_t diagonal;  // column of row 0's own pair, which is left out; negative: not among these
  T unit;            // u in the caller's units, over u of the coordinates here

  int64_t scales;
  const T* variance;       // [scales], h
  const T* variance_dot;   // [scales], its derivative
  const T* kernel_weight;  // [scales]

  T* w_dot;  // [rows, columns], p'; block.w holds p
  T* lanes;  // [rows, 3, kTileAlign]: lanes of the sums over columns of p', p and half of dL/dw_i
  T* variance_sums;  // [scales, kTileAlign]: lanes of the derivatives in each h
  T* relation_sums;  // [kTileAlign]: lanes of the derivative in the relation
};

template <typename T>
struct HvpKernels {
  void (*pairs)(const HvpVisit<T>&);
  // row_values += w z for the weights and the columns that the block names.
  void (*add_rows)(const Block<T>&);
  void (*flush)(T* from, int64_t count, double factor, double* out);
  void (*flush_lanes)(T* lanes, int64_t count, double factor, double* out);
};

// The kernels in the best instruction set that this processor has.
template <typename T>
const HvpKernels<T>& hvp_kernels();

}  // namespace cgm_fast
