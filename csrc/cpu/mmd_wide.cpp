// MMD² and its gradient on the CPU for many features: the driver of the visits in
// mmd_wide_kernel.cpp.
//
// There the time is that of three matrix products for a pair of tiles of rows: exponents, and sums
// of weighted rows for either tile. Tiles of 192 rows at most meet as in a tournament
// (tournament.h), each pair once, and a tile's sums are added up where its gradient is to be:
// beside that, memory is one copy of the samples. Within a visit sums run in T over a few hundred
// features or rows; those of the visits too, where they are vectors, and in double where they are
// numbers. See cgm_fast/ops/mmd/README.md.
#include "cpu/mmd_wide.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <vector>

#include "cpu/isa.h"
#include "cpu/mmd_sums.h"
#include "cpu/mmd_wide_kernel.h"
#include "cpu/parallel.h"
#include "cpu/tournament.h"
#include "cpu/wide_layout.h"

namespace cgm_fast {
namespace {

template <typename T>
struct WideSums : LossSums {
  explicit WideSums(const WideLayout<T>& layout, bool with_values)
      : LossSums(layout, layout.tiles.size()),
        slopes(layout.padded, 0.0),
        values(with_values ? layout.padded : 0, 0.0) {
    for (int64_t q = 0; q < layout.in.groups * layout.in.groups; ++q)
      largest = std::max(largest, std::fabs(layout.relation[q]));
    if (largest == 0) largest = 1;
  }

  // Of the groups' relation, in units of which pairs weigh in T: 1 / nm times what is left of a
  // kernel would be less than numbers go.
  double largest = 0;
  std::vector<double> slopes, values;  // as in MmdWideSide
};

template <typename T>
class WideWorker {
 public:
  WideWorker(const WideLayout<T>& layout, WideSums<T>& sums, const MmdValue<T>& out)
      : layout_(layout),
        sums_(sums),
        out_(out),
        w_((kWideTile + kWideSlack) * kWideStride, T(0)),
        packed_(2 * 16 * kPanelsAtOnce * kPanel<T>),
        of_columns_(2 * kWideTile),
        of_scales_(3 * layout.in.scales * kTileAlign) {}

  // Tile p against tile q.
  void visit(int64_t p, int64_t q) {
    const TileOfRows &rows = layout_.tiles[p], &columns = layout_.tiles[q];
    const int64_t scales = layout_.in.scales, block = p * layout_.in.groups + columns.group;
    MmdWideVisit<T> v = {};
    v.kernel = layout_.in.kernel;
    v.d = layout_.in.d;
    v.rows = side(rows, p == q);
    v.columns = side(columns, p == q);
    v.own = p == q;
    v.relation = layout_.relation_of(rows.group, columns.group) / sums_.largest;
    v.scales = scales;
    v.ratio = layout_.ratio.data();
    v.value_weight = layout_.value_weight.data();
    v.slope_weight = layout_.slope_weight.data();
    v.shifted = layout_.shifted;
    v.differences = layout_.differences;
    v.with_variance = out_.variance != nullptr;
    v.scratch = {w_.data, packed_.data};
    v.of_columns = of_columns_.data;
    v.of_scales = of_scales_.data;
    v.small = &sums_.small[block];
    v.near = sums_.near.empty() ? nullptr : sums_.near.data() + block * scales;
    v.far = sums_.far.empty() ? nullptr : sums_.far.data() + block * scales;
    v.variance = sums_.variance.data() + p * scales;
    kernels_.visit(v);
  }

 private:
  // A tile; its sums are zeroed where it meets itself, which it does first.
  MmdWideSide<T> side(const TileOfRows& tile, bool first) const {
    MmdWideSide<T> side = {};
    side.z = layout_.z.data + tile.start * kPanel<T>;
    side.rows = tile.padded;
    side.step = layout_.step;
    side.bias = layout_.bias.data + tile.start;
    side.weight = layout_.weight.data + tile.start;
    side.slopes = sums_.slopes.data() + tile.start;
    side.values = sums_.values.empty() ? nullptr : sums_.values.data() + tile.start;
    const WantedRows<T> wanted(layout_, tile, out_);
    side.begin = wanted.begin;
    side.end = wanted.end;
    side.gradient = wanted.at;
    if (first) wanted.zero(layout_.in.d);
    return side;
  }

  const WideLayout<T>& layout_;
  WideSums<T>& sums_;
  const MmdValue<T>& out_;
  const MmdWideKernels<T>& kernels_ = mmd_wide_kernels<T>();
  Buffer<T> w_, packed_, of_columns_, of_scales_;
};

// dL/dz_i = -(2/h) [S_i z_i - V_i], in the caller's units, of sums over the rows of a tile; shifted
// slopes get their 1 back here, in both sums: a row's pair with itself is then in both, and
// cancels.
template <typename T>
void finish_rows(const WideLayout<T>& layout, const WideSums<T>& sums, const MmdValue<T>& out,
                 const TileOfRows& tile) {
  const int64_t d = layout.in.d, wanted = out.row_end - out.row_begin;
  const double factor = -2 * sums.largest / (layout.h[0] * layout.scale);
  double slopes = 0;
  for (T weight : layout.slope_weight) slopes += double(weight) / sums.largest;
  std::vector<double> of_all(layout.shifted ? d + 1 : 0);
  if (layout.shifted) {
    for (int64_t f = 0; f < d; ++f)
      of_all[f] = slopes * layout.related(tile.group, layout.total.data() + f, d);
    of_all[d] = slopes * layout.related(tile.group, layout.mass.data());
  }
  for (int64_t r = 0; r < tile.rows; ++r) {
    const int64_t row = tile.row + r, at = tile.start + r;
    if (row < out.row_begin || row >= out.row_end) continue;
    T* grad = out.z + (layout.item * wanted + row - out.row_begin) * d;
    const double w = double(layout.weight[at]);
    const double s = sums.slopes[at] + (layout.shifted ? w * of_all[d] : 0);
    wide_row_kernels<T>().finish(layout.row(at), d, factor, s, w,
                                 layout.shifted ? of_all.data() : nullptr, grad);
  }
}

}  // namespace

template <typename T>
void mmd_wide_item(const MmdProblem<T>& in, const MmdValue<T>& out, int64_t item, int threads) {
  const double pairs = double(in.rows) * double(in.rows);
  threads = useful_threads(pairs * 2.0 * double(in.d), threads);
  const WideLayout<T> layout(in, item, threads);
  WideSums<T> sums(layout, out.weights != nullptr);
  const int64_t tiles = int64_t(layout.tiles.size());
  Tournament tournament(tiles);
  threads = int(std::min<int64_t>(threads, tiles));
  std::vector<std::unique_ptr<WideWorker<T>>> workers(threads);
  for (auto& worker : workers) worker = std::make_unique<WideWorker<T>>(layout, sums, out);
  parallel_parts(threads, threads, [&](int index) {
    tournament.run([&](int64_t p, int64_t q) { workers[index]->visit(p, q); });
  });
  std::vector<int64_t> group_of;
  for (const TileOfRows& tile : layout.tiles) group_of.push_back(tile.group);
  for (double& sum : sums.variance) sum *= sums.largest;
  finish_values(layout, group_of, sums, out);
  parallel_parts(int(tiles), threads, [&](int i) {
    const TileOfRows& tile = layout.tiles[i];
    for (int64_t r = 0; out.weights && r < tile.rows; ++r)
      out.weights[item * in.rows + tile.row + r] =
          T(2 * sums.largest * sums.values[tile.start + r]);
    if (out.row_end > out.row_begin) finish_rows(layout, sums, out, tile);
  });
}

template void mmd_wide_item(const MmdProblem<float>&, const MmdValue<float>&, int64_t, int);
template void mmd_wide_item(const MmdProblem<double>&, const MmdValue<double>&, int64_t, int);

CGM_FAST_KERNELS(MmdWideKernels, mmd_wide_kernels)
CGM_FAST_KERNELS(WideRowKernels, wide_row_kernels)

}  // namespace cgm_fast
