// The Hessian-vector product of MMD² on the CPU: the driver of the visits in mmd_hvp_kernel.cpp, to
// every ordered pair of rows.
//
// Each thread owns blocks of rows and meets every tile of columns. As in the first pass a row's
// result comes from sums over its columns, sum_j w'_ij (z_i - z_j) + w_ij (t_i - t_j) as
// z_i sum w' + t_i sum w - sum (w' z_j + w t_j), in coordinates less a common centre. Sums are in T
// over a few tiles and in double beyond, and what a thread adds does not depend on the others.
#include <algorithm>
#include <memory>
#include <vector>

#include "cpu/isa.h"
#include "cpu/layout.h"
#include "cpu/mmd_hvp_kernel.h"
#include "cpu/parallel.h"
#include "mmd.h"

namespace cgm_fast {

CGM_FAST_KERNELS(HvpKernels, hvp_kernels)

namespace {

constexpr int kTilesPerSum = 4;  // whose sums stay in T
constexpr int kLaneSums = 3;     // per row: of w', w and dL/da

// The direction, laid out like the data and in its coordinates.
template <typename T>
struct Direction {
  Direction(const Layout<T>& layout, const MmdTangent<T>& tangent)
      : a(layout.padded),
        a_dot(layout.padded),
        rows(layout.padded * layout.features),
        panels(layout.padded * layout.in.d) {
    const MmdInput<T>& in = layout.in;
    const int64_t d = in.d, count = in.n + in.m, b = layout.item;
    const T* tz = tangent.z ? tangent.z + b * count * d : nullptr;
    const T* ta = tangent.a ? tangent.a + b * count : nullptr;
    const T* tp = tangent.p ? tangent.p + b * (in.scales + 1) : nullptr;
    for (int64_t s = 0; s < in.scales; ++s) {
      variance.push_back(T(layout.h[s]));
      variance_dot.push_back(tp ? tp[s] : T(0));
      kernel_weight.push_back(T(in.kernel_weights[s]));
    }
    cross_dot = tp ? tp[in.scales] : T(0);
    std::vector<double> centre(d, 0.0);  // only differences of the direction matter, too
    for (int64_t i = 0; tz && i < count; ++i)
      for (int64_t f = 0; f < d; ++f) centre[f] += double(tz[i * d + f]) / double(count);
    for (const Tile& tile : layout.tiles) {
      for (int64_t lane = 0; lane < tile.columns; ++lane) {
        const int64_t at = tile.start + lane, i = (tile.of_y ? in.n : 0) + tile.row + lane;
        const bool inside = lane < tile.rows;
        a.data[at] = T(double(layout.weight.data[at]) * layout.unit(tile.of_y));
        a_dot.data[at] = inside && ta ? ta[i] : T(0);
        T* row = rows.data + at * layout.features;
        for (int64_t f = 0; f < d; ++f)
          row[f] = inside && tz ? T((double(tz[i * d + f]) - centre[f]) * layout.scale) : T(0);
        std::fill(row + d, row + layout.features, T(0));
        T* panel = panels.data + tile.start * d + lane;
        for (int64_t f = 0; f < d; ++f) panel[f * tile.columns] = row[f];
      }
    }
  }

  Buffer<T> a, a_dot;      // [padded]
  Buffer<T> rows, panels;  // as in Layout
  std::vector<T> variance, variance_dot, kernel_weight;
  T cross_dot;
};

template <typename T>
class Worker {
 public:
  Worker(const Layout<T>& layout, const Direction<T>& direction, const MmdTangent<T>& tangent,
         double* block_p)
      : layout_(layout),
        direction_(direction),
        tangent_(tangent),
        d_(layout.in.d),
        row_width_(d_ < kFeatureLanes ? d_ * kTileAlign : layout.features),
        block_p_(block_p),
        w_(kBlockRows * layout.width),
        w_dot_(kBlockRows * layout.width),
        lanes_(kBlockRows * kLaneSums * kTileAlign),
        p_sums_((layout.in.scales + 1) * kTileAlign),
        row_values_(kBlockRows * row_width_),
        totals_(kBlockRows * (d_ + kLaneSums)) {
    std::fill_n(lanes_.data, lanes_.size, T(0));
    std::fill_n(p_sums_.data, p_sums_.size, T(0));
    std::fill_n(row_values_.data, row_values_.size, T(0));
  }

  // Rows [begin, begin + kBlockRows) of a tile against every tile.
  void visit(const Tile& own, int64_t begin, int64_t block) {
    const int64_t at = own.start + begin, scales = layout_.in.scales;
    const int count = int(std::min<int64_t>(kBlockRows, own.rows - begin));
    HvpVisit<T> v = {};
    v.d = d_;
    v.features = layout_.features;
    v.rows = int(round_up(count, 4));
    v.rows_z = layout_.rows.data + at * v.features;
    v.rows_t = direction_.rows.data + at * v.features;
    v.row_a = direction_.a.data + at;
    v.row_a_dot = direction_.a_dot.data + at;
    v.unit = T(1 / (layout_.scale * layout_.scale));
    v.scales = scales;
    v.variance = direction_.variance.data();
    v.variance_dot = direction_.variance_dot.data();
    v.kernel_weight = direction_.kernel_weight.data();
    v.with_p = tangent_.out_p != nullptr;
    v.w = w_.data;
    v.w_dot = w_dot_.data;
    v.lanes = lanes_.data;
    v.p_sums = p_sums_.data;
    v.row_values = row_values_.data;
    std::fill(totals_.begin(), totals_.end(), 0.0);
    int pending = 0;
    for (const Tile& met : layout_.tiles) {
      meet(v, own, begin, met);
      if (++pending < kTilesPerSum && &met != &layout_.tiles.back()) continue;
      pending = 0;
      flush_rows(v.rows);
      if (v.with_p)
        kernels_.flush_lanes(p_sums_.data, scales + 1, 1.0, block_p_ + block * (scales + 1));
    }
    write(own, begin, count);
  }

 private:
  void meet(HvpVisit<T>& v, const Tile& own, int64_t begin, const Tile& met) {
    v.columns = v.stride = met.columns;
    v.panel = layout_.panels.data + met.start * d_;
    v.panel_t = direction_.panels.data + met.start * d_;
    v.column_a = direction_.a.data + met.start;
    v.column_a_dot = direction_.a_dot.data + met.start;
    v.across = met.of_y != own.of_y;
    v.relation = v.across ? T(layout_.cross) : T(1);
    v.relation_dot = v.across ? direction_.cross_dot : T(0);
    v.diagonal = &met == &own ? begin : -1;
    kernels_.pairs(v);
    Block<T> product = v;  // w' z_j, and then w t_j
    product.w = v.w_dot;
    product.panel_weighted = v.panel;
    product.columns_weighted = layout_.rows.data + met.start * v.features;
    kernels_.add_rows(product);
    product.w = v.w;
    product.panel_weighted = v.panel_t;
    product.columns_weighted = direction_.rows.data + met.start * v.features;
    kernels_.add_rows(product);
  }

  void flush_rows(int rows) {
    for (int r = 0; r < rows; ++r) {
      double* total = totals_.data() + r * (d_ + kLaneSums);
      T* row = row_values_.data + r * row_width_;
      kernels_.flush_lanes(lanes_.data + r * kLaneSums * kTileAlign, kLaneSums, 1.0, total);
      if (d_ < kFeatureLanes)
        kernels_.flush_lanes(row, d_, 1.0, total + kLaneSums);
      else
        kernels_.flush(row, d_, 1.0, total + kLaneSums);
      std::fill_n(row, row_width_, T(0));
    }
  }

  void write(const Tile& own, int64_t begin, int count) {
    const MmdInput<T>& in = layout_.in;
    const int64_t first = (own.of_y ? in.n : 0) + own.row + begin, rows = in.n + in.m;
    const int64_t wanted = tangent_.row_end - tangent_.row_begin;
    for (int r = 0; r < count; ++r) {
      const double* total = totals_.data() + r * (d_ + kLaneSums);
      const int64_t i = first + r;
      if (tangent_.out_a) tangent_.out_a[layout_.item * rows + i] = T(2 * total[2]);
      if (i < tangent_.row_begin || i >= tangent_.row_end) continue;
      const T* z = layout_.rows.data + (own.start + begin + r) * layout_.features;
      const T* t = direction_.rows.data + (own.start + begin + r) * layout_.features;
      T* out = tangent_.out_z + (layout_.item * wanted + i - tangent_.row_begin) * d_;
      for (int64_t f = 0; f < d_; ++f)
        out[f] = T(4 / layout_.scale *
                   (total[0] * double(z[f]) + total[1] * double(t[f]) - total[kLaneSums + f]));
    }
  }

  const Layout<T>& layout_;
  const Direction<T>& direction_;
  const MmdTangent<T>& tangent_;
  const HvpKernels<T>& kernels_ = hvp_kernels<T>();
  const int64_t d_, row_width_;
  double* block_p_;  // [blocks, scales + 1]
  Buffer<T> w_, w_dot_, lanes_, p_sums_, row_values_;
  std::vector<double> totals_;  // per row: the lane sums, then sum_j w'_ij z_j + w_ij t_j
};

template <typename T>
void hvp_item(const MmdInput<T>& in, const MmdTangent<T>& tangent, int64_t item, int threads) {
  const double pairs = double(in.n + in.m) * double(in.n + in.m);
  threads = useful_threads(pairs * (5.0 * double(in.d) + 40.0 * double(in.scales)), threads);
  const Layout<T> layout(in, item, threads);
  const Direction<T> direction(layout, tangent);
  struct Place {
    const Tile* tile;
    int64_t begin;
  };
  std::vector<Place> blocks;
  for (const Tile& tile : layout.tiles)
    for (int64_t begin = 0; begin < tile.rows; begin += kBlockRows)
      blocks.push_back({&tile, begin});
  const int64_t count = int64_t(blocks.size()), p = in.scales + 1;
  std::vector<double> block_p(tangent.out_p ? count * p : 0, 0.0);
  threads = int(std::min<int64_t>(threads, count));
  std::vector<std::unique_ptr<Worker<T>>> workers(threads);
  for (auto& worker : workers)
    worker = std::make_unique<Worker<T>>(layout, direction, tangent, block_p.data());
  split_rows(count, threads, [&](int part, int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      interruption_point();
      workers[part]->visit(*blocks[i].tile, blocks[i].begin, i);
    }
  });
  if (!tangent.out_p) return;
  for (int64_t s = 0; s < p; ++s) {
    double sum = 0;
    for (int64_t i = 0; i < count; ++i) sum += block_p[i * p + s];
    tangent.out_p[item * p + s] = T(sum);
  }
}

}  // namespace

template <typename T>
void mmd_hvp_cpu(const MmdInput<T>& in, const MmdTangent<T>& tangent, int threads) {
  for_each_item(in.batch, threads,
                [&](int64_t item, int inner) { hvp_item(in, tangent, item, inner); });
}

template void mmd_hvp_cpu(const MmdInput<float>&, const MmdTangent<float>&, int);
template void mmd_hvp_cpu(const MmdInput<double>&, const MmdTangent<double>&, int);

}  // namespace cgm_fast
