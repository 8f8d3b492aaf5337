// MMD² and its gradient on the CPU: the driver of the visits in mmd_kernel.cpp.
//
// The unit of work is a block of rows against every tile of columns. Without sample weights a pair
// of rows is visited once and serves both orders (with them, derivatives in the weights need the
// sums of every row). What a part of the
// work covers depends on the number of parts alone, and parts are added in order: results are
// reproducible bit for bit for a given number of threads.
//
// Sums run in T over a few hundred pairs and in double beyond. See cgm_fast/ops/mmd/README.md.
#include "mmd.h"

#include <algorithm>
#include <memory>
#include <numeric>
#include <vector>

#include "cpu/isa.h"
#include "cpu/layout.h"
#include "cpu/threads.h"

namespace cgm_fast {
namespace {

constexpr int kTilesPerSum = 4;       // tiles whose sums stay in T
constexpr int64_t kRowsPerSum = 256;  // rows whose sums over columns' lanes stay in T

// What one part of the work adds up.
template <typename T>
struct Part {
  Part(const Layout<T>& layout, bool with_gradient)
      : totals(with_gradient ? layout.padded * (layout.in.d + 1) : 0, 0.0),
        variance(layout.in.scales, 0.0) {}

  double within = 0, across = 0;  // sums of c_ij (k_ij - shift)
  std::vector<double> totals;     // tile by tile [d + 1, columns]: a_i sum_j slope_ij a_j (z_j, 1)
  std::vector<double> variance;   // per bandwidth, sum of c_ij t k_s
};

template <typename T>
class Worker {
 public:
  Worker(const Layout<T>& layout, const MmdGradient<T>& out, bool symmetric, Part<T>& part)
      : layout_(layout),
        out_(out),
        part_(part),
        symmetric_(symmetric),
        scaled_(layout.several || out.grad_p != nullptr),
        d_(layout.in.d),
        row_width_(d_ < kFeatureLanes ? d_ * kTileAlign : layout.features),
        column_size_(out.row_end > out.row_begin ? layout.padded * (d_ + 1) : 0),
        w_(kBlockRows * widest(layout.tiles)),
        value_sums_(kBlockRows * kTileAlign),
        slope_sums_(kBlockRows * kTileAlign),
        variance_sums_(layout.in.scales * kTileAlign),
        row_values_(kBlockRows * row_width_),
        column_values_(column_size_) {
    std::fill_n(value_sums_.data, kBlockRows * kTileAlign, T(0));
    std::fill_n(slope_sums_.data, kBlockRows * kTileAlign, T(0));
    std::fill_n(variance_sums_.data, layout.in.scales * kTileAlign, T(0));
    std::fill_n(row_values_.data, kBlockRows * row_width_, T(0));
    std::fill_n(column_values_.data, column_size_, T(0));
  }

  // Rows [begin, end) of a tile against every tile from it on, or every tile at all.
  void visit_block(size_t tile, int64_t begin, int64_t end) {
    const Tile& own = layout_.tiles[tile];
    const bool with_rows = wanted(own);
    const int rows = int(round_up(end - begin, 4));
    MmdVisit<T> v = of_rows(own, begin, rows);
    double values[kBlockRows] = {}, slopes[kBlockRows] = {};
    int pending = 0;
    for (size_t other = symmetric_ ? tile : 0; other < layout_.tiles.size(); ++other) {
      const Tile& columns = layout_.tiles[other];
      const bool across = columns.of_y != own.of_y;
      const bool twice = symmetric_ && other != tile;
      v.columns = columns.columns;
      v.diagonal = other == tile ? begin : -1;
      v.panel = layout_.panels.data + columns.start * d_;
      v.column_rows = layout_.rows.data + columns.start * layout_.features;
      v.column_bias = layout_.bias.data + columns.start;
      v.column_weight = (across ? layout_.cross_weight : layout_.weight).data + columns.start;
      v.with_rows = with_rows;
      v.with_columns = twice && wanted(columns);
      v.column_values = column_values_.data + columns.start * (d_ + 1);
      visit_(v);
      if (v.with_columns) {
        touched_begin_ = std::min(touched_begin_, columns.start);
        touched_end_ = std::max(touched_end_, columns.start + columns.columns);
      }
      // Sums pass to double every few tiles, and wherever what they count for changes.
      const bool change = other == tile || other + 1 == layout_.tiles.size() ||
                          layout_.tiles[other + 1].of_y != columns.of_y;
      if (++pending < kTilesPerSum && !change) continue;
      pending = 0;
      take_sums(own, begin, rows, across, twice ? 2 : 1, values, slopes);
      if (with_rows) take_rows(own, begin, rows);
    }
    if (with_rows) {
      double* sums = part_.totals.data() + (own.start * (d_ + 1) + d_ * own.columns + begin);
      for (int r = 0; r < rows; ++r) sums[r] += slopes[r] * weight(own, begin + r);
    }
    if (out_.grad_a) {  // for now the sum itself; `finish` makes it a derivative
      T* grad = out_.grad_a + layout_.item * (layout_.in.n + layout_.in.m) +
                (own.of_y ? layout_.in.n : 0) + own.row + begin;
      for (int64_t r = 0; r < end - begin; ++r) grad[r] = T(values[r]);
    }
    rows_since_sum_ += rows;
    if (rows_since_sum_ >= kRowsPerSum) take_columns();
  }

  // Passes the columns' sums to double.
  void take_columns() {
    rows_since_sum_ = 0;
    for (int64_t i = touched_begin_ * (d_ + 1); i < touched_end_ * (d_ + 1); ++i) {
      part_.totals[i] += double(column_values_.data[i]);
      column_values_.data[i] = 0;
    }
    touched_begin_ = layout_.padded;
    touched_end_ = 0;
  }

 private:
  static int64_t widest(const std::vector<Tile>& tiles) {
    int64_t width = 0;
    for (const Tile& tile : tiles) width = std::max(width, tile.columns);
    return width;
  }

  double weight(const Tile& tile, int64_t row) const {
    return double(layout_.weight.data[tile.start + row]);
  }

  // Whether the gradient of some row of a tile is asked for.
  bool wanted(const Tile& tile) const {
    const int64_t first = (tile.of_y ? layout_.in.n : 0) + tile.row;
    return std::max(first, out_.row_begin) < std::min(first + tile.rows, out_.row_end);
  }

  MmdVisit<T> of_rows(const Tile& own, int64_t begin, int rows) {
    MmdVisit<T> v = {};
    const int64_t at = own.start + begin;
    v.d = d_;
    v.features = layout_.features;
    v.rows = rows;
    v.rows_z = layout_.rows.data + at * layout_.features;
    v.row_bias = layout_.bias.data + at;
    v.rows_weighted = layout_.weighted.data + at * (d_ + 1);
    v.scales = layout_.in.scales;
    v.ratio = layout_.ratio.data();
    v.value_weight = layout_.value_weight.data();
    v.slope_weight = layout_.slope_weight.data();
    v.shift = layout_.shift;
    v.differences = layout_.differences;
    v.with_variance = out_.grad_p != nullptr;
    v.scaled = scaled_;
    v.w = w_.data;
    v.value_sums = value_sums_.data;
    v.slope_sums = slope_sums_.data;
    v.variance_sums = variance_sums_.data;
    v.row_values = row_values_.data;
    return v;
  }

  static double take_lanes(T* lanes) {
    const double sum = std::accumulate(lanes, lanes + kTileAlign, 0.0);
    std::fill_n(lanes, kTileAlign, T(0));
    return sum;
  }

  void take_sums(const Tile& own, int64_t begin, int rows, bool across, int times, double* values,
                 double* slopes) {
    double sum = 0;
    for (int r = 0; r < rows; ++r) {
      const double value = take_lanes(value_sums_.data + r * kTileAlign);
      slopes[r] += scaled_ ? take_lanes(slope_sums_.data + r * kTileAlign) : value;
      values[r] += value;
      sum += weight(own, begin + r) * value;
    }
    (across ? part_.across : part_.within) += times * sum;
    if (!out_.grad_p) return;
    for (int64_t s = 0; s < layout_.in.scales; ++s)
      part_.variance[s] += times * take_lanes(variance_sums_.data + s * kTileAlign);
  }

  void take_rows(const Tile& own, int64_t begin, int rows) {
    double* sums = part_.totals.data() + own.start * (d_ + 1) + begin;
    for (int r = 0; r < rows; ++r) {
      const double a = weight(own, begin + r);
      T* row = row_values_.data + r * row_width_;
      if (d_ < kFeatureLanes) {
        for (int64_t f = 0; f < d_; ++f)
          sums[f * own.columns + r] += a * take_lanes(row + f * kTileAlign);
      } else {
        for (int64_t f = 0; f < d_; ++f) sums[f * own.columns + r] += a * double(row[f]);
        std::fill_n(row, row_width_, T(0));
      }
    }
  }

  const Layout<T>& layout_;
  const MmdGradient<T>& out_;
  Part<T>& part_;
  const bool symmetric_, scaled_;
  const int64_t d_, row_width_, column_size_;
  Buffer<T> w_, value_sums_, slope_sums_, variance_sums_, row_values_, column_values_;
  const MmdVisitFunction<T> visit_ = mmd_visit_function<T>();
  int64_t rows_since_sum_ = 0, touched_begin_ = layout_.padded, touched_end_ = 0;
};

// Turns the sums of all parts into loss and gradients, in the caller's units.
template <typename T>
void finish(const Layout<T>& layout, const MmdGradient<T>& out,
            const std::vector<std::unique_ptr<Part<T>>>& parts, int threads) {
  const MmdInput<T>& in = layout.in;
  const double cross = layout.cross, shift = double(layout.shift);
  const double* mass = layout.mass;
  const double values = std::accumulate(in.kernel_weights, in.kernel_weights + in.scales, 0.0);
  double slopes = 0;
  for (T weight : layout.slope_weight) slopes += double(weight);
  // The op's sums are over k - 1, the kernel's over k - shift.
  const double pairs = mass[0] * mass[0] + mass[1] * mass[1] - layout.own_mass;
  double within = -(1 - shift) * values * pairs;
  double across = -(1 - shift) * values * 2 * cross * mass[0] * mass[1];
  for (const auto& part : parts) {
    within += part->within;
    across += part->across;
  }
  out.loss[layout.item] = T(within + across);
  if (out.grad_p) {
    T* grad = out.grad_p + layout.item * (in.scales + 1);
    for (int64_t s = 0; s < in.scales; ++s) {
      double sum = 0;
      for (const auto& part : parts) sum += part->variance[s];
      grad[s] = T(in.kernel_weights[s] * sum / layout.h[s]);
    }
    grad[in.scales] = T(across / cross);
  }
  if (out.grad_a) {
    T* grad = out.grad_a + layout.item * (in.n + in.m);
    for (int64_t i = 0; i < in.n + in.m; ++i) {
      const double around = mass[i >= in.n] + cross * mass[i < in.n] - layout.own_weight(i);
      grad[i] = T(2 * (double(grad[i]) - (1 - shift) * values * around));
    }
  }
  if (out.row_end <= out.row_begin) return;
  // dL/dz_i = -(2/h) [S_i z_i - V_i], with k = (k - shift) + shift in both sums.
  const double factor = -2 / (layout.h[0] * layout.scale);
  const int64_t d = in.d;
  parallel_parts(int(layout.tiles.size()), threads, [&](int index) {
    const Tile& tile = layout.tiles[index];
    const double* own = layout.total.data() + tile.of_y * d;
    const double* other = layout.total.data() + !tile.of_y * d;
    for (int64_t lane = 0; lane < tile.rows; ++lane) {
      const int64_t row = (tile.of_y ? in.n : 0) + tile.row + lane;
      if (row < out.row_begin || row >= out.row_end) continue;
      const double a = double(layout.weight.data[tile.start + lane]) * shift * slopes;
      const T* z = layout.rows.data + (tile.start + lane) * layout.features;
      const int64_t at = tile.start * (d + 1) + lane;
      // A row's pair with itself is in neither: it would add the same to both.
      const double own_a = double(layout.weight.data[tile.start + lane]);
      double s = a * (mass[tile.of_y] - own_a + cross * mass[!tile.of_y]);
      for (const auto& part : parts) s += part->totals[at + d * tile.columns];
      T* grad =
          out.grad_z + (layout.item * (out.row_end - out.row_begin) + row - out.row_begin) * d;
      for (int64_t f = 0; f < d; ++f) {
        double v = a * (own[f] - own_a * double(z[f]) + cross * other[f]);
        for (const auto& part : parts) v += part->totals[at + f * tile.columns];
        grad[f] = T(factor * (s * double(z[f]) - v));
      }
    }
  });
}

template <typename T>
void forward_item(const MmdInput<T>& in, const MmdGradient<T>& out, int64_t item, int threads) {
  const Layout<T> layout(in, item);
  const bool with_gradient = out.row_end > out.row_begin,
             symmetric = !in.x_weights && !in.y_weights;
  struct Block {
    size_t tile;
    int64_t begin, end;
  };
  std::vector<Block> blocks;
  for (size_t tile = 0; tile < layout.tiles.size(); ++tile)
    for (int64_t begin = 0; begin < layout.tiles[tile].rows; begin += kBlockRows)
      blocks.push_back({tile, begin, std::min(begin + kBlockRows, layout.tiles[tile].rows)});
  const double pairs = double(in.n + in.m) * double(in.n + in.m);
  const double work = pairs * (2.0 * double(in.d) + 16.0 * double(in.scales));
  // Waking a thread takes some microseconds, in which one core does about this much.
  const int useful = int(std::min(double(threads), 1 + work / 1e6));
  const int count = int(std::min<int64_t>(useful, int64_t(blocks.size())));
  std::vector<std::unique_ptr<Part<T>>> parts(count);
  parallel_parts(count, threads, [&](int index) {
    parts[index] = std::make_unique<Part<T>>(layout, with_gradient);
    Worker<T> worker(layout, out, symmetric, *parts[index]);
    // Dealt out back and forth: with each pair visited once, early blocks have more to do.
    for (size_t i = 0; i < blocks.size(); ++i) {
      const int turn = int(i % (2 * size_t(count)));
      if ((turn < count ? turn : 2 * count - 1 - turn) == index)
        worker.visit_block(blocks[i].tile, blocks[i].begin, blocks[i].end);
    }
    worker.take_columns();
  });
  finish(layout, out, parts, threads);
}

}  // namespace

template <typename T>
void mmd_fwd_cpu(const MmdInput<T>& in, const MmdGradient<T>& out, int threads) {
  if (in.batch >= threads && threads > 1) {  // many problems: each thread takes whole ones
    parallel_parts(int(in.batch), threads, [&](int item) { forward_item(in, out, item, 1); });
  } else {
    for (int64_t item = 0; item < in.batch; ++item) forward_item(in, out, item, threads);
  }
}

template void mmd_fwd_cpu(const MmdInput<float>&, const MmdGradient<float>&, int);
template void mmd_fwd_cpu(const MmdInput<double>&, const MmdGradient<double>&, int);

// One set of kernels per instruction set, each compiled from mmd_kernel.cpp.
#define CGM_FAST_DECLARE(name)                    \
  namespace name {                                \
  void mmd_visit_float(const MmdVisit<float>&);   \
  void mmd_visit_double(const MmdVisit<double>&); \
  }
CGM_FAST_DECLARE(baseline)
#ifdef CGM_FAST_X86
CGM_FAST_DECLARE(avx2)
CGM_FAST_DECLARE(avx512)
#endif

template <>
MmdVisitFunction<float> mmd_visit_function<float>() {
#ifdef CGM_FAST_X86
  if (isa() == Isa::avx512) return avx512::mmd_visit_float;
  if (isa() == Isa::avx2) return avx2::mmd_visit_float;
#endif
  return baseline::mmd_visit_float;
}

template <>
MmdVisitFunction<double> mmd_visit_function<double>() {
#ifdef CGM_FAST_X86
  if (isa() == Isa::avx512) return avx512::mmd_visit_double;
  if (isa() == Isa::avx2) return avx2::mmd_visit_double;
#endif
  return baseline::mmd_visit_double;
}

}  // namespace cgm_fast
