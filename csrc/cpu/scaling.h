// One MMD² problem in the kernel's units: bandwidths, and how far distances can be trusted.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "cpu/read.h"
#include "cpu/tiles.h"
#include "mmd.h"

namespace cgm_fast {

template <typename T>
struct Scaling {
  Scaling(const MmdProblem<T>& in, int64_t item)
      : in(in),
        item(item),
        relation(in.relation_of(item)),
        mass(in.groups, 0.0),
        total(in.groups * in.d, 0.0) {
    for (int64_t s = 0; s < in.scales; ++s) {
      h.push_back(in.variance ? double(in.variance[item * in.scales + s]) : in.variances[s]);
      ratio.push_back(T(h[0] / h[s]));
      value_weight.push_back(T(in.kernel_weights[s]));
      slope_weight.push_back(T(in.kernel_weights[s] * h[0] / h[s]));
    }
    several = in.scales > 1 || in.kernel_weights[0] != 1.0;
  }

  const MmdProblem<T>& in;
  int64_t item;
  const double* relation;  // [groups, groups]
  std::vector<double> h;
  std::vector<T> ratio, value_weight, slope_weight;
  bool several;  // bandwidths, or one of weight other than 1
  // Known once the rows are centred:
  bool shifted = false;       // slopes are less 1, as values always are
  bool differences = false;   // distances by plain differences
  double scale = 0;           // z in the kernel is (z - centre) * scale
  std::vector<double> mass;   // [groups], sum of w_j
  std::vector<double> total;  // [groups, d], sum of w_j z_j

  // How pairs of rows of two groups count.
  double relation_of(int64_t group, int64_t other) const {
    return relation[group * in.groups + other];
  }

  // sum_g relation[own, g] values[g] over all groups.
  double related(int64_t own, const double* values, int64_t step = 1) const {
    double sum = 0;
    for (int64_t g = 0; g < in.groups; ++g) sum += relation_of(own, g) * values[g * step];
    return sum;
  }

 protected:
  // From the largest |z - centre|^2, in squared units of the data.
  void decide(double largest) {
    largest /= 2 * kLn2 * h[0];  // in units where the first bandwidth's kernel is 2^-|z_i - z_j|^2
    const double widest = *std::max_element(ratio.begin(), ratio.end());
    // Slopes less 1 leave least to cancel where all pairs are within a bandwidth or so; but a row
    // far from all others would be left with the rounding of 1 - 1.
    shifted = in.kernel == Kernel::gaussian && largest * widest < 1.5;
    differences = has_kink(in.kernel) || by_differences(largest * widest, in.d);
    scale = std::sqrt(1 / (2 * kLn2 * h[0])) * (differences ? 1.0 : std::sqrt(2.0));
  }

  void read_row_of_z(int64_t i, T* row) const {
    const bool of_y = i >= in.x_rows;
    read_row(of_y ? in.y : in.x, item, of_y ? i - in.x_rows : i, in.d, row);
  }
};

}  // namespace cgm_fast
