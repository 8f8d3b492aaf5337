// Runs the CPU kernels without Python and holds them to a plain evaluation in double.
//
//   driver [SEEDS]       every check; a line for each failure, and exit status 1
//   driver mmd SEED      one check of mmd, and of its second-order pass
//   driver margin SEED   one check of prototype_margin
//   driver count [NAME]  the cases whose instructions are counted, or one: see instructions.py
//
// A seed stands for a problem: shapes, dtypes, strides and options are drawn from it.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <initializer_list>
#include <limits>
#include <memory>
#include <string>
#include <thread>
#include <tuple>
#include <utility>
#include <vector>

#ifndef _WIN32
#include <sys/wait.h>
#include <unistd.h>
#endif

#include "cpu/isa.h"
#include "mmd.h"
#include "prototype_margin.h"

int check_step();  // check_step.cpp

namespace {

using namespace cgm_fast;
using Vector = std::vector<double>;

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr int kThreads[] = {1, 2, 5};

int failures = 0;
std::string now_checking;

void expect(bool good, const char* what, double found = kNan, double limit = kNan) {
  if (good) return;
  ++failures;
  std::printf("FAILED %s: %s (%.3g, limit %.3g)\n", now_checking.c_str(), what, found, limit);
}

struct Random {  // splitmix64: the same problems with every standard library
  uint64_t state;
  uint64_t next() {
    uint64_t bits = state += 0x9e3779b97f4a7c15;
    bits = (bits ^ bits >> 30) * 0xbf58476d1ce4e5b9;
    bits = (bits ^ bits >> 27) * 0x94d049bb133111eb;
    return bits ^ bits >> 31;
  }
  double uniform() { return double(next() >> 11) * 0x1p-53; }
  double normal() { return 2 * (uniform() + uniform() + uniform()) - 3; }  // near enough
  int64_t below(int64_t end) { return int64_t(next() % uint64_t(end)); }
  bool chance(double p) { return uniform() < p; }
  template <typename U>
  U pick(std::initializer_list<U> choices) {
    return choices.begin()[below(int64_t(choices.size()))];
  }
};

// Elements that end where their heap block ends, so that AddressSanitizer sees an overrun, and
// begin one element into it, so that nothing is aligned by luck. NaN (or -1) until written.
template <typename T>
struct Array {
  explicit Array(int64_t size, bool wanted = true)
      : size(wanted ? size : 0), block(new T[size + 1]), data(wanted ? block.get() + 1 : nullptr) {
    std::fill_n(block.get(), size + 1, std::is_integral_v<T> ? T(-1) : T(kNan));
  }
  bool operator==(const Array& other) const {
    return size == other.size && (size == 0 || !std::memcmp(data, other.data, size * sizeof(T)));
  }
  int64_t size;
  std::unique_ptr<T[]> block;
  T* data;
};

template <typename T>
Array<T> to_array(const Vector& values, bool wanted = true) {
  Array<T> out(int64_t(values.size()), wanted);
  if (wanted) std::copy(values.begin(), values.end(), out.data);
  return out;
}

// --- samples of every dtype and layout

uint16_t half_bits(double value) {  // rounded towards zero
  const uint16_t sign = value < 0 ? 0x8000 : 0;
  value = std::fabs(value);
  if (value < 0x1p-14) return uint16_t(sign | int(value * 0x1p24));
  const int exponent = std::ilogb(value);
  return uint16_t(sign | (exponent + 15) << 10 | (int(std::ldexp(value, 10 - exponent)) & 0x3ff));
}

double half_value(uint16_t bits) {
  const int exponent = bits >> 10 & 31, mantissa = bits & 0x3ff;
  const double value =
      std::ldexp(exponent ? 1024 + mantissa : mantissa, std::max(exponent, 1) - 25);
  return bits & 0x8000 ? -value : value;
}

enum class Strides { contiguous, padded, spread, transposed, same_items, same_rows };

class Sample {
 public:
  template <typename Value>  // value(item, row, feature)
  Sample(int64_t batch, int64_t rows, int64_t d, Dtype dtype, Strides strides, const Value& value)
      : rows_(rows), d_(d) {
    bytes_ = dtype == Dtype::float64 ? 8 : dtype == Dtype::float32 ? 4 : 2;
    view.dtype = dtype;
    view.feature_stride = strides == Strides::spread ? 2 : 1;
    view.row_stride = d * view.feature_stride + (strides == Strides::padded ? 3 : 0);
    if (strides == Strides::transposed) {
      view.feature_stride = rows;
      view.row_stride = 1;
    }
    view.item_stride = strides == Strides::transposed ? rows * d : rows * view.row_stride;
    if (strides == Strides::same_items) view.item_stride = 0;
    if (strides == Strides::same_rows) view.row_stride = view.item_stride = 0;
    const int64_t last = at(batch - 1, rows - 1, d - 1);
    block_.reset(new unsigned char[(last + 2) * bytes_]);
    std::memset(block_.get(), 0xff, (last + 2) * bytes_);  // NaN in every dtype
    view.data = block_.get() + bytes_;
    for (int64_t b = 0; b < batch; ++b)
      for (int64_t i = 0; i < rows; ++i)
        for (int64_t f = 0; f < d; ++f) put(at(b, i, f), value(b, i, f));
  }

  double operator()(int64_t b, int64_t i, int64_t f) const {
    const unsigned char* from = block_.get() + (at(b, i, f) + 1) * bytes_;
    if (view.dtype == Dtype::float64) return get<double>(from);
    if (view.dtype == Dtype::float32) return get<float>(from);
    if (view.dtype == Dtype::float16) return half_value(get<uint16_t>(from));
    const uint32_t bits = uint32_t(get<uint16_t>(from)) << 16;
    return get<float>(&bits);
  }

  Samples view;

 private:
  template <typename U>
  static U get(const void* from) {
    U value;
    std::memcpy(&value, from, sizeof(U));
    return value;
  }
  int64_t at(int64_t b, int64_t i, int64_t f) const {
    return b * view.item_stride + i * view.row_stride + f * view.feature_stride;
  }
  void put(int64_t where, double value) {
    const float single = float(value);
    uint16_t half = half_bits(value);
    if (view.dtype == Dtype::bfloat16) half = uint16_t(get<uint32_t>(&single) >> 16);
    const void* from = view.dtype == Dtype::float64   ? static_cast<const void*>(&value)
                       : view.dtype == Dtype::float32 ? static_cast<const void*>(&single)
                                                      : static_cast<const void*>(&half);
    std::memcpy(block_.get() + (where + 1) * bytes_, from, bytes_);
  }

  int64_t rows_, d_;
  size_t bytes_;
  std::unique_ptr<unsigned char[]> block_;
};

// --- mmd

// A value and its derivative along a direction. All second derivatives follow from the first.
struct Dual {
  double value = 0, dot = 0;
};
Dual operator+(Dual p, Dual q) { return {p.value + q.value, p.dot + q.dot}; }
Dual operator-(Dual p, Dual q) { return {p.value - q.value, p.dot - q.dot}; }
Dual operator*(Dual p, Dual q) { return {p.value * q.value, p.dot * q.value + p.value * q.dot}; }
Dual operator*(double p, Dual q) { return {p * q.value, p * q.dot}; }
Dual operator/(Dual p, Dual q) {
  const double value = p.value / q.value;
  return {value, (p.dot - value * q.dot) / q.value};
}
Dual expm1(Dual p) { return {std::expm1(p.value), std::exp(p.value) * p.dot}; }
Dual exp(Dual p) { return {std::exp(p.value), std::exp(p.value) * p.dot}; }

struct Sums {  // of one quantity per element, and of the magnitudes of what was added up
  explicit Sums(int64_t size) : sum(size), size(size) {}
  void add(int64_t at, Dual part, bool second) {
    sum[at] += second ? part.dot : part.value;
    size[at] += std::fabs(second ? part.dot : part.value);
  }
  Vector sum, size;
};

// |found - wanted| <= tolerance * |magnitudes| over a range of elements; a NaN anywhere fails.
template <typename T>
void expect_near(const char* what, const T* found, const Sums& wanted, int64_t begin, int64_t count,
                 double tolerance) {
  double error = 0, size = 0;
  for (int64_t i = 0; i < count; ++i) {
    const double difference = double(found[i]) - wanted.sum[begin + i];
    error += difference * difference;
    size += wanted.size[begin + i] * wanted.size[begin + i];
  }
  // In float a kernel underflows where it does not in double.
  const double limit = tolerance * std::sqrt(size) + 1e-30;
  expect(std::sqrt(error) <= limit, what, std::sqrt(error), limit);
}

struct Point {  // what the loss of one batch item is a function of, and a direction
  std::vector<Dual> z, a, h;
  Dual cross;
};

struct Exact {  // the loss and its derivatives, or all of their derivatives along the direction
  Sums loss, z, a, p;
};

Exact exact_mmd(const Point& at, int64_t n, int64_t d, const Vector& kernel_weights, bool second) {
  const int64_t rows = int64_t(at.a.size()), scales = int64_t(at.h.size());
  Exact out{Sums(1), Sums(rows * d), Sums(rows), Sums(scales + 1)};
  Vector centre(d);
  for (int64_t i = 0; i < rows * d; ++i) centre[i % d] += at.z[i].value / double(rows);
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < i; ++j) {
      const Dual *z_i = &at.z[i * d], *z_j = &at.z[j * d];
      const bool across = (i < n) != (j < n);
      const Dual r = across ? at.cross : Dual{1, 0}, pair = 2 * (at.a[i] * at.a[j]);
      Dual u, minus_one, slope;
      for (int64_t f = 0; f < d; ++f) u = u + (z_i[f] - z_j[f]) * (z_i[f] - z_j[f]);
      for (int64_t s = 0; s < scales; ++s) {
        const Dual t = 0.5 * (u / at.h[s]), k = kernel_weights[s] * exp(-1 * t);
        minus_one = minus_one + kernel_weights[s] * expm1(-1 * t);
        slope = slope - 0.5 * (k / at.h[s]);
        out.p.add(s, pair * r * k * t / at.h[s], second);
        out.p.size[s] += std::fabs((pair * r * k / at.h[s]).value);  // t is a rounded difference
      }
      out.loss.add(0, pair * r * minus_one, second);
      if (across) out.p.add(scales, pair * minus_one, second);
      out.a.add(i, 2 * (r * at.a[j] * minus_one), second);
      out.a.add(j, 2 * (r * at.a[i] * minus_one), second);
      for (int64_t f = 0; f < d; ++f) {
        const Dual part = 2 * (pair * r * slope * (z_i[f] - z_j[f]));
        out.z.add(i * d + f, part, second);
        out.z.add(j * d + f, -1 * part, second);
        // Sums of z_j and z_i times a sum are subtracted: coincident rows leave their rounding.
        const double moment = 0.1 * std::fabs((2 * (pair * r * slope)).value);
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

// Loss and gradient, or with `second` the Hessian times the problem's direction.
template <typename T>
struct MmdResult {
  explicit MmdResult(const Mmd<T>& of, bool second)
      : of(of),
        second(second),
        loss(of.o.batch),
        z(of.o.batch * (of.o.end - of.o.begin) * of.o.d),
        a(of.o.batch * (of.o.n + of.o.m), of.o.grad_a),
        p(of.o.batch * (of.o.scales + 1), of.o.grad_p) {}

  void compute(int threads) {
    if (second) {
      mmd_bwd_cpu<T>(of.in,
                     {of.o.begin, of.o.end, of.tangent_z.data, of.tangent_a.data, of.tangent_p.data,
                      z.data, a.data, p.data},
                     threads);
    } else {
      mmd_fwd_cpu<T>(of.in, {of.o.begin, of.o.end, loss.data, z.data, a.data, p.data}, threads);
    }
  }

  bool operator==(const MmdResult& other) const {
    return (second || loss == other.loss) && z == other.z && a == other.a && p == other.p;
  }

  void check(const std::vector<Exact>& exact) const {
    // A kernel's relative error grows with its exponent.
    const double tolerance =
        (sizeof(T) == 4 ? 1e-5 : 1e-12) * std::max(second ? 5 : 1.0, of.o.width / 3);
    const int64_t d = of.o.d, rows = of.o.n + of.o.m, wanted = of.o.end - of.o.begin;
    for (int64_t b = 0; b < of.o.batch; ++b) {
      const Exact& e = exact[b];
      if (!second) expect_near("loss", loss.data + b, e.loss, 0, 1, tolerance);
      expect_near(second ? "second z" : "grad z", z.data + b * wanted * d, e.z, of.o.begin * d,
                  wanted * d, tolerance);
      if (a.data) expect_near("grad_a", a.data + b * rows, e.a, 0, rows, tolerance);
      for (int64_t s = 0; p.data && s <= of.o.scales; ++s)
        expect_near("grad_p", p.data + b * (of.o.scales + 1) + s, e.p, s, 1, tolerance);
    }
  }

  const Mmd<T>& of;
  const bool second;
  Array<T> loss, z, a, p;
};

template <typename T>
void check_mmd(const MmdOptions& options, Random& random, bool with_second = true) {
  const Mmd<T> problem(options, random);
  for (int second = 0; second <= int(with_second); ++second) {
    std::vector<Exact> exact;
    for (int64_t b = 0; b < options.batch; ++b)
      exact.push_back(
          exact_mmd(problem.point(b), options.n, options.d, problem.kernel_weights, second));
    for (int threads : kThreads) {
      MmdResult<T> result(problem, second), again(problem, second);
      result.compute(threads);
      result.check(exact);
      again.compute(threads);
      expect(result == again, "bits differ from run to run");
    }
  }
}

void check_mmd(uint64_t seed) {
  now_checking = "mmd " + std::to_string(seed);
  Random random{seed};
  MmdOptions o;
  const bool wide = random.chance(0.3);  // d from 64 on: fewer rows, so that this stays quick
  o.d = wide ? random.pick({64, 300, 600}) : random.pick({1, 2, 3, 10, 31, 32, 33});
  const auto rows = [&] {
    return wide ? random.pick({1, 2, 16, 33, 50}) : random.pick({1, 2, 5, 15, 16, 17, 64, 65, 150});
  };
  o.n = rows();
  o.m = rows();
  o.batch = (o.n + o.m) * (o.n + o.m) * o.d > 200000 ? 1 : random.pick({1, 2, 3, 7});
  o.scales = random.pick({1, 1, 2, 5});
  const bool single = random.chance(0.7);
  const auto dtype = [&] {
    return random.pick({Dtype::float16, Dtype::bfloat16, Dtype::float32,
                        single ? Dtype::float32 : Dtype::float64});
  };
  const auto strides = [&] {
    return random.pick({Strides::contiguous, Strides::padded, Strides::spread, Strides::transposed,
                        Strides::same_items, Strides::same_rows});
  };
  o.x_dtype = dtype();
  o.y_dtype = dtype();
  o.x_strides = strides();
  o.y_strides = strides();
  for (bool* given : {&o.x_weights, &o.y_weights, &o.cross, &o.variance, &o.near, &o.grad_a,
                      &o.grad_p, &o.tangent_a, &o.tangent_p})
    *given = random.chance(0.3);
  o.grad_a &= o.x_weights || o.y_weights;  // without weights the kernel does not sum every row
  o.tangent_z = !(o.tangent_a || o.tangent_p) || random.chance(0.7);
  // From few bandwidths to many: the kernel has a formula for each. Not coincident rows many of
  // them from all others, whose gradient is nothing but rounding.
  o.width = random.pick({0.01, 1.0, 30.0});
  if (o.x_strides == Strides::same_rows || o.y_strides == Strides::same_rows) o.width = 0.3;
  const bool half = std::min(o.x_dtype, o.y_dtype) < Dtype::float32;
  o.offset = random.pick({0.0, 0.0, half ? 2.0 : 100.0});  // 16 bits hold no small steps at 100
  const int64_t all = o.n + o.m, a = random.below(all + 1), b = random.below(all + 1);
  const std::pair<int64_t, int64_t> ranges[] = {
      {0, all}, {0, all}, {0, o.n}, {o.n, all}, {0, 0}, {std::min(a, b), std::max(a, b)}};
  std::tie(o.begin, o.end) = ranges[random.below(6)];
  char text[200];
  std::snprintf(text, sizeof text,
                " (%d %d %d, batch %d, scales %d, width %g, dtypes %d %d, strides %d %d)", int(o.n),
                int(o.m), int(o.d), int(o.batch), int(o.scales), o.width, int(o.x_dtype),
                int(o.y_dtype), int(o.x_strides), int(o.y_strides));
  now_checking += text;
  single ? check_mmd<float>(o, random) : check_mmd<double>(o, random);
}

// Many tiles, and so rows and tiles enough for every sum that is kept apart.
void check_large_mmd() {
  for (auto [n, m, d] : {std::array<int64_t, 3>{700, 500, 3}, {1500, 1300, 2}, {500, 20, 40}}) {
    now_checking = "mmd of many rows";
    Random random{uint64_t(n)};
    MmdOptions o{1, n, m, d, 1};
    o.end = n + m;
    check_mmd<float>(o, random, n < 1000);
  }
}

// A NaN anywhere makes the loss NaN; no kernel may turn it into an index or a shift.
void check_nan() {
  for (double value : {kNan, std::numeric_limits<double>::infinity()}) {
    now_checking = "mmd of a NaN or an infinity";
    Random random{1};
    MmdOptions o{1, 20, 30, 3, 2};
    o.end = 50;
    o.grad_a = o.grad_p = true;
    Mmd<float> problem(o, random);
    float* first = const_cast<float*>(static_cast<const float*>(problem.in.x.data));
    first[7] = float(value);
    for (bool second : {false, true}) {
      MmdResult<float> result(problem, second);
      result.compute(2);
      expect(std::isnan(second ? result.z.data[6] : result.loss.data[0]), "lost a NaN");
    }
  }
}

// --- prototype_margin

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
      : loss(1), r(of.r.size), g(of.g.size), second_r(of.r.size), second_g(of.g.size) {
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
          second_r.add(i * in.d + f, part, true);
          second_g.add(c * in.d + f, -1 * part, true);
        }
      }
    }
  }

  Sums loss, r, g, second_r, second_g;
  std::vector<int64_t> assignment;
};

template <typename T>
struct MarginResult {
  MarginResult(const Margin<T>& of, bool with_r, bool with_g)
      : of(of),
        loss(1),
        r(of.r.size, with_r),
        g(of.g.size, with_g),
        second_r(of.r.size),
        second_g(of.g.size),
        assignment(of.in.rows) {}

  void compute_first(int threads) {
    prototype_margin_fwd_cpu<T>(of.in, {loss.data, assignment.data, r.data, g.data}, threads);
  }

  void compute(int threads) {
    compute_first(threads);
    prototype_margin_bwd_cpu<T>(
        of.in, {assignment.data, of.t_r.data, of.t_g.data, second_r.data, second_g.data}, threads);
  }

  bool operator==(const MarginResult& other) const {
    return loss == other.loss && assignment == other.assignment && r == other.r && g == other.g &&
           second_r == other.second_r && second_g == other.second_g;
  }

  void check(const ExactMargin& exact) const {
    expect(std::equal(exact.assignment.begin(), exact.assignment.end(), assignment.data),
           "assignment");
    const double tolerance = sizeof(T) == 4 ? 1e-6 : 1e-12;
    expect_near("loss", loss.data, exact.loss, 0, 1, tolerance);
    expect_near("grad_r", r.data, exact.r, 0, r.size, tolerance);
    expect_near("grad_g", g.data, exact.g, 0, g.size, tolerance);
    expect_near("second_r", second_r.data, exact.second_r, 0, second_r.size, tolerance);
    expect_near("second_g", second_g.data, exact.second_g, 0, second_g.size, tolerance);
  }

  const Margin<T>& of;
  Array<T> loss, r, g, second_r, second_g;
  Array<int64_t> assignment;
};

template <typename T>
void check_margin(Random& random) {
  const int64_t d = random.pick({1, 2, 3, 10, 31, 32, 33, 64, 300, 600});
  const int64_t k = random.pick({1, 2, 3, 10, 17, 100, 300});
  const int64_t rows = d * k > 10000 ? random.pick({1, 3, 20}) : random.pick({1, 2, 7, 64, 150});
  const bool labels = random.chance(0.4), tangent_r = random.chance(0.7),
             tangent_g = random.chance(0.7), with_r = random.chance(0.7),
             with_g = random.chance(0.7);
  const Margin<T> problem(rows, k, d, true, labels, tangent_r, tangent_g, random);
  const ExactMargin exact(problem);
  for (int threads : kThreads) {
    MarginResult<T> result(problem, with_r, with_g), again(problem, with_r, with_g);
    result.compute(threads);
    result.check(exact);
    again.compute(threads);
    expect(result == again, "bits differ from run to run");
  }
}

void check_margin(uint64_t seed) {
  now_checking = "margin " + std::to_string(seed);
  Random random{seed};
  random.chance(0.6) ? check_margin<float>(random) : check_margin<double>(random);
}

// --- the pool of threads

struct Everything {  // one of each call, with work for several threads
  Everything()
      : random{3}, mmd(options(), random), margin(3000, 100, 31, true, false, true, true, random) {}

  static MmdOptions options() {
    MmdOptions o{1, 700, 600, 3, 1};
    o.end = 1300;
    return o;
  }

  struct Result {
    explicit Result(const Everything& of, int threads)
        : first(of.mmd, false), second(of.mmd, true), margin(of.margin, true, true) {
      first.compute(threads);
      second.compute(threads);
      margin.compute(threads);
    }
    bool operator==(const Result& other) const {
      return first == other.first && second == other.second && margin == other.margin;
    }
    MmdResult<float> first, second;
    MarginResult<float> margin;
  };

  Random random;
  Mmd<float> mmd;
  Margin<float> margin;
};

void check_concurrent_calls() {
  now_checking = "concurrent calls";
  const Everything problem;
  const Everything::Result two(problem, 2), five(problem, 5);
  bool same[4] = {};
  std::vector<std::thread> callers;
  for (int caller = 0; caller < 4; ++caller) {
    callers.emplace_back([&, caller] {
      same[caller] = true;
      for (int call = 0; call < 5; ++call) {
        const Everything::Result found(problem, (call + caller) % 2 ? 5 : 2);
        same[caller] &= found == ((call + caller) % 2 ? five : two);
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
  for (bool good : same) expect(good, "bits differ from those of a call alone");
}

void check_fork() {
#if !defined(_WIN32) && !defined(CGM_FAST_NO_FORK)
  now_checking = "fork";
  const Everything problem;
  const Everything::Result before(problem, 5);
  const pid_t child = fork();
  if (child == 0) {
    alarm(60);  // a child that waits for threads it does not have
    _exit(Everything::Result(problem, 5) == before ? 0 : 1);
  }
  int status = -1;
  waitpid(child, &status, 0);
  expect(status == 0, "a forked child differs", status, 0);
  expect(Everything::Result(problem, 5) == before, "the parent differs after a fork");
#endif
}

// --- instruction counts

}  // namespace

// Callgrind counts inside this function only; see instructions.py.
extern "C" __attribute__((noinline)) void cgm_fast_counted(const std::function<void()>& call) {
  call();
  asm volatile("" ::: "memory");  // no tail call: callgrind must see the return
}

namespace {

bool count(const char* wanted) {
  bool found = false;
  const auto run = [&](const char* name, const std::function<void()>& call) {
    if (!found) call();  // what happens once in a process is not counted
    found = true;
    cgm_fast_counted(call);
    std::printf("%s\n", name);
  };
  const auto mmd = [&](const char* name, int64_t rows, int64_t d, int64_t scales, auto zero,
                       bool second) {
    if (wanted && std::strcmp(name, wanted) != 0) return;
    using T = decltype(zero);
    Random random{1};
    MmdOptions o{1, rows, rows, d, scales};
    o.x_dtype = o.y_dtype = sizeof(T) == 4 ? Dtype::float32 : Dtype::float64;
    o.end = 2 * rows;
    const Mmd<T> problem(o, random);
    MmdResult<T> result(problem, second);
    run(name, [&] { result.compute(1); });
  };
  const auto margin = [&](const char* name, int64_t rows, int64_t k, int64_t d) {
    if (wanted && std::strcmp(name, wanted) != 0) return;
    Random random{1};
    const Margin<float> problem(rows, k, d, false, false, false, false, random);
    MarginResult<float> result(problem, true, true);
    run(name, [&] { result.compute_first(1); });
  };
#ifdef __clang__
  std::printf("clang %d %s\n", __clang_major__, isa_name(isa()));
#else
  std::printf("gcc %d %s\n", __GNUC__, isa_name(isa()));
#endif
  mmd("mmd-64x10", 64, 10, 1, 0.0f, false);
  mmd("mmd-1024x10", 1024, 10, 1, 0.0f, false);
  mmd("mmd-512x64", 512, 64, 1, 0.0f, false);
  mmd("mmd-256x300", 256, 300, 1, 0.0f, false);
  mmd("mmd-256x10-float64", 256, 10, 1, 0.0, false);
  mmd("mmd-256x10-bandwidths5", 256, 10, 5, 0.0f, false);
  mmd("mmd-second-128x10", 128, 10, 1, 0.0f, true);
  margin("margin-64x10x10", 64, 10, 10);
  margin("margin-1024x100x64", 1024, 100, 64);
  margin("margin-256x1000x10", 256, 1000, 10);
  return found;
}

}  // namespace

int main(int count_of_arguments, char** arguments) {
  const std::string what = count_of_arguments > 1 ? arguments[1] : "";
  const char* which = count_of_arguments > 2 ? arguments[2] : nullptr;
  const uint64_t seeds = what.empty() ? 150 : std::strtoull(what.c_str(), nullptr, 10);
  if (what == "count") return count(which) ? 0 : 2;
  if (what == "mmd" && which) {
    check_mmd(std::strtoull(which, nullptr, 10));
  } else if (what == "margin" && which) {
    check_margin(std::strtoull(which, nullptr, 10));
  } else if (seeds > 0) {
    for (uint64_t seed = 0; seed < seeds; ++seed) check_mmd(seed);
    for (uint64_t seed = 0; seed < seeds / 2; ++seed) check_margin(seed);
    check_large_mmd();
    check_nan();
    failures += check_step();
    check_concurrent_calls();
    check_fork();
  } else {
    std::printf("usage: driver [SEEDS | mmd SEED | margin SEED | count [NAME]]\n");
    return 2;
  }
  std::printf("%s: %d failures\n", isa_name(isa()), failures);
  return failures != 0;
}
