// A problem of prototype_margin, its evaluation in double, and what the kernels make of it.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "checks.h"
#include "prototype_margin.h"

namespace checks {

using namespace cgm_fast;

template <typename T>
struct Margin {
  // On a grid distances are exact in float: ties are ties, and none is beside the margin by
  // rounding.
  Margin(int64_t rows, int64_t k, int64_t d, bool on_grid, bool with_labels, bool tangent_r,
         bool tangent_g, Random& random)
      : r(rows * d),
        g(k * d),
        t_r(rows * d, tangent_r),
        t_g(k * d, tangent_g),
        labels(rows, with_labels) {
    for (Array<T>* values : {&r, &g})
      for (int64_t i = 0; i < values->size; ++i)
        values->data[i] = T(on_grid ? double(random.below(9) - 4) / 4 : random.normal());
    for (Array<T>* values : {&t_r, &t_g})
      for (int64_t i = 0; i < values->size; ++i) values->data[i] = T(random.normal());
    for (int64_t c = 1; on_grid && c < k; ++c)
      if (random.chance(0.3)) std::copy_n(g.data + (c - 1) * d, d, g.data + c * d);
    for (int64_t i = 0; i < labels.size; ++i) labels.data[i] = random.below(k);
    const double margin = double(d) * random.pick({0.0, 0.5, 1.0});
    constexpr Dtype dtype = sizeof(T) == 4 ? Dtype::float32 : Dtype::float64;
    in = {rows,        k,      d,   {r.data, dtype, 0, d, 1}, {g.data, dtype, 0, d, 1},
          labels.data, margin, 0.7, 1.0 / double(rows)};
  }

  Array<T> r, g, t_r, t_g;
  Array<int64_t> labels;
  PrototypeMarginInput<T> in;
};

struct ExactMargin {
  template <typename T>
  explicit ExactMargin(const Margin<T>& of)
      : loss(1), r(of.r.size), g(of.g.size), hvp_r(of.r.size), hvp_g(of.g.size) {
    const auto& in = of.in;
    const auto pair = [&](int64_t i, int64_t c, int64_t f) {  // r - g, with the tangents' as dot
      const int64_t p = i * in.d + f, q = c * in.d + f;
      return Dual{double(of.r.data[p]), of.t_r.data ? double(of.t_r.data[p]) : 0} -
             Dual{double(of.g.data[q]), of.t_g.data ? double(of.t_g.data[q]) : 0};
    };
    for (int64_t i = 0; i < in.rows; ++i) {
      Vector u(in.k);
      for (int64_t c = 0; c < in.k; ++c)
        for (int64_t f = 0; f < in.d; ++f) u[c] += (pair(i, c, f) * pair(i, c, f)).value;
      const int64_t nearest = std::min_element(u.begin(), u.end()) - u.begin();
      assignment.push_back(in.labels ? in.labels[i] : nearest);
      for (int64_t c = 0; c < in.k; ++c) {
        const bool own = c == assignment[i];
        if (!own && u[c] >= in.margin) continue;
        const double a = in.scale * (own ? 1 : -in.negative_scale);
        loss.add(0, {own ? a * u[c] : -a * (in.margin - u[c]), 0}, false);
        for (int64_t f = 0; f < in.d; ++f) {
          const Dual part = 2 * a * pair(i, c, f);
          r.add(i * in.d + f, part, false);
          g.add(c * in.d + f, -1 * part, false);
          hvp_r.add(i * in.d + f, part, true);
          hvp_g.add(c * in.d + f, -1 * part, true);
        }
      }
    }
  }

  Sums loss, r, g, hvp_r, hvp_g;
  std::vector<int64_t> assignment;
};

template <typename T>
struct MarginResult {
  MarginResult(const Margin<T>& of, bool with_r, bool with_g)
      : of(of),
        loss(1),
        r(of.r.size, with_r),
        g(of.g.size, with_g),
        hvp_r(of.r.size),
        hvp_g(of.g.size),
        assignment(of.in.rows) {}

  void compute_first(int threads) {
    prototype_margin_fwd_cpu<T>(of.in, {loss.data, assignment.data, r.data, g.data}, threads);
  }

  void compute(int threads) {
    compute_first(threads);
    prototype_margin_hvp_cpu<T>(
        of.in, {assignment.data, of.t_r.data, of.t_g.data, hvp_r.data, hvp_g.data}, threads);
  }

  bool operator==(const MarginResult& other) const {
    return loss == other.loss && assignment == other.assignment && r == other.r && g == other.g &&
           hvp_r == other.hvp_r && hvp_g == other.hvp_g;
  }

  void check(const ExactMargin& exact) const {
    expect(std::equal(exact.assignment.begin(), exact.assignment.end(), assignment.data),
           "assignment");
    const double tolerance = sizeof(T) == 4 ? 1e-6 : 1e-12;
    expect_near("loss", loss.data, exact.loss, 0, 1, tolerance);
    expect_near("grad_r", r.data, exact.r, 0, r.size, tolerance);
    expect_near("grad_g", g.data, exact.g, 0, g.size, tolerance);
    expect_near("hvp_r", hvp_r.data, exact.hvp_r, 0, hvp_r.size, tolerance);
    expect_near("hvp_g", hvp_g.data, exact.hvp_g, 0, hvp_g.size, tolerance);
  }

  const Margin<T>& of;
  Array<T> loss, r, g, hvp_r, hvp_g;
  Array<int64_t> assignment;
};

}  // namespace checks
