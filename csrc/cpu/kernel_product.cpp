// A kernel matrix times values on the CPU: the driver of the visits in kernel_product_kernel.cpp.
//
// The unit of work is a group of rows against the columns; of few rows, against a share of them,
// whose sums are then added in order. Nobody shares a sum, so results are reproducible bit for bit
// for a given number of threads. Sums run in T over a few hundred columns and in double beyond. See
// cgm_fast/ops/kernel_product/README.md.
#include "kernel_product.h"

#include <algorithm>
#include <vector>

#include "cpu/isa.h"
#include "cpu/kernel_product_layout.h"
#include "cpu/parallel.h"

namespace cgm_fast {

CGM_FAST_KERNELS(KernelProductKernels, kernel_product_kernels)

namespace {

constexpr int64_t kGroupRows = 128;      // rows of a unit of work, at most
constexpr int64_t kColumnsAtOnce = 512;  // whose sums stay in T, and whose panels stay in cache
constexpr int64_t kLeastColumns = 1024;  // of a share

// How rows and columns are dealt out.
struct Shares {
  int64_t rows;    // of a group
  int64_t groups;  // of rows
  int64_t splits;  // of columns

  Shares(int64_t n, int64_t m, int threads) {
    rows = std::clamp<int64_t>(round_up(n / (4 * threads), kBlockRows), kBlockRows, kGroupRows);
    groups = (n + rows - 1) / rows;
    splits = 1;
    if (threads > 1 && groups < 2 * threads)
      splits =
          std::clamp<int64_t>(2 * threads / groups, 1, std::max<int64_t>(1, m / kLeastColumns));
  }
};

// What is added up for each row: `values` of the product, then `features` and the sum of slopes of
// the derivative in x.
template <typename T>
struct Pass {
  const KernelProductLayout<T>& layout;
  const KernelProductValue<T>& out;
  bool slopes;

  int64_t values() const { return out.product ? layout.in.values : 0; }
  int64_t features() const { return out.x ? layout.in.d : 0; }
  int64_t sums() const { return values() + features() + 1; }
};

// A group of rows against a share of the columns.
template <typename T>
class Unit {
 public:
  explicit Unit(const Pass<T>& pass)
      : pass_(pass),
        layout_(pass.layout),
        product_width_(width_of_row(layout_.in.values, layout_.value_features)),
        x_width_(width_of_row(layout_.in.d, layout_.features)),
        k_(kBlockRows * layout_.width),
        s_(pass.slopes ? kBlockRows * layout_.width : 0),
        zeros_(std::max<int64_t>(layout_.width, kBlockRows), T(0)),
        slope_sums_(kBlockRows * kTileAlign, T(0)),
        variance_sums_(layout_.in.scales * kTileAlign, T(0)),
        product_(pass.out.product ? kBlockRows * product_width_ : 0, T(0)),
        x_(pass.out.x ? kBlockRows * x_width_ : 0, T(0)) {}

  // Rows [first, last) and tiles [begin, end); adds to `totals` [last - first, sums()] and to
  // `of_variance` [scales].
  void run(int64_t first, int64_t last, size_t begin, size_t end, double* totals,
           double* of_variance) {
    const size_t at_once = std::max<int64_t>(1, kColumnsAtOnce / layout_.width);
    for (size_t tile = begin; tile < end; tile += at_once) {
      interruption_point();
      for (int64_t row = first; row < last; row += kBlockRows) {
        KernelProductVisit<T> v =
            of_rows(row, static_cast<int>(std::min<int64_t>(kBlockRows, round_up(last - row, 4))));
        for (size_t some = tile; some < std::min(end, tile + at_once); ++some)
          visit(v, layout_.tiles[some]);
        flush(v.coordinates.rows, std::min<int64_t>(kBlockRows, last - row),
              totals + (row - first) * pass_.sums(), of_variance);
      }
    }
  }

 private:
  // Of sums in lanes over columns, or over features.
  static int64_t width_of_row(int64_t d, int64_t features) {
    return d < kFeatureLanes ? d * kTileAlign : features;
  }

  KernelProductVisit<T> of_rows(int64_t row, int rows) {
    KernelProductVisit<T> v = {};
    v.kernel = layout_.in.kernel;
    v.differences = layout_.differences;
    v.with_product = pass_.out.product != nullptr;
    v.with_x = pass_.out.x != nullptr;
    v.with_variance = pass_.out.variance != nullptr;
    v.scales = layout_.in.scales;
    v.ratio = layout_.ratio.data();
    v.value_weight = layout_.value_weight.data();
    v.slope_weight = layout_.slope_weight.data();
    v.slope_sums = slope_sums_.data;
    v.variance_sums = variance_sums_.data;
    v.coordinates.d = layout_.in.d;
    v.coordinates.features = layout_.features;
    v.coordinates.rows = v.values.rows = rows;
    v.coordinates.rows_z = layout_.x.data + row * layout_.features;
    v.coordinates.row_bias = layout_.x_bias.data + row;
    v.coordinates.w = k_.data;
    v.coordinates.row_values = x_.data;
    v.values.d = layout_.in.values;
    v.values.features = layout_.value_features;
    v.values.rows_z = pass_.slopes ? layout_.u.data + row * layout_.value_features : nullptr;
    v.values.row_bias = zeros_.data;
    v.values.column_bias = zeros_.data;
    v.values.w = s_.data;
    v.values.row_values = product_.data;
    return v;
  }

  void visit(KernelProductVisit<T>& v, const ColumnTile& tile) {
    v.coordinates.columns = v.coordinates.stride = tile.columns;
    v.coordinates.panel = layout_.y_panels.data + tile.start * layout_.in.d;
    v.coordinates.panel_weighted = v.coordinates.panel;
    v.coordinates.columns_weighted = layout_.y.data + tile.start * layout_.features;
    v.coordinates.column_bias = layout_.y_bias.data + tile.start;
    v.values.columns = v.values.stride = tile.columns;
    v.values.panel = layout_.v_panels.data + tile.start * layout_.in.values;
    v.values.panel_weighted = v.values.panel;
    v.values.columns_weighted = layout_.v.data + tile.start * layout_.value_features;
    kernels_.visit(v);
  }

  // Of the rows visited those that only pad have sums, too, which nobody wants.
  void flush(int64_t visited, int64_t rows, double* totals, double* of_variance) {
    const int64_t values = pass_.values(), features = pass_.features();
    std::vector<double> unwanted(visited > rows ? pass_.sums() : 0);
    for (int64_t r = 0; r < visited; ++r) {
      double* to = r < rows ? totals + r * pass_.sums() : unwanted.data();
      if (values) flush_row(product_.data + r * product_width_, values, to);
      if (features) flush_row(x_.data + r * x_width_, features, to + values);
      if (pass_.slopes)
        kernels_.flush_lanes(slope_sums_.data + r * kTileAlign, 1, 1.0, to + values + features);
    }
    if (pass_.out.variance)
      kernels_.flush_lanes(variance_sums_.data, layout_.in.scales, 1.0, of_variance);
  }

  void flush_row(T* from, int64_t d, double* to) {
    d < kFeatureLanes ? kernels_.flush_lanes(from, d, 1.0, to) : kernels_.flush(from, d, 1.0, to);
  }

  const Pass<T>& pass_;
  const KernelProductLayout<T>& layout_;
  const KernelProductKernels<T>& kernels_ = kernel_product_kernels<T>();
  const int64_t product_width_, x_width_;
  Buffer<T> k_, s_, zeros_, slope_sums_, variance_sums_, product_, x_;
};

// A row's results of its sums, which those of further shares follow at a distance.
template <typename T>
void finish_row(const Pass<T>& pass, int64_t row, double* sums, int64_t splits, int64_t distance) {
  const KernelProductLayout<T>& layout = pass.layout;
  const KernelProductProblem<T>& in = layout.in;
  for (int64_t split = 1; split < splits; ++split)
    for (int64_t i = 0; i < pass.sums(); ++i) sums[i] += sums[split * distance + i];
  const int64_t at = layout.item * in.rows + row, values = pass.values();
  for (int64_t c = 0; c < values; ++c) pass.out.product[at * values + c] = T(sums[c]);
  if (!pass.out.x) return;
  const double factor = -1 / (layout.h[0] * layout.scale), slope = sums[values + in.d];
  const T* z = layout.x.data + row * layout.features;
  for (int64_t f = 0; f < in.d; ++f) {
    const double sum = sums[values + f];
    pass.out.x[at * in.d + f] = T(factor * (layout.differences ? sum : slope * double(z[f]) - sum));
  }
}

template <typename T>
void product_of_item(const KernelProductProblem<T>& in, const KernelProductValue<T>& out,
                     int64_t item, int threads) {
  const bool slopes = out.x || out.variance;
  const double pairs = double(in.rows) * double(in.columns);
  const double work = double(in.d + in.values) * (slopes ? 2 : 1) + 16.0 * double(in.scales);
  threads = useful_threads(pairs * work, threads);
  const KernelProductLayout<T> layout(in, item, slopes, threads);
  const Pass<T> pass{layout, out, slopes};
  const Shares shares(in.rows, in.columns, threads);
  const int64_t tiles = layout.tiles.size(), units = shares.groups * shares.splits;
  const int64_t distance = in.rows * pass.sums();  // from one share's sums to the next's
  std::vector<double> of_variance(units * in.scales, 0.0);
  std::vector<double> of_shares(shares.splits > 1 ? shares.splits * distance : 0, 0.0);
  parallel_parts(static_cast<int>(units), threads, [&](int unit) {
    const int64_t group = unit / shares.splits, split = unit % shares.splits;
    const int64_t first = group * shares.rows, last = std::min(in.rows, first + shares.rows);
    std::vector<double> own(of_shares.empty() ? (last - first) * pass.sums() : 0, 0.0);
    double* totals =
        of_shares.empty() ? own.data() : of_shares.data() + split * distance + first * pass.sums();
    Unit<T>(pass).run(first, last, tiles * split / shares.splits,
                      tiles * (split + 1) / shares.splits, totals,
                      of_variance.data() + unit * in.scales);
    if (of_shares.empty())
      for (int64_t row = first; row < last; ++row)
        finish_row(pass, row, own.data() + (row - first) * pass.sums(), 1, 0);
  });
  if (!of_shares.empty())
    for (int64_t row = 0; row < in.rows; ++row)
      finish_row(pass, row, of_shares.data() + row * pass.sums(), shares.splits, distance);
  if (!out.variance) return;
  for (int64_t s = 0; s < in.scales; ++s) {
    double sum = 0;
    for (int64_t unit = 0; unit < units; ++unit) sum += of_variance[unit * in.scales + s];
    out.variance[item * in.scales + s] = T(in.kernel_weights[s] / layout.h[s] * sum);
  }
}

}  // namespace

template <typename T>
void kernel_product_fwd_cpu(const KernelProductProblem<T>& in, const KernelProductValue<T>& out,
                            int threads) {
  for_each_item(in.batch, threads,
                [&](int64_t item, int inner) { product_of_item(in, out, item, inner); });
}

template void kernel_product_fwd_cpu(const KernelProductProblem<float>&,
                                     const KernelProductValue<float>&, int);
template void kernel_product_fwd_cpu(const KernelProductProblem<double>&,
                                     const KernelProductValue<double>&, int);

}  // namespace cgm_fast
