// The second-order pass of MMD² on the CPU, Hessian times a direction: one visit to every ordered
// pair of rows. Plain and portable; the first-order pass (mmd.cpp) is the fast one.
//
// Each thread owns a range of rows and streams all columns past each row, in panels laid out
// feature by feature so that the inner loops run over columns. Distances are plain differences:
// nothing cancels however far from the origin the data lies. Sums over columns are in T within a
// panel and in double across panels; sums over rows are in double and in row order.
#include <algorithm>
#include <limits>
#include <vector>

#include "cpu/exp.h"
#include "cpu/parallel.h"
#include "cpu/read.h"
#include "mmd.h"

namespace cgm_fast {
namespace {

constexpr int kLanes = 64;  // columns of a panel

// phi(t) = exp(-t), the Gaussian kernel as a function of t = |a - b|^2 / 2h. A radial kernel is
// this one function: its value less one, and its first two derivatives.
struct Gaussian {
  template <typename T>
  static void evaluate(T t, T& minus_one, T& first, T& second) {
    T value;
    exp_neg(t, value, minus_one);
    first = -value;
    second = value;
  }
};

// Columns [begin, begin + kLanes) of one sample, transposed; lanes past the end weigh nothing.
template <typename T>
struct Panels {
  Panels(int64_t n, int64_t m, int64_t d)
      : d(d), x_panels((n + kLanes - 1) / kLanes), y_panels((m + kLanes - 1) / kLanes) {
    z.resize(count() * d * kLanes);
    a.resize(count() * kLanes);
  }

  int64_t count() const { return x_panels + y_panels; }
  bool of_x(int64_t panel) const { return panel < x_panels; }
  const T* columns(int64_t panel) const { return z.data() + panel * d * kLanes; }
  const T* weights(int64_t panel) const { return a.data() + panel * kLanes; }

  // Fills both from row-major samples; a null sample or weight reads as `fill`.
  void load(const T* x, const T* y, const T* ax, const T* ay, T scale_x, T scale_y, int64_t n,
            int64_t m, T fill) {
    load_sample(x, ax, scale_x, n, 0, fill);
    load_sample(y, ay, scale_y, m, x_panels, fill);
  }

  int64_t d, x_panels, y_panels;
  std::vector<T> z, a;

 private:
  void load_sample(const T* rows, const T* weights, T scale, int64_t n, int64_t first, T fill) {
    for (int64_t j = 0; j < (n + kLanes - 1) / kLanes * kLanes; ++j) {
      const int64_t panel = first + j / kLanes, lane = j % kLanes;
      const bool inside = j < n;
      a[panel * kLanes + lane] = inside ? scale * (weights ? weights[j] : fill) : T(0);
      for (int64_t f = 0; f < d; ++f)
        z[(panel * d + f) * kLanes + lane] = inside && rows ? rows[j * d + f] : T(0);
    }
  }
};

// |a - b|^2 / 2h, kept finite: 0 * inf would turn a vanished kernel into NaN.
template <typename T>
inline T scaled(T u, T inverse) {
  const T t = u * inverse, largest = std::numeric_limits<T>::max();
  return largest < t ? largest : t;
}

// The inputs of one batch item, ready to be visited.
template <typename T>
struct Item {
  Item(const MmdInput<T>& in, int64_t b)
      : in(in),
        z((in.n + in.m) * in.d),
        variance(in.scales),
        cross(T(in.cross_scale) * (in.cross ? in.cross[b] : T(1))),
        panels(in.n, in.m, in.d) {
    for (int64_t i = 0; i < in.n + in.m; ++i) {
      const bool of_y = i >= in.n;
      read_row(of_y ? in.y : in.x, b, of_y ? i - in.n : i, in.d, z.data() + i * in.d);
    }
    panels.load(row(0), row(in.n), in.x_weights ? in.x_weights + b * in.n : nullptr,
                in.y_weights ? in.y_weights + b * in.m : nullptr, T(in.x_scale), T(-in.y_scale),
                in.n, in.m, T(1));
    for (int64_t s = 0; s < in.scales; ++s)
      variance[s] = in.variance ? in.variance[b * in.scales + s] : T(in.variances[s]);
  }

  const T* row(int64_t i) const { return z.data() + i * in.d; }
  // Where row i's weight (or any per-row value laid out in panels) lies.
  int64_t lane(int64_t i) const { return i < in.n ? i : panels.x_panels * kLanes + (i - in.n); }
  T weight(int64_t i) const { return panels.a[lane(i)]; }
  T relation(int64_t i, int64_t panel) const {
    return (i < in.n) == panels.of_x(panel) ? T(1) : cross;
  }

  const MmdInput<T>& in;
  std::vector<T> z;  // [M, d], x above y
  std::vector<T> variance;
  T cross;
  Panels<T> panels;
};

template <typename T>
void squared_distances(const T* row, const T* columns, int64_t d, T* u) {
  std::fill(u, u + kLanes, T(0));
  for (int64_t f = 0; f < d; ++f) {
    const T value = row[f];
    const T* column = columns + f * kLanes;
#pragma omp simd
    for (int j = 0; j < kLanes; ++j) {
      const T difference = value - column[j];
      u[j] += difference * difference;
    }
  }
}

// The kernel and its derivatives in u and in each h for one row of distances.
template <typename T>
struct KernelRow {
  explicit KernelRow(int64_t scales) : by_variance(scales * kLanes) {}

  template <typename Kernel>
  void evaluate(const MmdInput<T>& in, const T* variance, const T* u, bool with_variance) {
    std::fill(minus_one, minus_one + kLanes, T(0));
    std::fill(by_u, by_u + kLanes, T(0));
    for (int64_t s = 0; s < in.scales; ++s) {
      const T inverse = T(0.5) / variance[s], weight = T(in.kernel_weights[s]);
#pragma omp simd
      for (int j = 0; j < kLanes; ++j) {
        T value, first, second;
        Kernel::evaluate(scaled(u[j], inverse), value, first, second);
        minus_one[j] += weight * value;
        by_u[j] += weight * inverse * first;
      }
      if (!with_variance) continue;
      T* row = by_variance.data() + s * kLanes;
#pragma omp simd
      for (int j = 0; j < kLanes; ++j) {
        T value, first, second;
        const T t = scaled(u[j], inverse);
        Kernel::evaluate(t, value, first, second);
        row[j] = -weight * first * t * (T(2) * inverse);
      }
    }
  }

  // Directional derivatives along (u', h'): of k - 1, of dk/du and of each dk/dh.
  template <typename Kernel>
  void differentiate(const MmdInput<T>& in, const T* variance, const T* u, const T* u_dot,
                     const T* h_dot) {
    std::fill(minus_one_dot, minus_one_dot + kLanes, T(0));
    std::fill(by_u_dot, by_u_dot + kLanes, T(0));
    for (int64_t s = 0; s < in.scales; ++s) {
      const T h = variance[s], inverse = T(0.5) / h, weight = T(in.kernel_weights[s]);
      const T dh = h_dot ? h_dot[s] : T(0);
      T* row = by_variance_dot.data() + s * kLanes;
#pragma omp simd
      for (int j = 0; j < kLanes; ++j) {
        T value, first, second;
        const T t = scaled(u[j], inverse);
        Kernel::evaluate(t, value, first, second);
        const T t_dot = (u_dot[j] - T(2) * t * dh) * inverse;
        minus_one_dot[j] += weight * first * t_dot;
        by_u_dot[j] += weight * inverse * (second * t_dot - first * dh / h);
        row[j] = -weight * ((second * t + first) * t_dot - first * t * dh / h) / h;
      }
    }
  }

  T minus_one[kLanes], by_u[kLanes], minus_one_dot[kLanes], by_u_dot[kLanes];
  std::vector<T> by_variance, by_variance_dot;
};

template <typename T>
void backward_item(const MmdInput<T>& in, const MmdTangent<T>& tangent, int64_t b, int threads) {
  const Item<T> item(in, b);
  const int64_t rows = in.n + in.m, wanted = tangent.row_end - tangent.row_begin;
  const int64_t p = in.scales + 1;
  const T* tz = tangent.z ? tangent.z + b * rows * in.d : nullptr;
  const T* ta = tangent.a ? tangent.a + b * rows : nullptr;
  const T* tp = tangent.p ? tangent.p + b * p : nullptr;
  const T cross_dot = tp ? tp[in.scales] : T(0);
  const std::vector<T> zero(in.d, T(0));
  Panels<T> dots(in.n, in.m, in.d);  // the tangent, laid out like the data
  dots.load(tz, tz ? tz + in.n * in.d : nullptr, ta, ta ? ta + in.n : nullptr, T(1), T(1), in.n,
            in.m, T(0));
  std::vector<double> row_p(tangent.out_p ? rows * p : 0);
  const double work = double(rows) * rows * (2 * in.d + 40.0 * in.scales);
  split_rows(rows, useful_threads(work, threads), [&](int, int64_t begin, int64_t end) {
    KernelRow<T> kernel(in.scales);
    kernel.by_variance_dot.resize(in.scales * kLanes);
    std::vector<double> sums(in.d);
    alignas(64) T u[kLanes], u_dot[kLanes], w[kLanes], w_dot[kLanes], c_dot[kLanes];
    for (int64_t i = begin; i < end; ++i) {
      const T *z = item.row(i), *z_dot = tz ? tz + i * in.d : zero.data();
      const T a_i = item.weight(i), a_i_dot = dots.a[item.lane(i)];
      std::fill(sums.begin(), sums.end(), 0.0);
      double inside = 0;
      for (int64_t panel = 0; panel < item.panels.count(); ++panel) {
        const T *columns = item.panels.columns(panel), *columns_dot = dots.columns(panel);
        const T *a = item.panels.weights(panel), *a_dot = dots.weights(panel);
        const bool across = (i < in.n) != item.panels.of_x(panel);
        const T r = across ? item.cross : T(1), r_dot = across ? cross_dot : T(0);
        squared_distances(z, columns, in.d, u);
        std::fill(u_dot, u_dot + kLanes, T(0));
        for (int64_t f = 0; f < in.d; ++f)
#pragma omp simd
          for (int j = 0; j < kLanes; ++j)
            u_dot[j] +=
                T(2) * (z[f] - columns[f * kLanes + j]) * (z_dot[f] - columns_dot[f * kLanes + j]);
        kernel.template evaluate<Gaussian>(in, item.variance.data(), u, tangent.out_p != nullptr);
        kernel.template differentiate<Gaussian>(in, item.variance.data(), u, u_dot, tp);
#pragma omp simd
        for (int j = 0; j < kLanes; ++j) {
          c_dot[j] = r * (a_i_dot * a[j] + a_i * a_dot[j]) + r_dot * a_i * a[j];
          w[j] = r * a_i * a[j] * kernel.by_u[j];
          w_dot[j] = c_dot[j] * kernel.by_u[j] + r * a_i * a[j] * kernel.by_u_dot[j];
        }
        for (int j = 0; j < kLanes; ++j)
          inside += (r_dot * a[j] + r * a_dot[j]) * kernel.minus_one[j] +
                    r * a[j] * kernel.minus_one_dot[j];
        for (int64_t f = 0; f < in.d; ++f) {
          T sum = 0;
#pragma omp simd reduction(+ : sum)
          for (int j = 0; j < kLanes; ++j)
            sum += w_dot[j] * (z[f] - columns[f * kLanes + j]) +
                   w[j] * (z_dot[f] - columns_dot[f * kLanes + j]);
          sums[f] += sum;
        }
        if (!tangent.out_p) continue;
        double* row = row_p.data() + i * p;
        for (int64_t s = 0; s < in.scales; ++s)
          for (int j = 0; j < kLanes; ++j)
            row[s] += c_dot[j] * kernel.by_variance[s * kLanes + j] +
                      r * a_i * a[j] * kernel.by_variance_dot[s * kLanes + j];
        if (across)
          for (int j = 0; j < kLanes; ++j)
            row[in.scales] += (a_i_dot * a[j] + a_i * a_dot[j]) * kernel.minus_one[j] +
                              a_i * a[j] * kernel.minus_one_dot[j];
      }
      if (tangent.out_a) tangent.out_a[b * rows + i] = T(2 * inside);
      if (i < tangent.row_begin || i >= tangent.row_end) continue;
      T* out = tangent.out_z + (b * wanted + i - tangent.row_begin) * in.d;
      for (int64_t f = 0; f < in.d; ++f) out[f] = T(4 * sums[f]);
    }
  });
  if (!tangent.out_p) return;
  for (int64_t s = 0; s < p; ++s) {
    double sum = 0;
    for (int64_t i = 0; i < rows; ++i) sum += row_p[i * p + s];
    tangent.out_p[b * p + s] = T(sum);
  }
}

// Many small problems: a thread takes whole ones. Few: the threads share the rows of each.
template <typename T, typename Visit>
void for_each_item(const MmdInput<T>& in, int threads, const Visit& visit) {
  const double rows = double(in.n + in.m);
  const double work = in.batch * rows * rows * (in.d + 20.0 * in.scales);
  if (in.batch >= threads && threads > 1) {
    split_rows(in.batch, useful_threads(work, threads), [&](int, int64_t begin, int64_t end) {
      for (int64_t b = begin; b < end; ++b) visit(b, 1);
    });
  } else {
    for (int64_t b = 0; b < in.batch; ++b) visit(b, threads);
  }
}

}  // namespace

template <typename T>
void mmd_bwd_cpu(const MmdInput<T>& in, const MmdTangent<T>& tangent, int threads) {
  for_each_item(in, threads, [&](int64_t b, int inner) { backward_item(in, tangent, b, inner); });
}

template void mmd_bwd_cpu(const MmdInput<float>&, const MmdTangent<float>&, int);
template void mmd_bwd_cpu(const MmdInput<double>&, const MmdTangent<double>&, int);

}  // namespace cgm_fast
