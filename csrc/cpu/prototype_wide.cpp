// The margin loss for many features and prototypes on the CPU: the driver of the kernels in
// prototype_wide_kernel.cpp.
//
// What a distance decides, the assignment and which pairs are within the margin, must not hang on
// the rounding of a product: equal prototypes are equally far, to the bit. So a matrix product
// gives bounds that hold whatever was rounded, and the few pairs that these leave in doubt are
// taken as differences. Gradients are sums over these pairs alone: of a sample where it is visited,
// of a prototype by the list of its samples. Shares of threads are joined in the samples' order:
// results do not depend on the number of threads.
#include "cpu/prototype_wide.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <memory>
#include <vector>

#include "cpu/buffer.h"
#include "cpu/isa.h"
#include "cpu/parallel.h"
#include "cpu/prototype_kernel.h"
#include "cpu/prototype_wide_kernel.h"
#include "cpu/read.h"
#include "cpu/wide.h"

namespace cgm_fast {
namespace {

// The prototypes less their mean, in panels, and |g|^2.
template <typename T>
struct Prototypes {
  explicit Prototypes(const PrototypeMarginInput<T>& in)
      : panels((in.d + kPanel<T> - 1) / kPanel<T>),
        padded(round_up(in.k, 16)),
        step(padded * kPanel<T>),
        centre(in.d),
        z(panels * step + kWideSlack * kPanel<T>, T(0)),
        squares(padded + kWideTile, T(0)) {
    const WideRowKernels<T>& rows = wide_row_kernels<T>();
    std::vector<double> sum(in.d, 0.0);
    std::vector<T> copy;
    for (int64_t k = 0; k < in.k; ++k)
      rows.add(row_or_copy(in.g, 0, k, in.d, copy), in.d, sum.data());
    for (int64_t f = 0; f < in.d; ++f) centre[f] = T(sum[f] / double(in.k));
    for (int64_t k = 0; k < in.k; ++k)
      squares[k] = T(rows.centre(row_or_copy(in.g, 0, k, in.d, copy), centre.data(), in.d,
                                 {z.data + k * kPanel<T>, step}));
  }

  int64_t panels, padded, step;
  std::vector<T> centre;
  Buffer<T> z, squares;
};

// A sample and a prototype within its margin that is not its own.
struct Active {
  int64_t sample, prototype;
};

// What some samples add up to.
struct Share {
  double loss = 0;
  int64_t doubts = 0;  // pairs that were taken as differences
  std::vector<Active> active;
};

template <typename T>
class Worker {
 public:
  Worker(const PrototypeMarginInput<T>& in, const PrototypeMarginGradient<T>& out,
         const Prototypes<T>& g, int64_t* assigned)
      : in_(in),
        out_(out),
        g_(g),
        assigned_(assigned),
        z_((kWideTile + kWideSlack) * g.panels * kPanel<T>, T(0)),
        squares_(kWideTile),
        w_((kWideTile + kWideSlack) * kWideStride, T(0)),
        packed_(2 * 16 * kPanelsAtOnce * kPanel<T>),
        found_(kWideTile),
        sums_(in.d) {}

  // Samples [begin, end), kWideTile of them at most.
  void visit(int64_t begin, int64_t end, Share& share) {
    const int64_t count = end - begin, step = (kWideTile + kWideSlack) * kPanel<T>;
    for (int64_t i = 0; i < count; ++i)
      squares_[i] = T(rows_.centre(row_or_copy(in_.r, 0, begin + i, in_.d, copy_), g_.centre.data(),
                                   in_.d, {z_.data + i * kPanel<T>, step}));
    for (Found& of : found_) of.start();
    for (int64_t k = 0; k < in_.k; k += kWideTile) {
      const int64_t prototypes = std::min<int64_t>(kWideTile, in_.k - k);
      kernels_.products({z_.data, round_up(count, 16), step},
                        {g_.z.data + k * kPanel<T>, round_up(prototypes, 16), g_.step}, in_.d,
                        {w_.data, packed_.data});
      for (int64_t i = 0; i < count; ++i) meet(begin + i, i, k, prototypes, share);
    }
    for (int64_t i = 0; i < count; ++i) finish(begin + i, found_[i], share);
  }

 private:
  // What has been found of a sample.
  struct Found {
    T least;
    int64_t nearest;
    std::vector<std::pair<int64_t, T>> within;  // and their distances, not above the margin; NaNs

    void start() {
      least = std::numeric_limits<T>::infinity();
      nearest = 0;
      within.clear();
    }
  };

  // Sample i against prototypes [first, first + count), whose products are row `row` of w.
  void meet(int64_t i, int64_t row, int64_t first, int64_t count, Share& share) {
    Found& found = found_[row];
    T* w = w_.data + row * kWideStride;
    const int64_t closest =
        kernels_.bounds(w, g_.squares.data + first, count, squares_[row], slack());
    T limit = T(in_.margin);
    const T* r = row_or_copy(in_.r, 0, i, in_.d, copy_);
    if (!in_.labels) {
      // No other can be the nearest if it is farther than this one: most are.
      if (w[closest] <= found.least)
        nearer(found, first + closest, kernels_.distance(r, prototype(first + closest), in_.d));
      limit = std::max(limit, found.least);
      if (std::isfinite(limit)) limit = std::nextafter(limit, std::numeric_limits<T>::infinity());
    }
    const int64_t doubts = kernels_.below(w, count, limit, columns_);
    share.doubts += doubts;
    for (int64_t at = 0; at < doubts; ++at) {
      const int64_t k = first + columns_[at];
      const T distance = kernels_.distance(r, prototype(k), in_.d);
      if (!in_.labels) nearer(found, k, distance);
      if (!(distance >= T(in_.margin))) found.within.emplace_back(k, distance);
    }
  }

  static void nearer(Found& found, int64_t k, T distance) {
    if (distance < found.least || (distance == found.least && k < found.nearest)) {
      found.least = distance;
      found.nearest = k;
    }
  }

  void finish(int64_t i, const Found& found, Share& share) {
    const int64_t own = assigned_[i] = in_.labels ? in_.labels[i] : found.nearest;
    if (out_.assignment) out_.assignment[i] = own;
    T* grad = out_.grad_r ? out_.grad_r + i * in_.d : nullptr;
    if (own < 0 || own >= in_.k) {  // callers check; never read out of bounds
      assigned_[i] = -1;
      share.loss = std::numeric_limits<double>::quiet_NaN();
      if (grad) std::fill_n(grad, in_.d, T(0));
      return;
    }
    const T* r = row_or_copy(in_.r, 0, i, in_.d, copy_);
    share.loss += double(kernels_.distance(r, prototype(own), in_.d));
    if (grad) pairs_.pair(r, prototype(own), in_.d, 2 * in_.scale, grad, nullptr);
    bool any = false;
    for (const auto& [k, distance] : found.within) {
      if (k == own) continue;
      share.loss += in_.negative_scale * (in_.margin - double(distance));
      if (std::isnan(distance)) continue;
      share.active.push_back({i, k});
      if (!grad) continue;
      if (!any) std::fill(sums_.begin(), sums_.end(), 0.0);
      any = true;
      pairs_.pair(r, prototype(k), in_.d, 0, nullptr, sums_.data());
    }
    if (any) pairs_.push(r, sums_.data(), in_.d, 0, 2 * in_.scale * in_.negative_scale, grad);
  }

  const T* prototype(int64_t k) { return row_or_copy(in_.g, 0, k, in_.d, copy_of_g_); }

  // Of |r|^2 + |g|^2, more than a distance by products can be off by: sums of kPanel kPanelsAtOnce
  // products, some of these, and centres and squares that are rounded.
  T slack() const {
    const double chunk = double(kPanelsAtOnce * kPanel<T>);
    return T((chunk + double(in_.d) / chunk + 32) * 0.5 * std::numeric_limits<T>::epsilon());
  }

  const PrototypeMarginInput<T>& in_;
  const PrototypeMarginGradient<T>& out_;
  const Prototypes<T>& g_;
  int64_t* const assigned_;
  const WideRowKernels<T>& rows_ = wide_row_kernels<T>();
  const PrototypeWideKernels<T>& kernels_ = prototype_wide_kernels<T>();
  const PrototypeKernels<T>& pairs_ = prototype_kernels<T>();
  Buffer<T> z_, squares_, w_, packed_;
  std::vector<Found> found_;
  std::vector<double> sums_;
  std::vector<T> copy_, copy_of_g_;
  int columns_[kWideTile];
};

// The gradient in g: of every prototype by its samples, in their order.
template <typename T>
void gradient_of_g(const PrototypeMarginInput<T>& in, const std::vector<int64_t>& assigned,
                   const std::vector<Share>& shares, T* out, int threads) {
  // Pairs by prototype; a sample is ~i where the pair is within the margin.
  std::vector<int64_t> begins(in.k + 1, 0);
  const auto each = [&](const auto& body) {
    for (int64_t i = 0; i < in.rows; ++i)
      if (assigned[i] >= 0) body(assigned[i], i);
    for (const Share& share : shares)
      for (const Active& pair : share.active) body(pair.prototype, ~pair.sample);
  };
  each([&](int64_t k, int64_t) { ++begins[k + 1]; });
  for (int64_t k = 0; k < in.k; ++k) begins[k + 1] += begins[k];
  std::vector<int64_t> samples(begins[in.k]), next(begins.begin(), begins.end() - 1);
  each([&](int64_t k, int64_t i) { samples[next[k]++] = i; });
  const PrototypeKernels<T>& pairs = prototype_kernels<T>();
  split_rows(in.k, threads, [&](int, int64_t begin, int64_t end) {
    std::vector<double> sums(in.d), active(in.d);
    std::vector<T> of_r, of_g;
    for (int64_t k = begin; k < end; ++k) {
      T* grad = out + k * in.d;
      std::fill_n(grad, in.d, T(0));
      if (begins[k] == begins[k + 1]) continue;
      const T* g = row_or_copy(in.g, 0, k, in.d, of_g);
      for (std::vector<double>* values : {&sums, &active})
        std::fill(values->begin(), values->end(), 0.0);
      for (int64_t at = begins[k]; at < begins[k + 1]; ++at) {
        const int64_t i = samples[at];
        pairs.pair(row_or_copy(in.r, 0, i < 0 ? ~i : i, in.d, of_r), g, in.d, 0, nullptr,
                   i < 0 ? active.data() : sums.data());
      }
      for (int64_t f = 0; f < in.d; ++f) sums[f] -= in.negative_scale * active[f];
      pairs.push(g, sums.data(), in.d, 0, 2 * in.scale, grad);
    }
  });
}

}  // namespace

template <typename T>
bool prototype_margin_wide(const PrototypeMarginInput<T>& in, const PrototypeMarginGradient<T>& out,
                           int threads) {
  threads = useful_threads(double(in.rows) * double(in.k) * double(in.d), threads);
  const Prototypes<T> g(in);
  // Shares of samples do not depend on the number of threads where that is small.
  const int64_t tile = std::clamp<int64_t>(round_up(in.rows / (4 * threads), 16), 32, kWideTile);
  const int64_t tiles = (in.rows + tile - 1) / tile;
  threads = int(std::min<int64_t>(threads, tiles));
  std::vector<int64_t> assigned(in.rows);
  std::vector<Share> shares(tiles);
  std::atomic<int64_t> doubts{0};
  const double enough = double(in.rows) * double(in.k) / 16 + double(in.rows) * 4;
  split_rows(tiles, threads, [&](int, int64_t begin, int64_t end) {
    Worker<T> worker(in, out, g, assigned.data());
    for (int64_t i = begin; i < end && double(doubts.load()) <= enough; ++i) {
      interruption_point();
      worker.visit(i * tile, std::min(in.rows, (i + 1) * tile), shares[i]);
      doubts += shares[i].doubts;
    }
  });
  if (double(doubts.load()) > enough) return false;
  double loss = 0;
  for (const Share& share : shares) loss += share.loss;
  out.loss[0] = T(in.scale * loss);
  if (out.grad_g) gradient_of_g(in, assigned, shares, out.grad_g, threads);
  return true;
}

template bool prototype_margin_wide(const PrototypeMarginInput<float>&,
                                    const PrototypeMarginGradient<float>&, int);
template bool prototype_margin_wide(const PrototypeMarginInput<double>&,
                                    const PrototypeMarginGradient<double>&, int);

CGM_FAST_KERNELS(PrototypeWideKernels, prototype_wide_kernels)

}  // namespace cgm_fast
