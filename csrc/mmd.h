// MMD² as a sum over pairs of rows: what every implementation computes, as plain structs. No torch,
// no Python. Their fields are those of Problem, Wanted and Tangent in cgm_fast/ops/mmd/problem.py.
//
// The rows of G groups are stacked, z = [x; y]. With row weights w and a symmetric relation [G, G]
// of the groups,
//   L = sum_{i != j} relation[g_i, g_j] w_i w_j (k(z_i, z_j) - k(0)),
//   k = sum_s kernel_weights[s] phi(|z_i - z_j|^2 / 2h_s).
// Subtracting k(0) changes L only by a constant that the caller knows, and keeps small values
// exact.
#pragma once

#include <cstdint>

#include "kernels.h"
#include "samples.h"

namespace cgm_fast {

template <typename T>
struct MmdProblem {
  int64_t batch, rows, d, groups, scales;
  Samples x, y;            // [batch, x_rows, d], and [batch, rows - x_rows, d]
  int64_t x_rows;          // rows of z that are in x
  const int64_t* begins;   // [groups + 1]: rows of z before each group, and all
  const T* weights;        // [batch, rows], or null for ones
  const double* relation;  // [batch, groups, groups]; or [groups, groups] where not `per_item`
  bool relation_per_item;
  const T* variance;        // [batch, scales], h = sigma^2 in squared units of the data, or null
  const double* variances;  // [scales], the same for every batch item where `variance` is null
  const double* kernel_weights;  // [scales]
  Kernel kernel;                 // phi

  // The relation of an item.
  const double* relation_of(int64_t item) const {
    return relation + (relation_per_item ? item * groups * groups : 0);
  }
};

// L, and its derivatives where they are wanted.
template <typename T>
struct MmdValue {
  int64_t row_begin, row_end;  // rows of z whose gradient is wanted; empty: none
  T* loss;                     // [batch]
  double* relation;  // [batch, groups, groups], sums of w_i w_j (k - k(0)) over i != j; or null
  T* z;              // [batch, row_end - row_begin, d], or null
  T* weights;        // [batch, rows], or null
  T* variance;       // [batch, scales], or null
};

// A direction in the space of all inputs; null: zero.
template <typename T>
struct MmdTangent {
  const T* z;              // [batch, rows, d]
  const T* weights;        // [batch, rows]
  const double* relation;  // [batch, groups, groups]
  const T* variance;       // [batch, scales]
};

// The Hessian of L times a tangent; null where it is not wanted.
template <typename T>
struct MmdProduct {
  int64_t row_begin, row_end;
  T* z;              // [batch, row_end - row_begin, d], or null
  T* weights;        // [batch, rows]
  double* relation;  // [batch, groups, groups]
  T* variance;       // [batch, scales]
};

template <typename T>
void mmd_fwd_cpu(const MmdProblem<T>& in, const MmdValue<T>& out, int threads);

template <typename T>
void mmd_hvp_cpu(const MmdProblem<T>& in, const MmdTangent<T>& tangent, const MmdProduct<T>& out,
                 int threads);

// What a GPU needs besides. There all pointers of the structs above are the device's, `variance` is
// given, and `variances` and `kernel_weights` are not read; no group has rows in x and in y.
template <typename T>
struct MmdDevice {
  const T* kernel_weights;  // [scales]
  bool weighted_kernel;     // whether a single bandwidth has a weight other than 1
  int64_t variance_item;    // from one batch item's variances to the next: scales, or 0
  int rows;         // of a block, which has rows of one group: a power of two from 4 to 32; 32 for
                    // mmd_hvp_cuda and kernels other than the Gaussian; or 128
  unsigned blocks;  // of an item: of every group ceil(its rows / rows)
  int workers;      // 0; or, of 128 rows on tensor cores, blocks that share all tiles; no more than
                    // these
  int tiles;  // of these, of columns: of every group ceil(its rows / columns), of which a tile has
              // 2048 / d', or, for d' = 64, 64
  bool tf32;  // whether these may multiply float32 samples as tf32 ones
  double* slots;       // [2 workers, 3 groups + 128 + 128 (d' / 2 + 2)], d' = 16, 32 or 64 >= d
  double* partials;    // [batch, blocks, 3 groups + scales], uninitialised
  unsigned* counters;  // [batch + workers], zeros, and zeros again when the call is done
  void* stream;        // cudaStream_t
};

// What keeps the CUDA run-time from launching anything here, say an old driver; or null.
const char* cuda_problem();

// One launch.
template <typename T>
void mmd_fwd_cuda(const MmdProblem<T>& in, const MmdValue<T>& out, const MmdDevice<T>& device);

template <typename T>
void mmd_hvp_cuda(const MmdProblem<T>& in, const MmdTangent<T>& tangent, const MmdProduct<T>& out,
                  const MmdDevice<T>& device);

}  // namespace cgm_fast
