// The end of an MMD² pass: from sums in which 1 was subtracted from k for near pairs only (k >=
// 1/2) to those of k - 1. See cgm_fast/ops/mmd/README.md.
#pragma once

#include <cmath>
#include <cstdint>

#include "host_device.h"

namespace cgm_fast {

// Sums over pairs of groups of relation times what some pairs of rows weigh.
struct RelatedWeights {
  double of_near = 0, of_far = 0, of_all = 0;  // sums of relation w_i w_j
  double near_size = 0, far_size = 0;          // of its size

  // A pair of groups, whose near, far and all pairs of rows weigh that much.
  CGM_HOST_DEVICE void add(double relation, double near, double far, double all) {
    const double size = std::fabs(relation);
    of_near += relation * near;
    of_far += relation * far;
    of_all += relation * all;
    near_size += size * near;
    far_size += size * far;
  }

  // The sum over near pairs less that over all. Whichever of near and far pairs weigh less are
  // added up: then the result is exact where all are near, and where none is.
  CGM_HOST_DEVICE double constant() const {
    // The unbiased estimator's terms cancel: their rounding is not to be left.
    const bool cancels = std::fabs(of_all) <= 1e-14 * (near_size + far_size);
    return near_size < far_size ? of_near - (cancels ? 0 : of_all) : -of_far;
  }
};

// The same for one pair of groups, of relation 1.
CGM_HOST_DEVICE inline double constant_of_block(double near, double far, double all) {
  return near < far ? near - all : -far;
}

// Of one bandwidth, by pair of groups [groups, groups], over ordered pairs of rows i != j.
struct BlockWeights {
  const double* near;  // sums of w_i w_j over near pairs
  const double* far;   // over far ones; or null: what near ones leave of all, where w are counts
  const double* all;   // over all
  int64_t entries;     // groups squared

  // Of far pairs: only counts are exact. Of given weights the difference would have the rounding of
  // `all`, however little is left.
  double far_of(int64_t entry) const { return far ? far[entry] : all[entry] - near[entry]; }

  double constant(const double* relation) const {
    RelatedWeights sums;
    for (int64_t q = 0; q < entries; ++q) sums.add(relation[q], near[q], far_of(q), all[q]);
    return sums.constant();
  }

  double of_block(int64_t entry) const {
    return constant_of_block(near[entry], far_of(entry), all[entry]);
  }
};

}  // namespace cgm_fast
