// A problem of mmd, its evaluation in double, and what the kernels make of it.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "checks.h"
#include "mmd.h"
#include "sample.h"

namespace checks {

struct Point {  // what the loss of one batch item is a function of, and a direction
  std::vector<Dual> z, a, h;
  Dual cross;
};

struct Exact {  // the loss and its derivatives, or all of their derivatives along the direction
  Sums loss, z, a, p;
};

inline Exact exact_mmd(const Point& at, int64_t n, int64_t d, const Vector& kernel_weights,
                       bool hvp) {
  const int64_t rows = int64_t(at.a.size()), scales = int64_t(at.h.size());
  Exact out{Sums(1), Sums(rows * d), Sums(rows), Sums(scales + 1)};
  Vector centre(d);
  for (int64_t i = 0; i < rows * d; ++i) centre[i % d] += at.z[i].value / double(rows);
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < i; ++j) {
      const Dual *z_i = &at.z[i * d], *z_j = &at.z[j * d];
      const bool across = (i < n) != (j < n);
      const Dual relation = across ? at.cross : Dual{1, 0}, pair = 2 * (at.a[i] * at.a[j]);
      Dual u, minus_one, slope;
      for (int64_t f = 0; f < d; ++f) u = u + (z_i[f] - z_j[f]) * (z_i[f] - z_j[f]);
      for (int64_t s = 0; s < scales; ++s) {
        const Dual t = 0.5 * (u / at.h[s]), k = kernel_weights[s] * exp(-1 * t);
        minus_one = minus_one + kernel_weights[s] * expm1(-1 * t);
        slope = slope - 0.5 * (k / at.h[s]);
        out.p.add(s, pair * relation * k * t / at.h[s], hvp);
        // t is a rounded difference.
        out.p.size[s] += std::fabs((pair * relation * k / at.h[s]).value);
      }
      out.loss.add(0, pair * relation * minus_one, hvp);
      if (across) out.p.add(scales, pair * minus_one, hvp);
      out.a.add(i, 2 * (relation * at.a[j] * minus_one), hvp);
      out.a.add(j, 2 * (relation * at.a[i] * minus_one), hvp);
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
  Dtype x_dtype = Dtype::float32, y_dtype = Dtype::float32;
  Strides x_strides = Strides::contiguous, y_strides = Strides::contiguous;
  bool x_weights = false, y_weights = false, cross = false, variance = false;  // given as arrays
  double width = 1;                                                            // mean of |z|^2 / 2h
  double offset = 0;           // of the data from the origin
  bool near = false;           // y beside x: coincident or close pairs
  int64_t begin = 0, end = 0;  // rows whose gradient is wanted
  bool grad_a = false, grad_p = false;
  bool tangent_z = true, tangent_a = false, tangent_p = false;
};

template <typename T>
struct Mmd {
  Mmd(const MmdOptions& o, Random& random)
      : o(o),
        h(2.0),
        x(o.batch, o.n, o.d, o.x_dtype, o.x_strides,
          [&](int64_t, int64_t, int64_t) { return place(random); }),
        y(o.batch, o.m, o.d, o.y_dtype, o.y_strides,
          [&](int64_t b, int64_t j, int64_t f) {
            if (!o.near) return place(random);
            return x(b, j % o.n, f) + (j % 3 ? 0.5 * random.normal() / std::sqrt(double(o.d)) : 0);
          }),
        x_weights(o.batch * o.n, o.x_weights),
        y_weights(o.batch * o.m, o.y_weights),
        cross(o.batch, o.cross),
        variance(o.batch * o.scales, o.variance),
        tangent_z(o.batch * (o.n + o.m) * o.d, o.tangent_z),
        tangent_a(o.batch * (o.n + o.m), o.tangent_a),
        tangent_p(o.batch * (o.scales + 1), o.tangent_p) {
    for (int64_t s = 0; s < o.scales; ++s) {
      variances.push_back(h * std::ldexp(1.0, int(s - o.scales / 2)));
      kernel_weights.push_back(o.scales == 1 && !o.variance ? 1.0 : 0.5 + random.uniform());
    }
    for (Array<T>* values : {&x_weights, &y_weights, &cross})
      for (int64_t i = 0; i < values->size; ++i) values->data[i] = T(0.5 + random.uniform());
    for (int64_t i = 0; i < variance.size; ++i)
      variance.data[i] = T(variances[i % o.scales] * (1 + 0.3 * random.uniform()));
    for (Array<T>* values : {&tangent_z, &tangent_p})
      for (int64_t i = 0; i < values->size; ++i) values->data[i] = T(random.normal());
    for (int64_t i = 0; i < tangent_a.size; ++i)
      tangent_a.data[i] = T(random.normal() / double(o.n));
    in = {o.batch,
          o.n,
          o.m,
          o.d,
          o.scales,
          x.view,
          y.view,
          x_weights.data,
          y_weights.data,
          1.0 / double(o.n),
          1.0 / double(o.m),
          cross.data,
          o.cross ? 0.75 : 1.0,
          variance.data,
          variances.data(),
          kernel_weights.data()};
  }

  double place(Random& random) const {
    return o.offset + random.normal() * std::sqrt(2 * h * o.width / double(o.d));
  }

  Point point(int64_t b) const {
    const int64_t rows = o.n + o.m;
    const auto dot = [](const Array<T>& tangent, int64_t i) {
      return tangent.data ? double(tangent.data[i]) : 0;
    };
    Point at;
    for (int64_t i = 0; i < rows; ++i) {
      const bool of_y = i >= o.n;
      const int64_t row = of_y ? i - o.n : i;
      const T* given = of_y ? y_weights.data : x_weights.data;
      const double unit = of_y ? -in.y_scale : in.x_scale;
      at.a.push_back({unit * (given ? double(given[b * (of_y ? o.m : o.n) + row]) : 1.0),
                      dot(tangent_a, b * rows + i)});
      for (int64_t f = 0; f < o.d; ++f)
        at.z.push_back(
            {of_y ? y(b, row, f) : x(b, row, f), dot(tangent_z, (b * rows + i) * o.d + f)});
    }
    for (int64_t s = 0; s < o.scales; ++s)
      at.h.push_back({variance.data ? double(variance.data[b * o.scales + s]) : variances[s],
                      dot(tangent_p, b * (o.scales + 1) + s)});
    at.cross = {in.cross_scale * (cross.data ? double(cross.data[b]) : 1.0),
                dot(tangent_p, b * (o.scales + 1) + o.scales)};
    return at;
  }

  const MmdOptions o;
  const double h;
  Sample x, y;
  Vector variances, kernel_weights;
  Array<T> x_weights, y_weights, cross, variance, tangent_z, tangent_a, tangent_p;
  MmdInput<T> in;
};

// Loss and gradient, or with `hvp` the Hessian-vector product along the problem's direction.
template <typename T>
struct MmdResult {
  explicit MmdResult(const Mmd<T>& of, bool hvp)
      : of(of),
        hvp(hvp),
        loss(of.o.batch),
        z(of.o.batch * (of.o.end - of.o.begin) * of.o.d),
        a(of.o.batch * (of.o.n + of.o.m), of.o.grad_a),
        p(of.o.batch * (of.o.scales + 1), of.o.grad_p) {}

  void compute(int threads) {
    if (hvp) {
      mmd_hvp_cpu<T>(of.in,
                     {of.o.begin, of.o.end, of.tangent_z.data, of.tangent_a.data, of.tangent_p.data,
                      z.data, a.data, p.data},
                     threads);
    } else {
      mmd_fwd_cpu<T>(of.in, {of.o.begin, of.o.end, loss.data, z.data, a.data, p.data}, threads);
    }
  }

  bool operator==(const MmdResult& other) const {
    return (hvp || loss == other.loss) && z == other.z && a == other.a && p == other.p;
  }

  void check(const std::vector<Exact>& exact) const {
    // A kernel's relative error grows with its exponent.
    const double tolerance =
        (sizeof(T) == 4 ? 1e-5 : 1e-12) * std::max(hvp ? 5 : 1.0, of.o.width / 3);
    const int64_t d = of.o.d, rows = of.o.n + of.o.m, wanted = of.o.end - of.o.begin;
    for (int64_t b = 0; b < of.o.batch; ++b) {
      const Exact& e = exact[b];
      if (!hvp) expect_near("loss", loss.data + b, e.loss, 0, 1, tolerance);
      expect_near(hvp ? "hvp z" : "grad z", z.data + b * wanted * d, e.z, of.o.begin * d,
                  wanted * d, tolerance);
      if (a.data) expect_near("grad_a", a.data + b * rows, e.a, 0, rows, tolerance);
      for (int64_t s = 0; p.data && s <= of.o.scales; ++s)
        expect_near("grad_p", p.data + b * (of.o.scales + 1) + s, e.p, s, 1, tolerance);
    }
  }

  const Mmd<T>& of;
  const bool hvp;
  Array<T> loss, z, a, p;
};

}  // namespace checks
