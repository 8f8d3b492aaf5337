// MMD² and its gradient on the CPU: the driver of the visits in mmd_kernel.cpp.
//
// The unit of work is a macro-tile of rows against one of columns, a block of rows and a tile of
// columns at a time. A pair of rows is visited once and serves both orders, unless the rows have
// weights and these sums of slopes are not those of values: then every row needs its own. How tiles
// make up macro-tiles depends on the shape and the number of threads, and the sums of one are added
// in order (pairs.h): results are reproducible bit for bit for a given number of threads.
//
// Sums run in T over a few hundred pairs and in double beyond. See cgm_fast/ops/mmd/README.md.
#include "mmd.h"

#include <algorithm>
#include <memory>
#include <vector>

#include "cpu/isa.h"
#include "cpu/layout.h"
#include "cpu/mmd_sums.h"
#include "cpu/mmd_wide.h"
#include "cpu/pairs.h"
#include "cpu/parallel.h"

namespace cgm_fast {
namespace {

// What one thread needs to visit pairs of macro-tiles.
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
        column_values_(pass.symmetric ? widest(pass.macro_tiles) * (d_ + 1) : 0) {
    std::fill_n(value_sums_.data, kBlockRows * kTileAlign, T(0));
    std::fill_n(near_sums_.data, kBlockRows * kTileAlign, T(0));
    std::fill_n(slope_sums_.data, kBlockRows * kTileAlign, T(0));
    std::fill_n(near_of_scale_.data, layout_.in.scales * kTileAlign, T(0));
    std::fill_n(far_sums_.data, far_sums_.size, T(0));
    std::fill_n(far_of_scale_.data, far_of_scale_.size, T(0));
    std::fill_n(variance_sums_.data, layout_.in.scales * kTileAlign, T(0));
    std::fill_n(row_values_.data, kBlockRows * row_width_, T(0));
    std::fill_n(column_values_.data, column_values_.size, T(0));
  }

  // The rows of macro-tile p against the columns of macro-tile q.
  void visit(int64_t p, int64_t q) {
    const MacroTile &rows = pass_.macro_tiles[p], &columns = pass_.macro_tiles[q];
    const int64_t scales = layout_.in.scales, block = p * layout_.in.groups + columns.group;
    Sums<T>& sums = pass_.sums;
    if (p == q) sums.start(rows, d_ + 1);  // a macro-tile meets itself first
    relation_ = layout_.relation_of(rows.group, columns.group);
    small_ = &sums.small[block];
    near_ = layout_.shifted ? nullptr : sums.near.data() + block * scales;
    far_ = with_far() ? sums.far.data() + block * scales : nullptr;
    variance_ = sums.variance.data() + p * scales;
    for (size_t tile = rows.begin; tile < rows.end; ++tile)
      for (int64_t begin = 0; begin < layout_.tiles[tile].rows; begin += kBlockRows)
        visit_block(tile, begin, columns, p == q);
    if (!sums.columns.empty()) flush_columns(columns);
  }

 private:
  // Whether far pairs' weights are added up too: without weights of their own they are counted as
  // what near ones leave of all.
  bool with_far() const { return layout_.in.weights && !layout_.shifted; }

  static int64_t widest(const std::vector<MacroTile>& macro_tiles) {
    int64_t width = 0;
    for (const MacroTile& of : macro_tiles) width = std::max(width, of.columns);
    return width;
  }

  // Rows [begin, begin + kBlockRows) of a tile against the columns of a macro-tile; if that is the
  // rows' own and pairs are visited once, against its columns from these rows on.
  void visit_block(size_t tile, int64_t begin, const MacroTile& columns, bool own_macro_tile) {
    const Tile& own = layout_.tiles[tile];
    const int rows = int(std::min<int64_t>(kBlockRows, round_up(own.rows - begin, 4)));
    const bool from_here = own_macro_tile && pass_.symmetric;
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
    v.kernel = layout_.in.kernel;
    v.scaled = pass_.scaled;
    v.scales = layout_.in.scales;
    v.ratio = layout_.ratio.data();
    v.value_weight = layout_.value_weight.data();
    v.slope_weight = layout_.slope_weight.data();
    v.shifted = layout_.shifted;
    v.differences = layout_.differences;
    v.with_variance = pass_.out.variance != nullptr;
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
                     bool with_columns, const MacroTile& of) {
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
    v.column_values = column_values_.data + (tile.start - of.start) * (d_ + 1) + begin;
    visit_(v);
  }

  // Flushes the sums of k to double, `times` that they count, and those of the slopes.
  void flush_values(const Tile& own, int64_t begin, int rows, int times) {
    double values[kBlockRows] = {}, nears[kBlockRows] = {}, fars[kBlockRows] = {};
    double slopes[kBlockRows] = {};
    kernels_.flush_lanes(value_sums_.data, rows, 1.0, values);
    const T* weight = layout_.weight.data + own.start + begin;
    const auto weighted = [&](const double* of_rows) {
      double sum = 0;
      for (int r = 0; r < rows; ++r) sum += double(weight[r]) * of_rows[r];
      return times * sum;
    };
    *small_ += weighted(values);
    if (!layout_.shifted && !pass_.scaled) {
      kernels_.flush_lanes(near_sums_.data, rows, 1.0, nears);
      *near_ += weighted(nears);
      if (with_far()) {
        kernels_.flush_lanes(far_sums_.data, rows, 1.0, fars);
        *far_ += weighted(fars);
      }
      for (int r = 0; pass_.slopes_apart && r < rows; ++r) nears[r] = -fars[r];
    } else if (!layout_.shifted) {
      kernels_.flush_lanes(near_of_scale_.data, layout_.in.scales, times, near_);
      if (with_far()) kernels_.flush_lanes(far_of_scale_.data, layout_.in.scales, times, far_);
      if (!pass_.sums.values.empty()) kernels_.flush_lanes(near_sums_.data, rows, -1.0, nears);
    }
    // With what was subtracted for near pairs all are k; or with slopes apart, with what was not
    // for far ones k - 1.
    for (int r = 0; r < rows; ++r) values[r] += nears[r];
    if (pass_.slopes_apart) kernels_.flush_lanes(slope_sums_.data, rows, 1.0, slopes);
    if (!pass_.sums.rows.empty()) {
      double* last = pass_.sums.rows.data + (own.start + begin) * (d_ + 1) + d_;
      const double* flushed = pass_.slopes_apart ? slopes : values;
      for (int r = 0; r < rows; ++r) last[r * (d_ + 1)] += relation_ * flushed[r];
    }
    if (!pass_.sums.values.empty())
      for (int r = 0; r < rows; ++r)
        pass_.sums.values[own.start + begin + r] += relation_ * values[r];
    if (pass_.out.variance)
      kernels_.flush_lanes(variance_sums_.data, layout_.in.scales, times * relation_, variance_);
  }

  void flush_rows(const Tile& own, int64_t begin, int rows) {
    double* sums = pass_.sums.rows.data + (own.start + begin) * (d_ + 1);
    for (int r = 0; r < rows; ++r, sums += d_ + 1) {
      T* row = row_values_.data + r * row_width_;
      if (d_ < kFeatureLanes) {
        kernels_.flush_lanes(row, d_, relation_, sums);
      } else {
        kernels_.flush(row, d_, relation_, sums);
      }
    }
  }

  void flush_columns(const MacroTile& of) {
    double* sums = pass_.sums.columns.data + of.start * (d_ + 1);
    kernels_.flush(column_values_.data, of.columns * (d_ + 1), relation_, sums);
  }

  const Pass<T>& pass_;
  const Layout<T>& layout_;
  const MmdKernels<T>& kernels_ = mmd_kernels<T>();
  void (*const visit_)(const MmdVisit<T>&) = layout_.in.kernel == Kernel::gaussian
                                                 ? kernels_.visit
                                                 : family_kernels<T>().visit;
  const int64_t d_, row_width_;
  Buffer<T> w_, value_sums_, near_sums_, slope_sums_, near_of_scale_, far_sums_, far_of_scale_;
  Buffer<T> variance_sums_;
  Buffer<T> row_values_, column_values_;
  double relation_ = 0;         // of the rows' and the columns' groups
  double* small_ = nullptr;     // where w_i w_j (k_ij - 1) goes
  double* near_ = nullptr;      // where the weights of near pairs go, [scales]
  double* far_ = nullptr;       // and those of far ones
  double* variance_ = nullptr;  // where c_ij t k_s goes, [scales]
};

template <typename T>
void forward_item(const MmdProblem<T>& in, const MmdValue<T>& out, int64_t item, int threads) {
  const double pairs = double(in.rows) * double(in.rows);
  threads = useful_threads(pairs * (2.0 * double(in.d) + 16.0 * double(in.scales)), threads);
  const Layout<T> layout(in, item, threads);
  const std::vector<MacroTile> macro_tiles = make_macro_tiles(layout, threads);
  const bool with_gradient = out.row_end > out.row_begin || out.weights;
  // What is visited does not depend on which derivatives are wanted, lest the value do too: there
  // are derivatives in bandwidths only where these are given as arrays.
  const bool gaussian = in.kernel == Kernel::gaussian;
  const bool several = layout.several || in.variance || out.variance;
  const bool symmetric = !in.weights || (gaussian && !several);
  const bool scaled = layout.several || out.variance;
  const bool slopes_apart = scaled || !gaussian;
  Sums<T> sums(layout, macro_tiles.size(), with_gradient, with_gradient && symmetric,
               out.weights && slopes_apart);
  const Pass<T> pass{layout, out, macro_tiles, sums, symmetric, scaled, slopes_apart};
  PairSchedule schedule(int64_t(macro_tiles.size()), symmetric);
  threads = int(std::min<int64_t>(threads, int64_t(macro_tiles.size())));
  std::vector<std::unique_ptr<Worker<T>>> workers(threads);
  for (auto& worker : workers) worker = std::make_unique<Worker<T>>(pass);
  parallel_parts(threads, threads, [&](int index) {
    schedule.run([&](int64_t p, int64_t q) { workers[index]->visit(p, q); });
  });
  finish(pass, threads);
}

}  // namespace

template <typename T>
void mmd_fwd_cpu(const MmdProblem<T>& in, const MmdValue<T>& out, int threads) {
  const auto forward = in.d < kWideFeatures ? forward_item<T> : mmd_wide_item<T>;
  for_each_item(in.batch, threads, [&](int64_t item, int inner) { forward(in, out, item, inner); });
}

template void mmd_fwd_cpu(const MmdProblem<float>&, const MmdValue<float>&, int);
template void mmd_fwd_cpu(const MmdProblem<double>&, const MmdValue<double>&, int);

CGM_FAST_KERNELS(MmdKernels, mmd_kernels)
CGM_FAST_KERNELS(FamilyKernels, family_kernels)

}  // namespace cgm_fast
