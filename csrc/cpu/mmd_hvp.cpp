// The Hessian-vector product of MMD² on the CPU: the driver of the visits in mmd_hvp_kernel.cpp, to
// every ordered pair of rows.
//
// Each thread owns blocks of rows and meets every tile of columns. As in the first pass a row's
// result comes from sums over its columns, sum_j p'_ij (z_i - z_j) + p_ij (t_i - t_j) as
// z_i sum p' + t_i sum p - sum (p' z_j + p t_j), in coordinates less a common centre. Sums are in T
// over a few tiles and in double beyond, and what a thread adds does not depend on the others.
#include <algorithm>
#include <memory>
#include <vector>

#include "cpu/isa.h"
#include "cpu/layout.h"
#include "cpu/mmd_hvp_kernel.h"
#include "cpu/mmd_wide.h"
#include "cpu/parallel.h"
#include "mmd.h"

namespace cgm_fast {

CGM_FAST_KERNELS(HvpKernels, hvp_kernels)

namespace {

constexpr int kTilesPerSum = 4;  // whose sums stay in T
constexpr int kLaneSums = 3;     // per row: of p', p and half of dL/dw

// The direction, laid out like the data and in its coordinates.
template <typename T>
struct Direction {
  Direction(const Layout<T>& layout, const MmdTangent<T>& tangent)
      : w_dot(layout.padded),
        rows(layout.padded * layout.features),
        panels(layout.padded * layout.in.d) {
    const MmdProblem<T>& in = layout.in;
    const int64_t d = in.d, count = in.rows, b = layout.item, entries = in.groups * in.groups;
    const T* tz = tangent.z ? tangent.z + b * count * d : nullptr;
    const T* tw = tangent.weights ? tangent.weights + b * count : nullptr;
    const T* th = tangent.variance ? tangent.variance + b * in.scales : nullptr;
    for (int64_t s = 0; s < in.scales; ++s) {
      variance.push_back(T(layout.h[s]));
      variance_dot.push_back(th ? th[s] : T(0));
      kernel_weight.push_back(T(in.kernel_weights[s]));
    }
    relation_dot = tangent.relation ? tangent.relation + b * entries : nullptr;
    std::vector<double> centre(d, 0.0);  // only differences of the direction matter, too
    for (int64_t i = 0; tz && i < count; ++i)
      for (int64_t f = 0; f < d; ++f) centre[f] += double(tz[i * d + f]) / double(count);
    for (const Tile& tile : layout.tiles) {
      for (int64_t lane = 0; lane < tile.columns; ++lane) {
        const int64_t at = tile.start + lane, i = tile.row + lane;
        const bool inside = lane < tile.rows;
        w_dot.data[at] = inside && tw ? tw[i] : T(0);
        T* row = rows.data + at * layout.features;
        for (int64_t f = 0; f < d; ++f)
          row[f] = inside && tz ? T((double(tz[i * d + f]) - centre[f]) * layout.scale) : T(0);
        std::fill(row + d, row + layout.features, T(0));
        T* panel = panels.data + tile.start * d + lane;
        for (int64_t f = 0; f < d; ++f) panel[f * tile.columns] = row[f];
      }
    }
  }

  Buffer<T> w_dot;         // [padded]
  Buffer<T> rows, panels;  // as in Layout
  std::vector<T> variance, variance_dot, kernel_weight;
  const double* relation_dot;  // [groups, groups], or null for zero
};

template <typename T>
class Worker {
 public:
  Worker(const Layout<T>& layout, const Direction<T>& direction, const MmdProduct<T>& product,
         double* of_block)
      : layout_(layout),
        direction_(direction),
        product_(product),
        d_(layout.in.d),
        row_width_(d_ < kFeatureLanes ? d_ * kTileAlign : layout.features),
        of_block_(of_block),
        w_(kBlockRows * layout.width),
        w_dot_(kBlockRows * layout.width),
        lanes_(kBlockRows * kLaneSums * kTileAlign),
        variance_sums_(layout.in.scales * kTileAlign),
        relation_sums_(kTileAlign),
        row_values_(kBlockRows * row_width_),
        totals_(kBlockRows * (d_ + kLaneSums)) {
    std::fill_n(lanes_.data, lanes_.size, T(0));
    std::fill_n(variance_sums_.data, variance_sums_.size, T(0));
    std::fill_n(relation_sums_.data, relation_sums_.size, T(0));
    std::fill_n(row_values_.data, row_values_.size, T(0));
  }

  // Rows [begin, begin + kBlockRows) of a tile against every tile.
  void visit(const Tile& own, int64_t begin, int64_t block) {
    const int64_t at = own.start + begin, scales = layout_.in.scales;
    const int count = int(std::min<int64_t>(kBlockRows, own.rows - begin));
    HvpVisit<T> v = {};
    v.kernel = layout_.in.kernel;
    v.d = d_;
    v.features = layout_.features;
    v.rows = int(round_up(count, 4));
    v.rows_z = layout_.rows.data + at * v.features;
    v.rows_t = direction_.rows.data + at * v.features;
    v.row_w = layout_.weight.data + at;
    v.row_w_dot = direction_.w_dot.data + at;
    v.unit = T(1 / (layout_.scale * layout_.scale));
    v.scales = scales;
    v.variance = direction_.variance.data();
    v.variance_dot = direction_.variance_dot.data();
    v.kernel_weight = direction_.kernel_weight.data();
    v.with_variance = product_.variance != nullptr;
    v.with_relation = product_.relation != nullptr;
    v.w = w_.data;
    v.w_dot = w_dot_.data;
    v.lanes = lanes_.data;
    v.variance_sums = variance_sums_.data;
    v.relation_sums = relation_sums_.data;
    v.row_values = row_values_.data;
    std::fill(totals_.begin(), totals_.end(), 0.0);
    int pending = 0;
    for (const Tile& met : layout_.tiles) {
      meet(v, own, begin, met);
      if (v.with_relation)
        kernels_.flush_lanes(relation_sums_.data, 1, 1.0,
                             of_block_ + block * of_block() + scales + met.group);
      if (++pending < kTilesPerSum && &met != &layout_.tiles.back()) continue;
      pending = 0;
      flush_rows(v.rows);
      if (v.with_variance)
        kernels_.flush_lanes(variance_sums_.data, scales, 1.0, of_block_ + block * of_block());
    }
    write(own, begin, count);
  }

  // Numbers that a block of rows has in `of_block`.
  int64_t of_block() const { return layout_.in.scales + layout_.in.groups; }

 private:
  void meet(HvpVisit<T>& v, const Tile& own, int64_t begin, const Tile& met) {
    v.columns = v.stride = met.columns;
    v.panel = layout_.panels.data + met.start * d_;
    v.panel_t = direction_.panels.data + met.start * d_;
    v.column_w = layout_.weight.data + met.start;
    v.column_w_dot = direction_.w_dot.data + met.start;
    const int64_t entry = own.group * layout_.in.groups + met.group;
    v.relation = T(layout_.relation[entry]);
    v.relation_dot = direction_.relation_dot ? T(direction_.relation_dot[entry]) : T(0);
    v.diagonal = &met == &own ? begin : -1;
    kernels_.pairs(v);
    Block<T> product = v;  // p' z_j, and then p t_j
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
    const int64_t first = own.row + begin, rows = layout_.in.rows;
    const int64_t wanted = product_.row_end - product_.row_begin;
    for (int r = 0; r < count; ++r) {
      const double* total = totals_.data() + r * (d_ + kLaneSums);
      const int64_t i = first + r;
      if (product_.weights) product_.weights[layout_.item * rows + i] = T(2 * total[2]);
      if (i < product_.row_begin || i >= product_.row_end) continue;
      const T* z = layout_.rows.data + (own.start + begin + r) * layout_.features;
      const T* t = direction_.rows.data + (own.start + begin + r) * layout_.features;
      T* out = product_.z + (layout_.item * wanted + i - product_.row_begin) * d_;
      for (int64_t f = 0; f < d_; ++f)
        out[f] = T(4 / layout_.scale *
                   (total[0] * double(z[f]) + total[1] * double(t[f]) - total[kLaneSums + f]));
    }
  }

  const Layout<T>& layout_;
  const Direction<T>& direction_;
  const MmdProduct<T>& product_;
  const HvpKernels<T>& kernels_ = hvp_kernels<T>();
  const int64_t d_, row_width_;
  double* of_block_;  // [blocks, scales + groups]: of the variances, and of the columns' groups
  Buffer<T> w_, w_dot_, lanes_, variance_sums_, relation_sums_, row_values_;
  std::vector<double> totals_;  // per row: the lane sums, then sum_j p'_ij z_j + p_ij t_j
};

template <typename T>
void product_of_item(const MmdProblem<T>& in, const MmdTangent<T>& tangent,
                     const MmdProduct<T>& out, int64_t item, int threads) {
  const double pairs = double(in.rows) * double(in.rows);
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
  const int64_t count = int64_t(blocks.size()), groups = in.groups, width = in.scales + groups;
  std::vector<double> of_block(out.variance || out.relation ? count * width : 0, 0.0);
  threads = int(std::min<int64_t>(threads, count));
  std::vector<std::unique_ptr<Worker<T>>> workers(threads);
  for (auto& worker : workers)
    worker = std::make_unique<Worker<T>>(layout, direction, out, of_block.data());
  split_rows(count, threads, [&](int part, int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      interruption_point();
      workers[part]->visit(*blocks[i].tile, blocks[i].begin, i);
    }
  });
  for (int64_t s = 0; out.variance && s < in.scales; ++s) {
    double sum = 0;
    for (int64_t i = 0; i < count; ++i) sum += of_block[i * width + s];
    out.variance[item * in.scales + s] = T(sum);
  }
  if (!out.relation) return;
  double* relation = out.relation + item * groups * groups;
  std::fill_n(relation, groups * groups, 0.0);
  for (int64_t i = 0; i < count; ++i)
    for (int64_t g = 0; g < groups; ++g)
      relation[blocks[i].tile->group * groups + g] += of_block[i * width + in.scales + g];
}

}  // namespace

template <typename T>
void mmd_hvp_cpu(const MmdProblem<T>& in, const MmdTangent<T>& tangent, const MmdProduct<T>& out,
                 int threads) {
  for_each_item(in.batch, threads, [&](int64_t item, int inner) {
    if (in.d >= kWideFeatures && mmd_wide_hvp_item(in, tangent, out, item, inner)) return;
    product_of_item(in, tangent, out, item, inner);
  });
}

template void mmd_hvp_cpu(const MmdProblem<float>&, const MmdTangent<float>&,
                          const MmdProduct<float>&, int);
template void mmd_hvp_cpu(const MmdProblem<double>&, const MmdTangent<double>&,
                          const MmdProduct<double>&, int);

}  // namespace cgm_fast
