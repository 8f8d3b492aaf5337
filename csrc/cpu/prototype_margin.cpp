// Nearest prototype, margin loss, gradients and Hessian-vector product on the CPU: the
// driver of the kernels in prototype_kernel.cpp.
//
// Each thread owns a range of samples and takes them a block at a time. A block holds its own rows
// of K distances, never B x K of them. From those come the assignment and the weights of the pairs
// inside the margin, 1 or 0; what the weights multiply (samples and prototypes less a common
// centre, or in the Hessian-vector product the tangents) is summed by two matrix products. The
// assigned pairs are added one by one, in double. Shares of threads are added in order.
#include "prototype_margin.h"

#include <algorithm>
#include <limits>
#include <memory>
#include <vector>

#include "cpu/buffer.h"
#include "cpu/isa.h"
#include "cpu/parallel.h"
#include "cpu/prototype_kernel.h"
#include "cpu/prototype_wide.h"
#include "cpu/read.h"

namespace cgm_fast {
namespace {

constexpr int64_t kTileColumns = 256;
constexpr int64_t kBlocksPerSum = 32;  // whose sums over prototypes stay in T

struct Tile {
  int64_t start, count, columns;  // prototypes, padded
};

// A matrix of k rows in tiles: transposed, and row by row where sums have lanes over features.
template <typename T>
struct Tiled {
  Tiled(int64_t padded, int64_t d, int64_t features, bool by_row)
      : panels(padded * d), rows(by_row ? padded * features : 0) {}

  void set(const Tile& tile, int64_t lane, const T* row, int64_t d, int64_t features) {
    T* panel = panels.data + tile.start * d + lane;
    for (int64_t f = 0; f < d; ++f) panel[f * tile.columns] = row[f];
    if (!by_row()) return;
    T* out = rows.data + (tile.start + lane) * features;
    std::copy_n(row, d, out);
    std::fill(out + d, out + features, T(0));
  }

  bool by_row() const { return rows.size > 0; }
  Buffer<T> panels, rows;
};

// The prototypes, and what pairs are multiplied with: the same for a gradient, tangents for the
// Hessian's product.
template <typename T>
struct Problem {
  Problem(const PrototypeMarginInput<T>& in, const T* tangent_r, const T* tangent_g, bool hvp)
      : in(in),
        tangent_r(tangent_r),
        tangent_g(tangent_g),
        hvp(hvp),
        features(in.d < kFeatureLanes ? in.d + 1 : round_up(in.d + 1, kTileAlign)),
        padded(round_up(in.k, kTileAlign)),
        positions(padded, in.d, features, false),
        values(padded, in.d, features, in.d >= kFeatureLanes),
        g(in.k * in.d),
        centre(in.d, T(0)),
        zero(in.d, T(0)) {
    std::vector<double> sum(in.d, 0.0);
    for (int64_t k = 0; k < in.k; ++k) {
      read_row(in.g, 0, k, in.d, g.data + k * in.d);
      for (int64_t f = 0; f < in.d; ++f) sum[f] += double(g.data[k * in.d + f]);
    }
    if (!hvp)
      for (int64_t f = 0; f < in.d; ++f) centre[f] = T(sum[f] / double(in.k));
    std::vector<T> row(in.d);
    for (int64_t start = 0; start < in.k; start += kTileColumns) {
      const int64_t count = std::min(kTileColumns, in.k - start);
      tiles.push_back({start, count, round_up(count, kTileAlign)});
      for (int64_t lane = 0; lane < tiles.back().columns; ++lane) {
        const int64_t k = start + lane;
        const T* position = g.data + k * in.d;
        for (int64_t f = 0; f < in.d; ++f) row[f] = lane < count ? position[f] : T(0);
        positions.set(tiles.back(), lane, row.data(), in.d, features);
        if (lane < count) value_of_g(k, row.data());
        values.set(tiles.back(), lane, row.data(), in.d, features);
      }
    }
  }

  // What stands for prototype k in the sums.
  void value_of_g(int64_t k, T* row) const {
    for (int64_t f = 0; f < in.d; ++f) {
      const int64_t at = k * in.d + f;
      row[f] = hvp ? (tangent_g ? tangent_g[at] : T(0)) : g.data[at] - centre[f];
    }
  }

  // What stands for the sample at position r [d] in the sums.
  void value_of_r(int64_t i, const T* r, T* row) const {
    for (int64_t f = 0; f < in.d; ++f)
      row[f] = hvp ? (tangent_r ? tangent_r[i * in.d + f] : T(0)) : r[f] - centre[f];
  }

  // The two sides of an assigned pair's own term, which nothing must round twice.
  const T* own_r(int64_t i, const T* position) const {
    return !hvp ? position : tangent_r ? tangent_r + i * in.d : zero.data();
  }
  const T* own_g(int64_t k) const {
    return !hvp ? g.data + k * in.d : tangent_g ? tangent_g + k * in.d : zero.data();
  }

  const PrototypeMarginInput<T>& in;
  const T *tangent_r, *tangent_g;
  bool hvp;
  int64_t features, padded;
  std::vector<Tile> tiles;
  Tiled<T> positions, values;
  Buffer<T> g;                  // [k, d]
  std::vector<T> centre, zero;  // [d]
};

// Where results go; null for what is not wanted.
template <typename T>
struct Output {
  double* block_loss;  // [blocks]
  const int64_t* given;
  int64_t* assignment;
  T* grad_r;
  bool with_g;
};

// One thread's share: blocks of samples, and what they add to the prototypes' gradient.
template <typename T>
class Worker {
 public:
  Worker(const Problem<T>& problem, const Output<T>& out)
      : p_(problem),
        in_(problem.in),
        out_(out),
        d_(in_.d),
        row_width_(d_ < kFeatureLanes ? d_ * kTileAlign : p_.features),
        with_sums_(out.grad_r || out.with_g),
        positions_(kBlockRows * p_.features),
        values_(kBlockRows * p_.features),
        u_(kBlockRows * p_.padded),
        row_values_(with_sums_ ? kBlockRows * row_width_ : 0),
        column_values_(out.with_g ? p_.padded * (d_ + 1) : 0),
        assigned_sums(out.with_g ? in_.k * d_ : 0, 0.0),
        active_sums(out.with_g ? p_.padded * (d_ + 1) : 0, 0.0) {
    std::fill_n(row_values_.data, row_values_.size, T(0));
    std::fill_n(column_values_.data, column_values_.size, T(0));
  }

  void visit(int64_t block) {
    const int64_t first = block * kBlockRows;
    count_ = int(std::min<int64_t>(kBlockRows, in_.rows - first));
    Block<T> v = {};
    v.d = d_;
    v.features = p_.features;
    v.rows = int(round_up(count_, 4));
    v.rows_z = positions_.data;
    v.rows_weighted = values_.data;
    v.row_values = row_values_.data;
    read(first, v.rows);
    for (const Tile& tile : p_.tiles) {
      at_tile(v, tile);
      kernels_.distances(v);
    }
    int64_t within[kBlockRows] = {}, assigned[kBlockRows];
    bool any = false;
    double loss = 0;
    for (int r = 0; r < count_; ++r) {
      loss += assign(first + r, r, assigned[r], within[r]);
      any |= within[r] > 0;
    }
    out_.block_loss[block] = loss;
    if (!with_sums_) return;
    if (any) sum_active(v, first, assigned, within);
    for (int r = 0; r < count_; ++r) finish_row(first + r, r, assigned[r], within[r]);
    if (++blocks_since_sum_ == kBlocksPerSum) flush_columns();
  }

  void flush_columns() {
    blocks_since_sum_ = 0;
    if (!touched_) return;
    touched_ = false;
    kernels_.flush(column_values_.data, column_values_.size, 1.0, active_sums.data);
  }

 private:
  void read(int64_t first, int rows) {
    for (int r = 0; r < rows; ++r) {
      T* position = positions_.data + r * p_.features;
      if (r < count_)
        read_row(in_.r, 0, first + r, d_, position);
      else
        std::fill_n(position, d_, T(0));
    }
  }

  void at_tile(Block<T>& v, const Tile& tile) {
    v.columns = v.stride = tile.columns;
    v.panel = p_.positions.panels.data + tile.start * d_;
    v.panel_weighted = p_.values.panels.data + tile.start * d_;
    v.columns_weighted = p_.values.rows.data + tile.start * p_.features;
    v.w = u_.data + tile.start * kBlockRows;
    v.column_values = column_values_.data + tile.start * (d_ + 1);
  }

  T* distances(const Tile& tile, int r) {
    return u_.data + tile.start * kBlockRows + r * tile.columns;
  }

  T distance(int64_t k, int r) {
    const Tile& tile = p_.tiles[k / kTileColumns];
    return distances(tile, r)[k - tile.start];
  }

  // Row r's prototype, its part of the loss, and how many others are within the margin.
  double assign(int64_t i, int r, int64_t& assigned, int64_t& within) {
    if (out_.given) {
      assigned = out_.given[i];
    } else {
      T least = 0;
      for (const Tile& tile : p_.tiles)
        kernels_.nearest(distances(tile, r), tile.count, tile.start, least, assigned);
    }
    if (out_.assignment) out_.assignment[i] = assigned;
    if (assigned < 0 || assigned >= in_.k) {  // callers check; never read out of bounds
      assigned = -1;
      return std::numeric_limits<double>::quiet_NaN();
    }
    const double own = double(distance(assigned, r));
    double hinge = 0;
    for (const Tile& tile : p_.tiles)
      hinge += kernels_.hinge(distances(tile, r), tile.count, assigned - tile.start, T(in_.margin),
                              within);
    return own + in_.negative_scale * hinge;
  }

  void sum_active(Block<T>& v, int64_t first, const int64_t* assigned, const int64_t* within) {
    touched_ = true;
    for (int r = 0; r < v.rows; ++r) {
      T* value = values_.data + r * p_.features;
      std::fill_n(value, p_.features, T(0));
      if (r >= count_) continue;
      p_.value_of_r(first + r, positions_.data + r * p_.features, value);
      value[d_] = T(1);
    }
    for (const Tile& tile : p_.tiles) {
      for (int r = 0; r < v.rows; ++r) {
        if (r < count_ && within[r] > 0)
          kernels_.activate(distances(tile, r), tile.columns, tile.count, assigned[r] - tile.start,
                            T(in_.margin));
        else
          std::fill_n(distances(tile, r), tile.columns, T(0));
      }
      at_tile(v, tile);
      kernels_.products(v, out_.grad_r != nullptr, out_.with_g);
    }
  }

  void finish_row(int64_t i, int r, int64_t assigned, int64_t within) {
    const T* position = positions_.data + r * p_.features;
    T* out = out_.grad_r ? out_.grad_r + i * d_ : nullptr;
    if (assigned < 0) {
      if (out) std::fill_n(out, d_, T(0));
      return;
    }
    double* sum = out_.with_g ? assigned_sums.data + assigned * d_ : nullptr;
    kernels_.pair(p_.own_r(i, position), p_.own_g(assigned), d_, 2 * in_.scale, out, sum);
    if (!out || within == 0) return;
    T* lanes = row_values_.data + r * row_width_;
    sums_.assign(d_, 0.0);
    if (d_ < kFeatureLanes)
      kernels_.flush_lanes(lanes, d_, 1.0, sums_.data());
    else
      kernels_.flush(lanes, d_, 1.0, sums_.data());
    kernels_.push(values_.data + r * p_.features, sums_.data(), d_, double(within),
                  -2 * in_.scale * in_.negative_scale, out);
  }

  const Problem<T>& p_;
  const PrototypeMarginInput<T>& in_;
  const Output<T>& out_;
  const PrototypeKernels<T>& kernels_ = prototype_kernels<T>();
  const int64_t d_, row_width_;
  const bool with_sums_;
  Buffer<T> positions_, values_, u_, row_values_, column_values_;
  std::vector<double> sums_;
  int count_ = 0;
  int64_t blocks_since_sum_ = 0;
  bool touched_ = false;

 public:
  Buffer<double> assigned_sums;  // [k, d], sum of r_i - g_k over the samples assigned to k
  Buffer<double> active_sums;    // tile by tile [d + 1, columns]: of (r_i, 1) inside the margin
};

// Adds up the threads' shares of the gradient in g.
template <typename T>
void finish_g(const Problem<T>& p, const std::vector<std::unique_ptr<Worker<T>>>& workers, T* out) {
  const int64_t d = p.in.d;
  std::vector<T> value(d);
  for (const Tile& tile : p.tiles) {
    for (int64_t lane = 0; lane < tile.count; ++lane) {
      const int64_t k = tile.start + lane, at = tile.start * (d + 1) + lane;
      p.value_of_g(k, value.data());
      double within = 0;
      for (const auto& worker : workers) within += worker->active_sums[at + d * tile.columns];
      for (int64_t f = 0; f < d; ++f) {
        double assigned = 0, active = 0;
        for (const auto& worker : workers) {
          assigned += worker->assigned_sums[k * d + f];
          active += worker->active_sums[at + f * tile.columns];
        }
        active -= within * double(value[f]);
        out[k * d + f] = T(-2 * p.in.scale * (assigned - p.in.negative_scale * active));
      }
    }
  }
}

template <typename T>
double run(const Problem<T>& problem, Output<T> out, T* grad_g, int threads) {
  const PrototypeMarginInput<T>& in = problem.in;
  const int64_t blocks = (in.rows + kBlockRows - 1) / kBlockRows;
  std::vector<double> block_loss(blocks);
  out.block_loss = block_loss.data();
  out.with_g = grad_g != nullptr;
  const double work = double(in.rows) * double(in.k) * (double(in.d) + 4);
  const int parts =
      int(std::min<int64_t>(useful_threads(work, threads), std::max<int64_t>(blocks, 1)));
  std::vector<std::unique_ptr<Worker<T>>> workers(parts);
  for (auto& worker : workers) worker = std::make_unique<Worker<T>>(problem, out);
  split_rows(blocks, parts, [&](int part, int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) {
      if (block % 16 == 0) interruption_point();
      workers[part]->visit(block);
    }
    workers[part]->flush_columns();
  });
  if (grad_g) finish_g(problem, workers, grad_g);
  double loss = 0;
  for (double value : block_loss) loss += value;
  return in.scale * loss;
}

}  // namespace

template <typename T>
void prototype_margin_fwd_cpu(const PrototypeMarginInput<T>& in,
                              const PrototypeMarginGradient<T>& out, int threads) {
  if (is_wide(in) && prototype_margin_wide(in, out, threads)) return;
  const Problem<T> problem(in, nullptr, nullptr, false);
  out.loss[0] =
      T(run(problem, {nullptr, in.labels, out.assignment, out.grad_r, false}, out.grad_g, threads));
}

template <typename T>
void prototype_margin_hvp_cpu(const PrototypeMarginInput<T>& in,
                              const PrototypeMarginTangent<T>& tangent, int threads) {
  const Problem<T> problem(in, tangent.r, tangent.g, true);
  run(problem, {nullptr, tangent.assignment, nullptr, tangent.out_r, false}, tangent.out_g,
      threads);
}

template void prototype_margin_fwd_cpu(const PrototypeMarginInput<float>&,
                                       const PrototypeMarginGradient<float>&, int);
template void prototype_margin_fwd_cpu(const PrototypeMarginInput<double>&,
                                       const PrototypeMarginGradient<double>&, int);
template void prototype_margin_hvp_cpu(const PrototypeMarginInput<float>&,
                                       const PrototypeMarginTangent<float>&, int);
template void prototype_margin_hvp_cpu(const PrototypeMarginInput<double>&,
                                       const PrototypeMarginTangent<double>&, int);

CGM_FAST_KERNELS(PrototypeKernels, prototype_kernels)

}  // namespace cgm_fast
