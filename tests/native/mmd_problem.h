// A problem of mmd, its evaluation in double, and what the kernels make of it.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "checks.h"
#include "mmd.h"
#include "sample.h"

namespace checks {

// phi(t) - phi(0) and -phi'(t), as cgm_fast/ops/mmd/kernels.py has them.
struct Radial {
  Dual less, slope;
};

inline Radial radial(Kernel kernel, Dual t) {
  const auto over = [](Dual p, Dual q) { return q.value == 0 ? Dual{} : p / q; };
  switch (kernel) {
    case Kernel::gaussian:
      return {expm1(-1 * t), exp(-1 * t)};
    case Kernel::laplacian: {
      const Dual s = sqrt(2 * t);
      return {expm1(-1 * s), over(exp(-1 * s), s)};
    }
    case Kernel::matern32: {
      const Dual s = sqrt(6 * t);
      return {expm1(-1 * s) + s * exp(-1 * s), 3 * exp(-1 * s)};
    }
    case Kernel::matern52: {
      const Dual s = sqrt(10 * t), more = s + (1.0 / 3) * (s * s);
      return {expm1(-1 * s) + more * exp(-1 * s), (5.0 / 3) * ((1 + s) * exp(-1 * s))};
    }
    case Kernel::rational_quadratic: {
      const Dual whole = Dual{1, 0} / (1 + t);
      return {-1 * (t * whole), whole * whole};
    }
    case Kernel::imq: {
      const Dual inverse = Dual{1, 0} / (1 + 2 * t), whole = sqrt(inverse);
      return {-2 * (t * inverse) / (1 + whole), whole * inverse};
    }
    case Kernel::energy: {
      const Dual s = sqrt(2 * t);
      return {-1 * s, over(Dual{1, 0}, s)};
    }
  }
  return {};
}

struct Point {  // what the loss of one batch item is a function of, and a direction
  std::vector<Dual> z, w, h, relation;
};

struct Exact {  // the loss and its derivatives, or all of their derivatives along the direction
  Sums loss, z, weights, relation, variance;
};

inline Exact exact_mmd(const Point& at, const std::vector<int64_t>& begins, int64_t d,
                       const Vector& kernel_weights, Kernel kernel, bool hvp) {
  const int64_t rows = begins.back(), scales = int64_t(at.h.size());
  const int64_t groups = int64_t(begins.size()) - 1;
  Exact out{Sums(1), Sums(rows * d), Sums(rows), Sums(groups * groups), Sums(scales)};
  const auto group_of = [&](int64_t i) {
    return std::upper_bound(begins.begin(), begins.end(), i) - begins.begin() - 1;
  };
  Vector centre(d);
  for (int64_t i = 0; i < rows * d; ++i) centre[i % d] += at.z[i].value / double(rows);
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < i; ++j) {
      const Dual *z_i = &at.z[i * d], *z_j = &at.z[j * d];
      const int64_t g = group_of(i), h = group_of(j);
      const Dual relation = at.relation[g * groups + h], ww = at.w[i] * at.w[j], pair = 2 * ww;
      Dual u, less, slope;
      double far = 0;  // |z|^2 / 2h, about the centre
      for (int64_t f = 0; f < d; ++f)
        for (const Dual* z : {z_i, z_j})
          far += (z[f].value - centre[f]) * (z[f].value - centre[f]) / (2 * at.h[0].value);
      for (int64_t f = 0; f < d; ++f) u = u + (z_i[f] - z_j[f]) * (z_i[f] - z_j[f]);
      for (int64_t s = 0; s < scales; ++s) {
        const Dual t = 0.5 * (u / at.h[s]);
        const Radial of_t = radial(kernel, t);
        const Dual k = kernel_weights[s] * of_t.slope;
        less = less + kernel_weights[s] * of_t.less;
        slope = slope - 0.5 * (k / at.h[s]);
        out.variance.add(s, pair * relation * k * t / at.h[s], hvp);
        // t is a rounded difference.
        out.variance.size[s] += std::fabs((pair * relation * k / at.h[s]).value);
      }
      out.loss.add(0, pair * relation * less, hvp);
      for (int64_t entry : {g * groups + h, h * groups + g}) {
        out.relation.add(entry, ww * less, hvp);
        // A block may be all coincident rows, at the rounding of a product's distance.
        out.relation.size[entry] += std::fabs(ww.value) * (1e-9 + 0.1 * far);
      }
      out.weights.add(i, 2 * (relation * at.w[j] * less), hvp);
      out.weights.add(j, 2 * (relation * at.w[i] * less), hvp);
      for (int64_t f = 0; f < d; ++f) {
        const Dual part = 2 * (pair * relation * slope * (z_i[f] - z_j[f]));
        out.z.add(i * d + f, part, hvp);
        out.z.add(j * d + f, -1 * part, hvp);
        // Sums of z_j and z_i times a sum are subtracted: coincident rows leave their rounding.
        const double moment = 0.1 * std::fabs((2 * (pair * relation * slope)).value);
        out.z.size[i * d + f] += moment * std::fabs(z_i[f].value - centre[f]);
        out.z.size[j * d + f] += moment * std::fabs(z_j[f].value - centre[f]);
      }
    }
  }
  return out;
}

struct MmdOptions {
  int64_t batch, n, m, d, scales;
  std::vector<int64_t> begins = {};  // of groups; empty: x and y
  Kernel kernel = Kernel::gaussian;
  Dtype x_dtype = Dtype::float32, y_dtype = Dtype::float32;
  Strides x_strides = Strides::contiguous, y_strides = Strides::contiguous;
  bool weights = false, relation = false, variance = false;  // given as arrays
  double width = 1;                                          // mean of |z|^2 / 2h
  double offset = 0;                                         // of the data from the origin
  bool near = false;           // y beside x: coincident or close pairs
  int64_t begin = 0, end = 0;  // rows whose gradient is wanted
  bool of_weights = false, of_relation = false, of_variance = false;  // derivatives that are
  bool tangent_z = true, tangent_weights = false, tangent_relation = false,
       tangent_variance = false;
};

template <typename T>
struct Mmd {
  Mmd(const MmdOptions& options, Random& random)
      : o(options),
        begins(o.begins.empty() ? std::vector<int64_t>{0, o.n, o.n + o.m} : o.begins),
        groups(int64_t(begins.size()) - 1),
        h(2.0),
        x(o.batch, o.n, o.d, o.x_dtype, o.x_strides,
          [&](int64_t, int64_t, int64_t) { return place(random); }),
        y(o.batch, o.m, o.d, o.y_dtype, o.y_strides,
          [&](int64_t b, int64_t j, int64_t f) {
            if (!o.near) return place(random);
            return x(b, j % o.n, f) + (j % 3 ? 0.5 * random.normal() / std::sqrt(double(o.d)) : 0);
          }),
        weights(o.batch * (o.n + o.m), o.weights),
        relation(o.batch * groups * groups, o.relation),
        variance(o.batch * o.scales, o.variance),
        tangent_z(o.batch * (o.n + o.m) * o.d, o.tangent_z),
        tangent_weights(o.batch * (o.n + o.m), o.tangent_weights),
        tangent_relation(o.batch * groups * groups, o.tangent_relation),
        tangent_variance(o.batch * o.scales, o.tangent_variance) {
    for (int64_t s = 0; s < o.scales; ++s) {
      variances.push_back(h * std::ldexp(1.0, int(s - o.scales / 2)));
      kernel_weights.push_back(o.scales == 1 && !o.variance ? 1.0 : 0.5 + random.uniform());
    }
    for (int64_t g = 0; g < groups; ++g)  // a discrepancy of neighbours
      for (int64_t k = 0; k < groups; ++k)
        relations.push_back(((g + k) % 2 ? -1.0 : 1.0) / double(size_of(g) * size_of(k)));
    for (int64_t i = 0; i < weights.size; ++i) weights.data[i] = T(0.5 + random.uniform());
    for (Array<double>* table : {&relation, &tangent_relation}) {
      for (int64_t b = 0; table->data && b < o.batch; ++b) {
        for (int64_t g = 0; g < groups; ++g) {
          for (int64_t k = 0; k <= g; ++k) {
            double* entries = table->data + b * groups * groups;
            entries[g * groups + k] = entries[k * groups + g] =
                relations[g * groups + k] * (0.5 + random.uniform());
          }
        }
      }
    }
    for (int64_t i = 0; i < variance.size; ++i)
      variance.data[i] = T(variances[i % o.scales] * (1 + 0.3 * random.uniform()));
    for (Array<T>* values : {&tangent_z, &tangent_weights, &tangent_variance})
      for (int64_t i = 0; i < values->size; ++i) values->data[i] = T(random.normal());
    in.batch = o.batch;
    in.rows = o.n + o.m;
    in.d = o.d;
    in.groups = groups;
    in.scales = o.scales;
    in.x = x.view;
    in.y = y.view;
    in.x_rows = o.n;
    in.begins = begins.data();
    in.weights = weights.data;
    in.relation = o.relation ? relation.data : relations.data();
    in.relation_per_item = o.relation;
    in.variance = variance.data;
    in.variances = variances.data();
    in.kernel_weights = kernel_weights.data();
    in.kernel = o.kernel;
  }

  int64_t size_of(int64_t group) const { return begins[group + 1] - begins[group]; }

  double place(Random& random) const {
    return o.offset + random.normal() * std::sqrt(2 * h * o.width / double(o.d));
  }

  Point point(int64_t b) const {
    const int64_t rows = o.n + o.m, entries = groups * groups;
    const auto dot = [](const auto& tangent, int64_t i) {
      return tangent.data ? double(tangent.data[i]) : 0;
    };
    Point at;
    for (int64_t i = 0; i < rows; ++i) {
      const bool of_y = i >= o.n;
      const int64_t row = of_y ? i - o.n : i;
      at.w.push_back({weights.data ? double(weights.data[b * rows + i]) : 1.0,
                      dot(tangent_weights, b * rows + i)});
      for (int64_t f = 0; f < o.d; ++f)
        at.z.push_back(
            {of_y ? y(b, row, f) : x(b, row, f), dot(tangent_z, (b * rows + i) * o.d + f)});
    }
    for (int64_t s = 0; s < o.scales; ++s)
      at.h.push_back({variance.data ? double(variance.data[b * o.scales + s]) : variances[s],
                      dot(tangent_variance, b * o.scales + s)});
    for (int64_t q = 0; q < entries; ++q)
      at.relation.push_back({in.relation_of(b)[q], dot(tangent_relation, b * entries + q)});
    return at;
  }

  const MmdOptions o;
  const std::vector<int64_t> begins;
  const int64_t groups;
  const double h;
  Sample x, y;
  Vector variances, kernel_weights, relations;
  Array<T> weights;
  Array<double> relation;
  Array<T> variance, tangent_z, tangent_weights;
  Array<double> tangent_relation;
  Array<T> tangent_variance;
  MmdProblem<T> in;
};

// Loss and gradient, or with `hvp` the Hessian-vector product along the problem's direction.
template <typename T>
struct MmdResult {
  explicit MmdResult(const Mmd<T>& of, bool hvp)
      : of(of),
        hvp(hvp),
        loss(of.o.batch),
        z(of.o.batch * (of.o.end - of.o.begin) * of.o.d),
        weights(of.o.batch * (of.o.n + of.o.m), of.o.of_weights),
        relation(of.o.batch * of.groups * of.groups, of.o.of_relation),
        variance(of.o.batch * of.o.scales, of.o.of_variance) {}

  void compute(int threads) {
    if (hvp) {
      mmd_hvp_cpu<T>(of.in,
                     {of.tangent_z.data, of.tangent_weights.data, of.tangent_relation.data,
                      of.tangent_variance.data},
                     {of.o.begin, of.o.end, z.data, weights.data, relation.data, variance.data},
                     threads);
    } else {
      mmd_fwd_cpu<T>(
          of.in,
          {of.o.begin, of.o.end, loss.data, relation.data, z.data, weights.data, variance.data},
          threads);
    }
  }

  bool operator==(const MmdResult& other) const {
    return (hvp || loss == other.loss) && z == other.z && weights == other.weights &&
           relation == other.relation && variance == other.variance;
  }

  void check(const std::vector<Exact>& exact) const {
    // A kernel's relative error grows with its exponent.
    const double tolerance =
        (sizeof(T) == 4 ? 1e-5 : 1e-12) * std::max(hvp ? 5 : 1.0, of.o.width / 3);
    const int64_t d = of.o.d, rows = of.o.n + of.o.m, wanted = of.o.end - of.o.begin;
    const int64_t entries = of.groups * of.groups;
    for (int64_t b = 0; b < of.o.batch; ++b) {
      const Exact& e = exact[b];
      if (!hvp) expect_near("loss", loss.data + b, e.loss, 0, 1, tolerance);
      expect_near(hvp ? "hvp z" : "grad z", z.data + b * wanted * d, e.z, of.o.begin * d,
                  wanted * d, tolerance);
      if (weights.data)
        expect_near("of weights", weights.data + b * rows, e.weights, 0, rows, tolerance);
      for (int64_t q = 0; relation.data && q < entries; ++q)
        expect_near("of relation", relation.data + b * entries + q, e.relation, q, 1, tolerance);
      for (int64_t s = 0; variance.data && s < of.o.scales; ++s)
        expect_near("of variance", variance.data + b * of.o.scales + s, e.variance, s, 1,
                    tolerance);
    }
  }

  const Mmd<T>& of;
  const bool hvp;
  Array<T> loss, z, weights;
  Array<double> relation;
  Array<T> variance;
};

}  // namespace checks
