// A problem of kernel_product, its evaluation in double, and what the kernels make of it.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "checks.h"
#include "kernel_product.h"
#include "radial.h"
#include "sample.h"

namespace checks {

using namespace cgm_fast;

struct ProductOptions {
  int64_t batch, n, m, d, p, scales;
  Kernel kernel = Kernel::gaussian;
  Dtype dtype = Dtype::float32;
  Strides x_strides = Strides::contiguous, y_strides = Strides::contiguous;
  bool variance = false;                                     // given as an array
  double width = 1;                                          // mean of |z|^2 / 2h
  double offset = 0;                                         // of the data from the origin
  bool of_product = true, of_x = true, of_variance = false;  // derivatives that are wanted
};

struct ExactProduct {
  Sums product, x, variance;
};

template <typename T>
struct Product {
  Product(const ProductOptions& options, Random& random)
      : o(options),
        x(o.batch, o.n, o.d, o.dtype, o.x_strides,
          [&](int64_t, int64_t, int64_t) { return place(random); }),
        y(o.batch, o.m, o.d, o.dtype, o.y_strides,
          [&](int64_t b, int64_t j, int64_t f) {
            return j % 5 ? place(random) : x(b, j % o.n, f);  // some rows coincide
          }),
        u(o.batch * o.n * o.p),
        v(o.batch * o.m * o.p),
        variance(o.batch * o.scales, o.variance) {
    for (int64_t s = 0; s < o.scales; ++s) {
      variances.push_back(h * std::ldexp(1.0, int(s - o.scales / 2)));
      kernel_weights.push_back(0.5 + random.uniform());
    }
    for (Array<T>* values : {&u, &v})
      for (int64_t i = 0; i < values->size; ++i) values->data[i] = T(random.normal());
    for (int64_t i = 0; i < variance.size; ++i)
      variance.data[i] = T(variances[i % o.scales] * (1 + 0.3 * random.uniform()));
    in = {o.batch,
          o.n,
          o.m,
          o.d,
          o.p,
          o.scales,
          x.view,
          y.view,
          u.data,
          v.data,
          variance.data,
          variances.data(),
          kernel_weights.data(),
          o.kernel};
    if (!o.of_x && !o.of_variance) in.u = nullptr;
  }

  double place(Random& random) const {
    return o.offset + random.normal() * std::sqrt(2 * h * o.width / double(o.d));
  }

  // One item, every pair.
  ExactProduct exact(int64_t b) const {
    ExactProduct out{Sums(o.n * o.p), Sums(o.n * o.d), Sums(o.scales)};
    Vector centre(o.d);
    for (int64_t j = 0; j < o.m; ++j)
      for (int64_t f = 0; f < o.d; ++f) centre[f] += y(b, j, f) / double(o.m);
    for (int64_t i = 0; i < o.n; ++i) {
      for (int64_t j = 0; j < o.m; ++j) {
        const T *u_i = u.data + (b * o.n + i) * o.p, *v_j = v.data + (b * o.m + j) * o.p;
        double squares = 0, pair = 0, magnitude = 0, whole = 0, slope = 0;
        for (int64_t f = 0; f < o.d; ++f)
          squares += (x(b, i, f) - y(b, j, f)) * (x(b, i, f) - y(b, j, f));
        for (int64_t c = 0; c < o.p; ++c) pair += double(u_i[c]) * double(v_j[c]);
        for (int64_t c = 0; c < o.p; ++c) magnitude += std::fabs(double(u_i[c]) * double(v_j[c]));
        for (int64_t s = 0; s < o.scales; ++s) {
          const double of_s =
              variance.data ? double(variance.data[b * o.scales + s]) : variances[s];
          const double t = squares / (2 * of_s);
          const Radial k = radial(o.kernel, {t, 0});
          whole += kernel_weights[s] * (k.less.value + at_zero(o.kernel));
          slope += kernel_weights[s] * k.slope.value / of_s;
          const double by_h = kernel_weights[s] / of_s * k.slope.value;
          out.variance.sum[s] += pair * by_h * t;
          out.variance.size[s] += magnitude * by_h * (t + 1);  // t is a rounded difference
        }
        for (int64_t c = 0; c < o.p; ++c) {
          out.product.sum[i * o.p + c] += whole * double(v_j[c]);
          out.product.size[i * o.p + c] += (std::fabs(whole) + slope) * std::fabs(double(v_j[c]));
        }
        for (int64_t f = 0; f < o.d; ++f) {
          out.x.sum[i * o.d + f] -= pair * slope * (x(b, i, f) - y(b, j, f));
          // Sums of y_j and x_i times a sum are subtracted.
          out.x.size[i * o.d + f] +=
              magnitude * slope *
              (std::fabs(x(b, i, f) - y(b, j, f)) + 0.3 * std::fabs(x(b, i, f) - centre[f]));
        }
      }
    }
    return out;
  }

  static constexpr double h = 2.0;
  const ProductOptions o;
  Sample x, y;
  Vector variances, kernel_weights;
  Array<T> u, v, variance;
  KernelProductProblem<T> in;
};

template <typename T>
struct ProductResult {
  explicit ProductResult(const Product<T>& of)
      : of(of),
        product(of.o.batch * of.o.n * of.o.p, of.o.of_product),
        x(of.o.batch * of.o.n * of.o.d, of.o.of_x),
        variance(of.o.batch * of.o.scales, of.o.of_variance) {}

  void compute(int threads) {
    kernel_product_fwd_cpu<T>(of.in, {product.data, x.data, variance.data}, threads);
  }

  bool operator==(const ProductResult& other) const {
    return product == other.product && x == other.x && variance == other.variance;
  }

  void check(const std::vector<ExactProduct>& exact) const {
    const double tolerance = (sizeof(T) == 4 ? 1e-5 : 1e-12) * std::max(1.0, of.o.width / 3);
    const auto& o = of.o;
    for (int64_t b = 0; b < o.batch; ++b) {
      if (product.data)
        expect_near("product", product.data + b * o.n * o.p, exact[b].product, 0, o.n * o.p,
                    tolerance);
      if (x.data) expect_near("of x", x.data + b * o.n * o.d, exact[b].x, 0, o.n * o.d, tolerance);
      for (int64_t s = 0; variance.data && s < o.scales; ++s)
        expect_near("of variance", variance.data + b * o.scales + s, exact[b].variance, s, 1,
                    tolerance);
    }
  }

  const Product<T>& of;
  Array<T> product, x, variance;
};

}  // namespace checks
