// Sums of the coefficients c_ij of an MMD²: what turns sums in which 1 was subtracted from k for
// near pairs only (k >= 1/2) into those of k - 1. See cgm_fast/ops/mmd/README.md.
#pragma once

#include <cmath>

#ifdef __CUDACC__
#define CGM_HOST_DEVICE __host__ __device__
#else
#define CGM_HOST_DEVICE
#endif

namespace cgm_fast {

// Weights w come without their sample's scale here; pairs are ordered ones, i != j.
struct Coefficients {
  double x, y;    // (sum of w)^2 - sum of w^2, what all pairs within a sample weigh
  double across;  // twice the product of both samples' sums of w
  double x_scale, y_scale, cross;
  bool unbiased;    // whether scales and `cross` are that estimator's
  double rounding;  // what scaled weights may be off, relative to them

  // The sum of c_ij, given those of w_i w_j; with sign 1, that of |c_ij|.
  CGM_HOST_DEVICE double add(double of_x, double of_y, double of_across, double sign = -1) const {
    return x_scale * x_scale * of_x + y_scale * y_scale * of_y +
           sign * (cross * (x_scale * y_scale)) * of_across;
  }

  // Sums of w_i w_j over some of the pairs.
  struct Pairs {
    double x, y, across;
  };

  // What is left of all pairs: only of counts, which are exact. Of given weights the difference
  // would have the rounding of `all`, however little is left.
  CGM_HOST_DEVICE Pairs without(const Pairs& some) const {
    return {x - some.x, y - some.y, across - some.across};
  }

  // The sum of c_ij over near pairs less that over all. Whichever of near and far pairs weigh less
  // are added up: then the result is exact where all are near, and where none is.
  CGM_HOST_DEVICE double constant(const Pairs& near, const Pairs& far) const {
    if (add(near.x, near.y, near.across, 1) < add(far.x, far.y, far.across, 1))
      return add(near.x, near.y, near.across) - all();
    return -add(far.x, far.y, far.across);
  }

  // Over all pairs. For the unbiased estimator this is the square of the difference of the samples'
  // masses; terms of size 1 cancel there, and the rounding of the scaled weights would be left.
  CGM_HOST_DEVICE double all() const {
    if (unbiased) {
      const double p = x_scale * std::sqrt(x), q = y_scale * std::sqrt(y);
      const double between = 0.5 * cross * (x_scale * y_scale) * across;
      if (std::fabs(between - p * q) <= rounding * (p * q))
        return std::fabs(p - q) <= rounding * (p + q) ? 0.0 : (p - q) * (p - q);
    }
    return add(x, y, across);
  }
};

}  // namespace cgm_fast
