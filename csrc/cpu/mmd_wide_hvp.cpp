// The Hessian-vector product of MMD² on the CPU for many features: the driver of the visits in
// mmd_wide_hvp_kernel.cpp. Tiles of rows meet as in mmd_wide.cpp, each pair once.
#include <algorithm>
#include <memory>
#include <vector>

#include "cpu/isa.h"
#include "cpu/mmd_wide.h"
#include "cpu/mmd_wide_hvp_kernel.h"
#include "cpu/parallel.h"
#include "cpu/tournament.h"
#include "cpu/wide_layout.h"

namespace cgm_fast {
namespace {

// The direction, laid out like the data and in its coordinates.
template <typename T>
struct WideDirection {
  WideDirection(const WideLayout<T>& layout, const MmdTangent<T>& tangent)
      : t(layout.z.size, T(0)),
        squares(layout.padded, T(0)),
        products(layout.padded, T(0)),
        w_dot(layout.padded, T(0)),
        moves(layout.tiles.size(), 0) {
    const MmdProblem<T>& in = layout.in;
    const int64_t d = in.d, entries = in.groups * in.groups;
    for (int64_t s = 0; s < in.scales; ++s) {
      variance.push_back(T(layout.h[s]));
      const T* of_item = tangent.variance ? tangent.variance + layout.item * in.scales : nullptr;
      variance_dot.push_back(of_item ? of_item[s] : T(0));
      kernel_weight.push_back(T(in.kernel_weights[s]));
    }
    relation_dot = tangent.relation ? tangent.relation + layout.item * entries : nullptr;
    const WideRowKernels<T>& rows = wide_row_kernels<T>();
    const T* z_dot = tangent.z ? tangent.z + layout.item * in.rows * d : nullptr;
    for (size_t p = 0; z_dot && p < layout.tiles.size(); ++p) {
      const TileOfRows& tile = layout.tiles[p];
      const T* first = z_dot + tile.row * d;
      moves[p] = std::any_of(first, first + tile.rows * d, [](T value) { return value != 0; });
    }
    // Only differences of the direction matter, too; but of a sample that does not move nothing is
    // to be taken.
    std::vector<T> centre(d, T(0));
    if (std::all_of(moves.begin(), moves.end(), [](char some) { return some; })) {
      std::vector<double> sum(d, 0.0);
      for (int64_t i = 0; i < in.rows; ++i) rows.add(z_dot + i * d, d, sum.data());
      for (int64_t f = 0; f < d; ++f) centre[f] = T(sum[f] / double(in.rows));
    }
    parallel_parts(int(layout.tiles.size()), layout.threads, [&](int index) {
      const TileOfRows& tile = layout.tiles[index];
      std::vector<double> unwanted(d, 0.0);
      for (int64_t r = 0; r < tile.rows; ++r) {
        const int64_t at = tile.start + r, i = tile.row + r;
        squares[at] = T(-2) * layout.bias[at];
        if (tangent.weights) w_dot[at] = tangent.weights[layout.item * in.rows + i];
        if (!moves[index]) continue;
        const WideRow<T> row = {t.data + at * kPanel<T>, layout.step};
        rows.centre(z_dot + i * d, centre.data(), d, row);
        rows.scale(row, d, layout.scale, 0, unwanted.data());
        const T* z = layout.row(at).data;
        double product = 0;
        for (int64_t f = 0; f < d; f += kPanel<T>)
          for (int64_t k = 0; k < std::min<int64_t>(kPanel<T>, d - f); ++k) {
            const int64_t place = f / kPanel<T> * layout.step + k;
            product += double(z[place]) * double(row.data[place]);
          }
        products[at] = T(product);
      }
    });
  }

  Buffer<T> t;                         // as WideLayout's z
  Buffer<T> squares, products, w_dot;  // [padded]
  std::vector<char> moves;             // [tiles], whether some row has a tangent
  std::vector<T> variance, variance_dot, kernel_weight;
  const double* relation_dot;  // [groups, groups], or null for zero
};

// What tiles add up to.
struct WideHvpSums {
  WideHvpSums(int64_t padded, int64_t tiles, int64_t groups, int64_t scales)
      : of_p(padded, 0.0),
        of_dot(padded, 0.0),
        weights(padded, 0.0),
        variance(tiles * scales, 0.0),
        relation(tiles * groups, 0.0) {}

  std::vector<double> of_p, of_dot, weights;  // as in WideHvpSide
  std::vector<double> variance;               // [tiles, scales], by the tile of rows
  std::vector<double> relation;               // [tiles, groups], and the group of columns
};

template <typename T>
class WideHvpWorker {
 public:
  WideHvpWorker(const WideLayout<T>& layout, const WideDirection<T>& direction, WideHvpSums& sums,
                const MmdProduct<T>& out)
      : layout_(layout),
        direction_(direction),
        sums_(sums),
        out_(out),
        w_((kWideTile + kWideSlack) * kWideStride, T(0)),
        w_dot_((kWideTile + kWideSlack) * kWideStride, T(0)),
        packed_(2 * 16 * kPanelsAtOnce * kPanel<T>),
        of_columns_(3 * kWideTile),
        of_scales_(layout.in.scales * kTileAlign) {}

  // Tile p against tile q.
  void visit(int64_t p, int64_t q) {
    const TileOfRows &rows = layout_.tiles[p], &columns = layout_.tiles[q];
    const int64_t groups = layout_.in.groups, entry = rows.group * groups + columns.group;
    WideHvpVisit<T> v = {};
    v.kernel = layout_.in.kernel;
    v.d = layout_.in.d;
    v.rows = side(rows, p, p == q);
    v.columns = side(columns, q, p == q);
    // Of a pair of tiles nothing may be wanted: say, of a sample without gradient.
    if (!out_.weights && !out_.relation && !out_.variance && v.rows.begin == v.rows.end &&
        v.columns.begin == v.columns.end)
      return;
    v.own = p == q;
    v.relation = T(layout_.relation[entry]);
    v.relation_dot = direction_.relation_dot ? T(direction_.relation_dot[entry]) : T(0);
    v.unit = T(1 / (layout_.scale * layout_.scale));
    v.scales = layout_.in.scales;
    v.variance = direction_.variance.data();
    v.variance_dot = direction_.variance_dot.data();
    v.kernel_weight = direction_.kernel_weight.data();
    v.with_variance = out_.variance != nullptr;
    v.scratch = {w_.data, packed_.data};
    v.w_dot = w_dot_.data;
    v.of_columns = of_columns_.data;
    v.of_scales = of_scales_.data;
    v.variance_sums = sums_.variance.data() + p * layout_.in.scales;
    v.relation_sum = &sums_.relation[p * groups + columns.group];
    kernels_.visit(v);
  }

 private:
  // A tile; its sums are zeroed where it meets itself, which it does first.
  WideHvpSide<T> side(const TileOfRows& tile, int64_t index, bool first) const {
    WideHvpSide<T> side = {};
    side.z = {layout_.z.data + tile.start * kPanel<T>, tile.padded, layout_.step};
    side.t = {direction_.t.data + tile.start * kPanel<T>, tile.padded, layout_.step};
    side.moves = direction_.moves[index];
    side.squares = direction_.squares.data + tile.start;
    side.products = direction_.products.data + tile.start;
    side.w = layout_.weight.data + tile.start;
    side.w_dot = direction_.w_dot.data + tile.start;
    side.of_p = sums_.of_p.data() + tile.start;
    side.of_dot = sums_.of_dot.data() + tile.start;
    side.weights = sums_.weights.data() + tile.start;
    const WantedRows<T> wanted(layout_, tile, out_);
    side.begin = wanted.begin;
    side.end = wanted.end;
    side.sums = wanted.at;
    if (first) wanted.zero(layout_.in.d);
    return side;
  }

  const WideLayout<T>& layout_;
  const WideDirection<T>& direction_;
  WideHvpSums& sums_;
  const MmdProduct<T>& out_;
  const WideHvpKernels<T>& kernels_ = wide_hvp_kernels<T>();
  Buffer<T> w_, w_dot_, packed_, of_columns_, of_scales_;
};

// z_i sum p' + t_i sum p - sum (p' z_j + p t_j), in the caller's units.
template <typename T>
void finish_tile(const WideLayout<T>& layout, const WideDirection<T>& direction,
                 const WideHvpSums& sums, const MmdProduct<T>& out, const TileOfRows& tile) {
  const int64_t d = layout.in.d, wanted = out.row_end - out.row_begin;
  const double factor = 4 / layout.scale;
  for (int64_t r = 0; r < tile.rows; ++r) {
    const int64_t i = tile.row + r, at = tile.start + r;
    if (out.weights) out.weights[layout.item * layout.in.rows + i] = T(2 * sums.weights[at]);
    if (i < out.row_begin || i >= out.row_end) continue;
    T* to = out.z + (layout.item * wanted + i - out.row_begin) * d;
    const T *z = layout.row(at).data, *t = direction.t.data + at * kPanel<T>;
    for (int64_t f = 0; f < d; f += kPanel<T>, z += layout.step, t += layout.step)
      for (int64_t k = 0; k < std::min<int64_t>(kPanel<T>, d - f); ++k)
        to[f + k] = T(factor * (sums.of_dot[at] * double(z[k]) + sums.of_p[at] * double(t[k]) -
                                double(to[f + k])));
  }
}

template <typename T>
bool symmetric(const double* relation, int64_t groups) {
  for (int64_t g = 0; relation && g < groups; ++g)
    for (int64_t h = 0; h < g; ++h)
      if (relation[g * groups + h] != relation[h * groups + g]) return false;
  return true;
}

}  // namespace

template <typename T>
bool mmd_wide_hvp_item(const MmdProblem<T>& in, const MmdTangent<T>& tangent,
                       const MmdProduct<T>& out, int64_t item, int threads) {
  const int64_t groups = in.groups;
  if (!symmetric<T>(tangent.relation ? tangent.relation + item * groups * groups : nullptr, groups))
    return false;  // a pair would not count alike for both of its rows
  const double pairs = double(in.rows) * double(in.rows);
  threads = useful_threads(pairs * 4.0 * double(in.d), threads);
  const WideLayout<T> layout(in, item, threads);
  if (layout.differences) return false;
  const WideDirection<T> direction(layout, tangent);
  const int64_t tiles = int64_t(layout.tiles.size());
  WideHvpSums sums(layout.padded, tiles, groups, in.scales);
  Tournament tournament(tiles);
  threads = int(std::min<int64_t>(threads, tiles));
  std::vector<std::unique_ptr<WideHvpWorker<T>>> workers(threads);
  for (auto& worker : workers)
    worker = std::make_unique<WideHvpWorker<T>>(layout, direction, sums, out);
  parallel_parts(threads, threads, [&](int index) {
    tournament.run([&](int64_t p, int64_t q) { workers[index]->visit(p, q); });
  });
  parallel_parts(int(tiles), threads,
                 [&](int i) { finish_tile(layout, direction, sums, out, layout.tiles[i]); });
  for (int64_t s = 0; out.variance && s < in.scales; ++s) {
    double sum = 0;
    for (int64_t p = 0; p < tiles; ++p) sum += sums.variance[p * in.scales + s];
    out.variance[item * in.scales + s] = T(sum);
  }
  if (!out.relation) return true;
  // Which of two groups was the rows' is chance: half of both orders for either.
  double* relation = out.relation + item * groups * groups;
  std::fill_n(relation, groups * groups, 0.0);
  for (int64_t p = 0; p < tiles; ++p)
    for (int64_t g = 0; g < groups; ++g) {
      const int64_t own = layout.tiles[p].group;
      const double half = 0.5 * sums.relation[p * groups + g];
      relation[own * groups + g] += half;
      relation[g * groups + own] += half;
    }
  return true;
}

template bool mmd_wide_hvp_item(const MmdProblem<float>&, const MmdTangent<float>&,
                                const MmdProduct<float>&, int64_t, int);
template bool mmd_wide_hvp_item(const MmdProblem<double>&, const MmdTangent<double>&,
                                const MmdProduct<double>&, int64_t, int);

CGM_FAST_KERNELS(WideHvpKernels, wide_hvp_kernels)

}  // namespace cgm_fast
