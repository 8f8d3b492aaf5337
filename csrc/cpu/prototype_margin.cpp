// Nearest prototype, margin loss, gradients and Hessian product on the CPU.
//
// Each thread owns a range of samples. Per sample one row of K distances is held, never B x K of
// them; prototypes are transposed once so that the inner loops run over prototypes. A thread sums
// its share of the prototypes' gradient, and the shares are added in thread order.
#include "prototype_margin.h"

#include <algorithm>
#include <limits>
#include <vector>

#include "cpu/parallel.h"

namespace cgm_fast {
namespace {

template <typename T>
std::vector<T> transpose(const T* g, int64_t k, int64_t d) {
  std::vector<T> columns(k * d);
  for (int64_t c = 0; c < k; ++c)
    for (int64_t f = 0; f < d; ++f) columns[f * k + c] = g[c * d + f];
  return columns;
}

template <typename T>
void squared_distances(const T* row, const T* columns, int64_t k, int64_t d, T* u) {
  std::fill(u, u + k, T(0));
  for (int64_t f = 0; f < d; ++f) {
    const T value = row[f];
    const T* column = columns + f * k;
#pragma omp simd
    for (int64_t c = 0; c < k; ++c) {
      const T difference = value - column[c];
      u[c] += difference * difference;
    }
  }
}

// dL/dd_ik, up to `scale`: 1 for the assigned prototype, -negative_scale inside the margin.
template <typename T>
T slope(const PrototypeMarginInput<T>& in, int64_t c, int64_t assigned, T distance) {
  if (c == assigned) return T(1);
  return distance < T(in.margin) ? T(-in.negative_scale) : T(0);
}

// Adds factor * (r - g_c) to grad_r and subtracts it from row c of the thread's grad_g.
template <typename T>
void add_pair(const T* r, const T* g, int64_t d, double factor, double* grad_r, double* grad_g) {
  for (int64_t f = 0; f < d; ++f) {
    const double part = factor * (double(r[f]) - double(g[f]));
    grad_r[f] += part;
    grad_g[f] -= part;
  }
}

template <typename T>
void add_parts(const std::vector<std::vector<double>>& parts, int64_t size, T* out) {
  for (int64_t i = 0; i < size; ++i) {
    double sum = 0;
    for (const auto& part : parts)
      if (!part.empty()) sum += part[i];
    out[i] = T(sum);
  }
}

template <typename T>
int threads_for(const PrototypeMarginInput<T>& in, int threads) {
  return useful_threads(double(in.rows) * in.k * (in.d + 4.0), threads);
}

}  // namespace

template <typename T>
void prototype_margin_fwd_cpu(const PrototypeMarginInput<T>& in,
                              const PrototypeMarginGradient<T>& out, int threads) {
  const bool with_gradient = out.grad_r || out.grad_g;
  const std::vector<T> columns = transpose(in.g, in.k, in.d);
  std::vector<double> row_loss(in.rows);
  threads = threads_for(in, threads);
  std::vector<std::vector<double>> parts(threads);
  split_rows(in.rows, threads, [&](int part, int64_t begin, int64_t end) {
    std::vector<T> u(in.k);
    std::vector<double> grad_r(in.d);
    if (with_gradient) parts[part].resize(in.k * in.d);
    for (int64_t i = begin; i < end; ++i) {
      const T* r = in.r + i * in.d;
      squared_distances(r, columns.data(), in.k, in.d, u.data());
      // min_element returns the first of equals; a NaN row keeps prototype 0 and a NaN loss.
      const int64_t assigned =
          in.labels ? in.labels[i] : std::min_element(u.begin(), u.end()) - u.begin();
      out.assignment[i] = assigned;
      if (assigned < 0 || assigned >= in.k) {  // callers check; never read out of bounds
        row_loss[i] = std::numeric_limits<double>::quiet_NaN();
        if (out.grad_r) std::fill_n(out.grad_r + i * in.d, in.d, T(0));
        continue;
      }
      double hinge = 0;
      for (int64_t c = 0; c < in.k; ++c)
        if (c != assigned && !(u[c] >= T(in.margin))) hinge += in.margin - double(u[c]);
      row_loss[i] = double(u[assigned]) + in.negative_scale * hinge;
      if (!with_gradient) continue;
      std::fill(grad_r.begin(), grad_r.end(), 0.0);
      for (int64_t c = 0; c < in.k; ++c) {
        const double a = slope(in, c, assigned, u[c]);
        if (a != 0)
          add_pair(r, in.g + c * in.d, in.d, 2 * in.scale * a, grad_r.data(),
                   parts[part].data() + c * in.d);
      }
      if (out.grad_r)
        for (int64_t f = 0; f < in.d; ++f) out.grad_r[i * in.d + f] = T(grad_r[f]);
    }
  });
  double loss = 0;
  for (double value : row_loss) loss += value;
  out.loss[0] = T(in.scale * loss);
  if (out.grad_g) add_parts(parts, in.k * in.d, out.grad_g);
}

template <typename T>
void prototype_margin_bwd_cpu(const PrototypeMarginInput<T>& in,
                              const PrototypeMarginTangent<T>& tangent, int threads) {
  const std::vector<T> columns = transpose(in.g, in.k, in.d);
  const std::vector<T> zero(in.d, T(0));
  threads = threads_for(in, threads);
  std::vector<std::vector<double>> parts(threads);
  split_rows(in.rows, threads, [&](int part, int64_t begin, int64_t end) {
    std::vector<T> u(in.k);
    std::vector<double> out_r(in.d);
    parts[part].resize(in.k * in.d);
    for (int64_t i = begin; i < end; ++i) {
      squared_distances(in.r + i * in.d, columns.data(), in.k, in.d, u.data());
      std::fill(out_r.begin(), out_r.end(), 0.0);
      for (int64_t c = 0; c < in.k; ++c) {
        const double a = slope(in, c, tangent.assignment[i], u[c]);
        if (a == 0) continue;
        add_pair(tangent.r ? tangent.r + i * in.d : zero.data(),
                 tangent.g ? tangent.g + c * in.d : zero.data(), in.d, 2 * in.scale * a,
                 out_r.data(), parts[part].data() + c * in.d);
      }
      for (int64_t f = 0; f < in.d; ++f) tangent.out_r[i * in.d + f] = T(out_r[f]);
    }
  });
  add_parts(parts, in.k * in.d, tangent.out_g);
}

template void prototype_margin_fwd_cpu(const PrototypeMarginInput<float>&,
                                       const PrototypeMarginGradient<float>&, int);
template void prototype_margin_fwd_cpu(const PrototypeMarginInput<double>&,
                                       const PrototypeMarginGradient<double>&, int);
template void prototype_margin_bwd_cpu(const PrototypeMarginInput<float>&,
                                       const PrototypeMarginTangent<float>&, int);
template void prototype_margin_bwd_cpu(const PrototypeMarginInput<double>&,
                                       const PrototypeMarginTangent<double>&, int);

}  // namespace cgm_fast
