// The end of an MMD² pass: from sums in which 1 was subtracted from k for near pairs only (k >=
// 1/2) to those of k - 1. See cgm_fast/ops/mmd/README.md.
#pragma once

#include <cmath>
#include <cstdint>

#ifdef __CUDACC__
#define CGM_HOST_DEVICE __host__ __device__
#else
#define CGM_HOST_DEVICE
#endif

namespace cgm_fast {

// Of one bandwidth, by pair of groups [groups, groups], over ordered pairs of rows i != j.
struct BlockWeights {
  const double* near;  // sums of w_i w_j over near pairs
  const double* far;   // over far ones; or null: what near ones leave of all, where w are counts
  const double* all;   // over all
  int64_t entries;     // groups squared

  // Of far pairs: only counts are exact. Of given weights the difference would have the rounding of
  // `all`, however little is left.
  CGM_HOST_DEVICE double far_of(int64_t entry) const {
    return far ? far[entry] : all[entry] - near[entry];
  }

  // The sum of relation w_i w_j over near pairs less that over all. Whichever of near and far pairs
  // weigh less are added up: then the result is exact where all are near, and where none is.
  CGM_HOST_DEVICE double constant(const double* relation) const {
    double of_near = 0, of_far = 0, of_all = 0, near_size = 0, far_size = 0;
    for (int64_t q = 0; q < entries; ++q) {
      const double far_weight = far_of(q), size = std::fabs(relation[q]);
      of_near += relation[q] * near[q];
      of_far += relation[q] * far_weight;
      of_all += relation[q] * all[q];
      near_size += size * near[q];
      far_size += size * far_weight;
    }
    // The unbiased estimator's terms cancel: their rounding is not to be left.
    if (std::fabs(of_all) <= 1e-14 * (near_size + far_size)) of_all = 0;
    return near_size < far_size ? of_near - of_all : -of_far;
  }

  // The same for one block, of relation 1.
  CGM_HOST_DEVICE double of_block(int64_t entry) const {
    const double far_weight = far_of(entry);
    return near[entry] < far_weight ? near[entry] - all[entry] : -far_weight;
  }
};

}  // namespace cgm_fast
