// The kernels of prototype_wide.cpp. Compiled once per instruction set.
#pragma once

#include "cpu/wide.h"

namespace cgm_fast {

template <typename T>
struct PrototypeWideKernels {
  // scratch.w = the products of a tile of samples and a tile of prototypes.
  void (*products)(const WideTile<T>& r, const WideTile<T>& g, int64_t d,
                   const WideScratch<T>& scratch);
  // Turns products w [count, and padding] of one sample into what distances are at least: |r|^2 +
  // |g|^2 less `slack` of it and two products. Returns where the least is.
  int64_t (*bounds)(T* w, const T* squares_g, int64_t count, T squares_r, T slack);
  // Writes the columns of w [count] that are not at least `limit`, NaNs among them; their number.
  int64_t (*below)(const T* w, int64_t count, T limit, int* columns);
  // |a - b|^2, in double and then rounded.
  T (*distance)(const T* a, const T* b, int64_t d);
};

template <typename T>
const PrototypeWideKernels<T>& prototype_wide_kernels();

}  // namespace cgm_fast
