// MMD² and its gradient on the CPU: the driver of the visits in mmd_kernel.cpp.
//
// The unit of work is a group of rows against a group of columns, a block of rows and a tile of
// columns at a time. A pair of rows is visited once and serves both orders, unless the rows have
// weights and there are derivatives in bandwidths: those need the sums of every row. How rows are
// grouped depends on the shape and the number of threads, and the sums of a group are added in
// order (pairs.h): results are reproducible bit for bit for a given number of threads.
//
// Sums run in T over a few hundred pairs and are then flushed to double. See
// cgm_fast/ops/mmd/README.md.
#include "mmd.h"

#include <algorithm>
#include <limits>
#include <memory>
#include <numeric>
#include <vector>

#include "coefficients.h"
#include "cpu/isa.h"
#include "cpu/layout.h"
#include "cpu/pairs.h"
#include "cpu/parallel.h"

namespace cgm_fast {
namespace {

constexpr int64_t kGroupRows = 512;  // at most, over which sums stay in T

// Consecutive tiles of one sample.
struct Group {
  size_t begin, end;       // tiles
  int64_t start, columns;  // padded rows
  bool of_y;
};

template <typename T>
std::vector<Group> make_groups(const Layout<T>& layout, int threads) {
  const std::vector<Tile>& tiles = layout.tiles;
  // Enough of them for every thread to have a few tasks in a round.
  const int64_t target =
      threads > 1 ? std::min(kGroupRows, layout.padded / (2 * threads)) : kGroupRows;
  const size_t width = std::max<int64_t>(1, target / layout.width);
  std::vector<Group> groups;
  for (size_t i = 0; i < tiles.size(); ++i) {
    if (groups.empty() || groups.back().of_y != tiles[i].of_y || i - groups.back().begin == width)
      groups.push_back({i, i, tiles[i].start, 0, tiles[i].of_y});
    groups.back().end = i + 1;
    groups.back().columns += tiles[i].columns;
  }
  return groups;
}

// What the visits add up, in the kernel's coordinates.
template <typename T>
struct Sums {
  Sums(const Layout<T>& layout, const std::vector<Group>& groups, bool with_gradient,
       bool with_columns, bool with_values)
      : within(groups.size(), 0.0),
        across(groups.size(), 0.0),
        near_within(groups.size() * layout.in.scales, 0.0),
        near_across(groups.size() * layout.in.scales, 0.0),
        far_within(layout.weighted_rows ? groups.size() * layout.in.scales : 0, 0.0),
        far_across(far_within.size(), 0.0),
        variance(groups.size() * layout.in.scales, 0.0),
        rows(with_gradient ? layout.padded * (layout.in.d + 1) : 0),
        columns(with_columns ? layout.padded * (layout.in.d + 1) : 0),
        values(with_values ? layout.padded : 0, 0.0) {}

  // Zeroes those of a group's rows, by the thread that is about to add to them.
  void start(const Group& group, int64_t width) {
    for (const Buffer<double>* sums : {&rows, &columns})
      if (!sums->empty()) std::fill_n(sums->data + group.start * width, group.columns * width, 0.0);
  }

  // Per group of rows, sums of c_ij times k_ij - 1, or where the layout is not `shifted` times k_ij
  // for far pairs; and then per group and bandwidth, sums of near pairs' weights less their units.
  std::vector<double> within, across, near_within, near_across;
  std::vector<double> far_within, far_across;  // those of far pairs, where rows have weights
  std::vector<double> variance;  // per group of rows and bandwidth, sums of c_ij t k_s
  // sum_j r_ij a_j slope_ij (z_j, 1) over the pairs in which i was the row, [padded, d + 1], and
  // over those in which it was the column, tile by tile [d + 1, columns]
  Buffer<double> rows, columns;
  // sum_j r_ij a_j (k_ij - 1); empty where the last of rows serves, k_ij if not `shifted`
  Buffer<double> values;
};

// One problem: its data, what is wanted of it and what has been added up.
template <typename T>
struct Pass {
  const Layout<T>& layout;
  const MmdGradient<T>& out;
  const std::vector<Group>& groups;
  Sums<T>& sums;
  bool symmetric, scaled;

  // Whether the derivatives of some row of a tile are asked for.
  bool wanted(const Tile& tile) const {
    const int64_t first = (tile.of_y ? layout.in.n : 0) + tile.row;
    return out.grad_a || std::max(first, out.row_begin) < std::min(first + tile.rows, out.row_end);
  }
};

// What one thread needs to visit pairs of groups.
template <typename T>
class Worker {
 public:
  explicit Worker(const Pass<T>& pass)
      : pass_(pass),
        layout_(pass.layout),
        d_(layout_.in.d),
        row_width_(d_ < kFeatureLanes ? d_ * kTileAlign : layout_.features),
        w_(kBlockRows * layout_.width),
        value_sums_(kBlockRows * kTileAlign),
        near_sums_(kBlockRows * kTileAlign),
        slope_sums_(kBlockRows * kTileAlign),
        near_of_scale_(layout_.in.scales * kTileAlign),
        far_sums_(with_far() ? near_sums_.size : 0),
        far_of_scale_(with_far() ? near_of_scale_.size : 0),
        variance_sums_(layout_.in.scales * kTileAlign),
        row_values_(kBlockRows * row_width_),
        column_values_(pass.symmetric ? widest(pass.groups) * (d_ + 1) : 0) {
    std::fill_n(value_sums_.data, kBlockRows * kTileAlign, T(0));
    std::fill_n(near_sums_.data, kBlockRows * kTileAlign, T(0));
    std::fill_n(slope_sums_.data, kBlockRows * kTileAlign, T(0));
    std::fill_n(near_of_scale_.data, layout_.in.scales * kTileAlign, T(0));
    std::fill_n(far_sums_.data, far_sums_.size, T(0));
    std::fill_n(far_of_scale_.data, far_of_scale_.size, T(0));
    std::fill_n(variance_sums_.data, layout_.in.scales * kTileAlign, T(0));
    std::fill_n(row_values_.data, kBlockRows * row_width_, T(0));
    if (pass.symmetric) std::fill_n(column_values_.data, widest(pass.groups) * (d_ + 1), T(0));
  }

  // The rows of group p against the columns of group q.
  void visit(int64_t p, int64_t q) {
    const Group &rows = pass_.groups[p], &columns = pass_.groups[q];
    const bool across = rows.of_y != columns.of_y;
    const double relation = across ? layout_.cross : 1.0;
    p_ = p;
    if (p == q) pass_.sums.start(rows, d_ + 1);  // a group meets itself first
    unit_ = layout_.unit(columns.of_y) * relation;
    total_ = &(across ? pass_.sums.across : pass_.sums.within)[p];
    near_ =
        (across ? pass_.sums.near_across : pass_.sums.near_within).data() + p * layout_.in.scales;
    if (with_far())
      far_ =
          (across ? pass_.sums.far_across : pass_.sums.far_within).data() + p * layout_.in.scales;
    for (size_t tile = rows.begin; tile < rows.end; ++tile)
      for (int64_t begin = 0; begin < layout_.tiles[tile].rows; begin += kBlockRows)
        visit_block(tile, begin, columns, p == q);
    if (!pass_.sums.columns.empty()) flush_columns(columns, layout_.unit(rows.of_y) * relation);
  }

 private:
  // Whether far pairs' weights are added up too: without weights of their own they are counted as
  // what near ones leave of all.
  bool with_far() const { return layout_.weighted_rows && !layout_.shifted; }

  static int64_t widest(const std::vector<Group>& groups) {
    int64_t width = 0;
    for (const Group& group : groups) width = std::max(width, group.columns);
    return width;
  }

  // Rows [begin, begin + kBlockRows) of a tile against a group of columns; if that is the rows' own
  // group and pairs are visited once, against its columns from these rows on.
  void visit_block(size_t tile, int64_t begin, const Group& columns, bool own_group) {
    const Tile& own = layout_.tiles[tile];
    const int rows = int(std::min<int64_t>(kBlockRows, round_up(own.rows - begin, 4)));
    const bool from_here = own_group && pass_.symmetric;
    MmdVisit<T> v = of_rows(own, begin, rows);
    if (from_here) {
      // Both orders of the pairs within the block, then the block's rows against the rest.
      const int64_t after = begin + kBlockRows;
      visit_columns(v, own, begin, std::min(after, own.columns), begin, false, columns);
      flush_values(own, begin, rows, 1);
      if (after < own.columns) visit_columns(v, own, after, own.columns, -1, true, columns);
    }
    for (size_t other = from_here ? tile + 1 : columns.begin; other < columns.end; ++other) {
      const Tile& met = layout_.tiles[other];
      visit_columns(v, met, 0, met.columns, other == tile ? begin : -1, pass_.symmetric, columns);
    }
    flush_values(own, begin, rows, pass_.symmetric ? 2 : 1);
    if (v.with_rows) flush_rows(own, begin, rows);
  }

  MmdVisit<T> of_rows(const Tile& own, int64_t begin, int rows) {
    MmdVisit<T> v = {};
    const int64_t at = own.start + begin;
    v.d = d_;
    v.features = layout_.features;
    v.rows = rows;
    v.rows_z = layout_.rows.data + at * layout_.features;
    v.row_bias = layout_.bias.data + at;
    v.rows_weighted = layout_.weighted + at * layout_.features;
    v.scaled = pass_.scaled;
    v.scales = layout_.in.scales;
    v.ratio = layout_.ratio.data();
    v.value_weight = layout_.value_weight.data();
    v.slope_weight = layout_.slope_weight.data();
    v.shifted = layout_.shifted;
    v.differences = layout_.differences;
    v.with_variance = pass_.out.grad_p != nullptr;
    v.with_rows = pass_.wanted(own);
    v.w = w_.data;
    v.value_sums = value_sums_.data;
    v.near_sums = near_sums_.data;
    v.slope_sums = slope_sums_.data;
    v.near_of_scale = near_of_scale_.data;
    v.far_values = pass_.scaled && !pass_.sums.values.empty() ? near_sums_.data : nullptr;
    v.far_sums = with_far() ? far_sums_.data : nullptr;
    v.far_of_scale = with_far() ? far_of_scale_.data : nullptr;
    v.variance_sums = variance_sums_.data;
    v.row_values = row_values_.data;
    return v;
  }

  // Columns [begin, end) of a tile; row 0's own pair is column `own`, or not among them.
  void visit_columns(MmdVisit<T>& v, const Tile& tile, int64_t begin, int64_t end, int64_t own,
                     bool with_columns, const Group& group) {
    const int64_t at = tile.start + begin;
    v.columns = end - begin;
    v.stride = tile.columns;
    v.diagonal = own < 0 ? -1 : own - begin;
    v.panel = layout_.panels.data + tile.start * d_ + begin;
    v.panel_weighted = layout_.weighted_panels + tile.start * d_ + begin;
    v.columns_weighted = layout_.weighted + at * layout_.features;
    v.column_bias = layout_.bias.data + at;
    v.column_weight = layout_.weight.data + at;
    v.with_columns = with_columns && pass_.wanted(tile);
    v.column_values = column_values_.data + (tile.start - group.start) * (d_ + 1) + begin;
    kernels_.visit(v);
  }

  // Flushes the sums of k to double, `times` that they count, and those of the slopes.
  void flush_values(const Tile& own, int64_t begin, int rows, int times) {
    double values[kBlockRows] = {}, nears[kBlockRows] = {}, fars[kBlockRows] = {};
    double slopes[kBlockRows] = {};
    kernels_.flush_lanes(value_sums_.data, rows, unit_, values);
    const T* weight = layout_.weight.data + own.start + begin;
    const double unit = layout_.unit(own.of_y);
    double sum = 0;
    for (int r = 0; r < rows; ++r) sum += double(weight[r]) * values[r];
    *total_ += times * unit * sum;
    if (!layout_.shifted && !pass_.scaled) {
      kernels_.flush_lanes(near_sums_.data, rows, 1.0, nears);
      for (int r = 0; r < rows; ++r) *near_ += times * double(weight[r]) * nears[r];
      if (with_far()) {
        kernels_.flush_lanes(far_sums_.data, rows, 1.0, fars);
        for (int r = 0; r < rows; ++r) *far_ += times * double(weight[r]) * fars[r];
      }
    } else if (!layout_.shifted) {
      kernels_.flush_lanes(near_of_scale_.data, layout_.in.scales, times, near_);
      if (with_far()) kernels_.flush_lanes(far_of_scale_.data, layout_.in.scales, times, far_);
      if (!pass_.sums.values.empty()) kernels_.flush_lanes(near_sums_.data, rows, -1.0, nears);
    }
    // With what was subtracted for near pairs all are k; or `scaled`, with what was not for far
    // ones k - 1.
    for (int r = 0; r < rows; ++r) values[r] += unit_ * nears[r];
    if (pass_.scaled) kernels_.flush_lanes(slope_sums_.data, rows, unit_, slopes);
    if (!pass_.sums.rows.empty()) {
      double* last = pass_.sums.rows.data + (own.start + begin) * (d_ + 1) + d_;
      const double* flushed = pass_.scaled ? slopes : values;
      for (int r = 0; r < rows; ++r) last[r * (d_ + 1)] += flushed[r];
    }
    if (!pass_.sums.values.empty())
      for (int r = 0; r < rows; ++r) pass_.sums.values[own.start + begin + r] += values[r];
    if (pass_.out.grad_p)
      kernels_.flush_lanes(variance_sums_.data, layout_.in.scales, times * unit * unit_,
                           pass_.sums.variance.data() + p_ * layout_.in.scales);
  }

  void flush_rows(const Tile& own, int64_t begin, int rows) {
    double* sums = pass_.sums.rows.data + (own.start + begin) * (d_ + 1);
    for (int r = 0; r < rows; ++r, sums += d_ + 1) {
      T* row = row_values_.data + r * row_width_;
      if (d_ < kFeatureLanes) {
        kernels_.flush_lanes(row, d_, unit_, sums);
      } else {
        kernels_.flush(row, d_, unit_, sums);
      }
    }
  }

  void flush_columns(const Group& group, double unit) {
    double* sums = pass_.sums.columns.data + group.start * (d_ + 1);
    kernels_.flush(column_values_.data, group.columns * (d_ + 1), unit, sums);
  }

  const Pass<T>& pass_;
  const Layout<T>& layout_;
  const MmdKernels<T>& kernels_ = mmd_kernels<T>();
  const int64_t d_, row_width_;
  Buffer<T> w_, value_sums_, near_sums_, slope_sums_, near_of_scale_, far_sums_, far_of_scale_;
  Buffer<T> variance_sums_;
  Buffer<T> row_values_, column_values_;
  int64_t p_ = 0;            // the group of rows
  double unit_ = 0;          // what the columns' weights are to be multiplied by
  double* total_ = nullptr;  // where c_ij (k_ij - 1) goes
  double* near_ = nullptr;   // where the weights of near pairs go, [scales]
  double* far_ = nullptr;    // and those of far ones
};

// Turns the sums into the gradient of a tile's rows, in the caller's units.
template <typename T>
void gradient_of_tile(const Pass<T>& pass, const Tile& tile, double slopes) {
  const Layout<T>& layout = pass.layout;
  const MmdInput<T>& in = layout.in;
  const MmdGradient<T>& out = pass.out;
  // dL/dz_i = -(2/h) a_i [S_i z_i - V_i]; shifted slopes get their 1 back here, in both sums.
  const double factor = -2 / (layout.h[0] * layout.scale);
  const int64_t d = in.d;
  const double* own = layout.total.data() + tile.of_y * d;
  const double* other = layout.total.data() + !tile.of_y * d;
  const double constant = layout.shifted ? slopes : 0.0, cross = layout.cross;
  constexpr int64_t kLanes = 8;  // rows whose sums as columns are read together: a line of cache
  std::vector<double> of_columns(pass.symmetric ? kLanes * (d + 1) : 0);
  for (int64_t lane = 0; lane < tile.rows; ++lane) {
    if (pass.symmetric && lane % kLanes == 0) {
      const double* sums = pass.sums.columns.data + tile.start * (d + 1) + lane;
      for (int64_t f = 0; f <= d; ++f, sums += tile.columns)
        for (int64_t l = 0; l < kLanes; ++l) of_columns[l * (d + 1) + f] = sums[l];
    }
    const int64_t row = (tile.of_y ? in.n : 0) + tile.row + lane;
    if (row < out.row_begin || row >= out.row_end) continue;
    const double a = double(layout.weight.data[tile.start + lane]) * layout.unit(tile.of_y);
    const T* z = layout.rows.data + (tile.start + lane) * layout.features;
    double* sums = pass.sums.rows.data + (tile.start + lane) * (d + 1);
    if (pass.symmetric) {
      const double* of_column = of_columns.data() + lane % kLanes * (d + 1);
      for (int64_t f = 0; f <= d; ++f) sums[f] += of_column[f];
    }
    // A row's pair with itself is in neither sum: it would add the same to both.
    const double s =
        sums[d] + constant * (layout.mass[tile.of_y] - a + cross * layout.mass[!tile.of_y]);
    T* grad = out.grad_z + (layout.item * (out.row_end - out.row_begin) + row - out.row_begin) * d;
    for (int64_t f = 0; f < d; ++f) {
      const double v = sums[f] + constant * (own[f] - a * double(z[f]) + cross * other[f]);
      grad[f] = T(factor * a * (s * double(z[f]) - v));
    }
  }
}

// What all pairs weigh.
template <typename T>
Coefficients coefficients_of(const Layout<T>& layout) {
  const MmdInput<T>& in = layout.in;
  double mass[2], square[2];
  for (bool of_y : {false, true}) {
    const int64_t rows = of_y ? in.m : in.n;
    const T* given = of_y ? in.y_weights : in.x_weights;
    mass[of_y] = square[of_y] = double(rows);
    if (!given) continue;
    mass[of_y] = square[of_y] = 0;
    for (int64_t i = layout.item * rows; i < (layout.item + 1) * rows; ++i) {
      mass[of_y] += double(given[i]);
      square[of_y] += double(given[i]) * double(given[i]);
    }
  }
  return {mass[0] * mass[0] - square[0],
          mass[1] * mass[1] - square[1],
          2 * mass[0] * mass[1],
          in.x_scale,
          in.y_scale,
          layout.cross,
          in.cross || in.cross_scale != 1,
          layout.weighted_rows ? 16 * double(std::numeric_limits<T>::epsilon()) : 1e-14};
}

// Turns the sums into loss and derivatives.
template <typename T>
void finish(const Pass<T>& pass, int threads) {
  const Layout<T>& layout = pass.layout;
  const MmdInput<T>& in = layout.in;
  const MmdGradient<T>& out = pass.out;
  double slopes = 0, values = 0;
  for (T weight : layout.slope_weight) slopes += double(weight);
  for (T weight : layout.value_weight) values += double(weight);
  const double within = std::accumulate(pass.sums.within.begin(), pass.sums.within.end(), 0.0);
  double across = std::accumulate(pass.sums.across.begin(), pass.sums.across.end(), 0.0);
  double loss = within + across;
  if (!layout.shifted) {
    const Coefficients all = coefficients_of(layout);
    for (int64_t s = 0; s < in.scales; ++s) {
      const auto sum = [&](const std::vector<double>& within, const std::vector<double>& across) {
        Coefficients::Pairs pairs = {0, 0, 0};
        for (size_t p = 0; p < pass.groups.size(); ++p) {
          (pass.groups[p].of_y ? pairs.y : pairs.x) += within[p * in.scales + s];
          pairs.across += across[p * in.scales + s];
        }
        return pairs;
      };
      const Coefficients::Pairs near = sum(pass.sums.near_within, pass.sums.near_across);
      const Coefficients::Pairs far = layout.weighted_rows
                                          ? sum(pass.sums.far_within, pass.sums.far_across)
                                          : all.without(near);
      loss += in.kernel_weights[s] * all.constant(near, far);
      across -= in.kernel_weights[s] * all.add(0, 0, far.across);
    }
  }
  out.loss[layout.item] = T(loss);
  if (out.grad_p) {
    T* grad = out.grad_p + layout.item * (in.scales + 1);
    for (int64_t s = 0; s < in.scales; ++s) {
      double sum = 0;
      for (size_t p = 0; p < pass.groups.size(); ++p) sum += pass.sums.variance[p * in.scales + s];
      grad[s] = T(in.kernel_weights[s] * sum / layout.h[s]);
    }
    grad[in.scales] = T(across / layout.cross);
  }
  if (out.grad_a) {
    T* grad = out.grad_a + layout.item * (in.n + in.m);
    for (const Tile& tile : layout.tiles) {
      for (int64_t lane = 0; lane < tile.rows; ++lane) {
        const int64_t at = tile.start + lane, i = (tile.of_y ? in.n : 0) + tile.row + lane;
        double sum = 0;
        if (!pass.sums.values.empty()) {
          sum = pass.sums.values[at];
        } else {  // the slopes are the values
          sum = pass.sums.rows[at * (in.d + 1) + in.d];
          if (pass.symmetric)
            sum += pass.sums.columns[tile.start * (in.d + 1) + in.d * tile.columns + lane];
        }
        const double a = double(layout.weight.data[at]) * layout.unit(tile.of_y);
        if (!layout.shifted && pass.sums.values.empty())
          sum -= values * (layout.mass[tile.of_y] - a + layout.cross * layout.mass[!tile.of_y]);
        grad[i] = T(2 * sum);
      }
    }
  }
  if (out.row_end <= out.row_begin) return;
  const bool worth_waking = layout.padded * in.d > 1 << 16;
  parallel_parts(int(layout.tiles.size()), worth_waking ? threads : 1,
                 [&](int i) { gradient_of_tile(pass, layout.tiles[i], slopes); });
}

template <typename T>
void forward_item(const MmdInput<T>& in, const MmdGradient<T>& out, int64_t item, int threads) {
  const double pairs = double(in.n + in.m) * double(in.n + in.m);
  threads = useful_threads(pairs * (2.0 * double(in.d) + 16.0 * double(in.scales)), threads);
  const Layout<T> layout(in, item, threads);
  const std::vector<Group> groups = make_groups(layout, threads);
  const bool with_gradient = out.row_end > out.row_begin || out.grad_a;
  // What is visited does not depend on which derivatives are wanted, lest the value do too: there
  // are derivatives in bandwidths only where these or `cross` are given as arrays.
  const bool several = layout.several || in.variance || in.cross || out.grad_p;
  const bool symmetric = !layout.weighted_rows || !several;
  const bool scaled = layout.several || out.grad_p;
  Sums<T> sums(layout, groups, with_gradient, with_gradient && symmetric, out.grad_a && scaled);
  const Pass<T> pass{layout, out, groups, sums, symmetric, scaled};
  PairSchedule schedule(int64_t(groups.size()), symmetric);
  threads = int(std::min<int64_t>(threads, int64_t(groups.size())));
  std::vector<std::unique_ptr<Worker<T>>> workers(threads);
  for (auto& worker : workers) worker = std::make_unique<Worker<T>>(pass);
  parallel_parts(threads, threads, [&](int index) {
    schedule.run([&](int64_t p, int64_t q) { workers[index]->visit(p, q); });
  });
  finish(pass, threads);
}

}  // namespace

template <typename T>
void mmd_fwd_cpu(const MmdInput<T>& in, const MmdGradient<T>& out, int threads) {
  for_each_item(in.batch, threads,
                [&](int64_t item, int inner) { forward_item(in, out, item, inner); });
}

template void mmd_fwd_cpu(const MmdInput<float>&, const MmdGradient<float>&, int);
template void mmd_fwd_cpu(const MmdInput<double>&, const MmdGradient<double>&, int);

CGM_FAST_KERNELS(MmdKernels, mmd_kernels)

}  // namespace cgm_fast
