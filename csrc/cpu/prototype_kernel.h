// The kernels of prototype_margin: a block of samples against a tile of prototypes. Compiled once
// per instruction set (prototype_kernel.cpp); the driver is prototype_margin.cpp.
#pragma once

#include "cpu/block.h"

namespace cgm_fast {

template <typename T>
struct PrototypeKernels {
  // block.w = |z_i - z_j|^2, from plain differences: equal prototypes are equally far, to the bit.
  void (*distances)(const Block<T>& block);
  // The lowest index of the least of u [count]; `least` comes with the least so far, and with its
  // index, and is replaced where u has less.
  void (*nearest)(const T* u, int64_t count, int64_t first, T& least, int64_t& index);
  // The sum of margin - u over those of u [count] that are less than margin, whose number is added
  // to `within`; without column `own`, if that is one of them.
  double (*hinge)(const T* u, int64_t count, int64_t own, T margin, int64_t& within);
  // u becomes 1 in the columns that hinge() sums, 0 in all others up to `columns`.
  void (*activate)(T* u, int64_t columns, int64_t count, int64_t own, T margin);
  // With a - b [d], in double: out = factor * (a - b) and sum += a - b, where these are not null.
  void (*pair)(const T* a, const T* b, int64_t d, double factor, T* out, double* sum);
  // out [d] += factor * (within * value - sums).
  void (*push)(const T* value, const double* sums, int64_t d, double within, double factor, T* out);
  // block.row_values and block.column_values += the products of block.w, as in mmd_kernel.cpp.
  void (*products)(const Block<T>& block, bool with_rows, bool with_columns);
  void (*flush)(T* from, int64_t count, double factor, double* out);
  void (*flush_lanes)(T* lanes, int64_t count, double factor, double* out);
};

// The kernels in the best instruction set that this processor has.
template <typename T>
const PrototypeKernels<T>& prototype_kernels();

}  // namespace cgm_fast
