// The end of an MMD² pass: what the visits have added up becomes L and its derivatives.
#include <algorithm>
#include <vector>

#include "block_sums.h"
#include "cpu/mmd_sums.h"
#include "cpu/parallel.h"

namespace cgm_fast {
namespace {

// Turns the sums into the gradient of a tile's rows, in the caller's units.
template <typename T>
void gradient_of_tile(const Pass<T>& pass, const Tile& tile, double slopes) {
  const Layout<T>& layout = pass.layout;
  const MmdValue<T>& out = pass.out;
  // dL/dz_i = -(2/h) w_i [S_i z_i - V_i]; shifted slopes get their 1 back here, in both sums.
  const double factor = -2 / (layout.h[0] * layout.scale);
  const int64_t d = layout.in.d;
  std::vector<double> of_all(layout.shifted ? d + 1 : 0);
  if (layout.shifted) {
    for (int64_t f = 0; f < d; ++f)
      of_all[f] = slopes * layout.related(tile.group, layout.total.data() + f, d);
    of_all[d] = slopes * layout.related(tile.group, layout.mass.data());
  }
  const double of_own = slopes * layout.relation_of(tile.group, tile.group);
  constexpr int64_t kLanes = 8;  // rows whose sums as columns are read together: a line of cache
  std::vector<double> of_columns(pass.symmetric ? kLanes * (d + 1) : 0);
  for (int64_t lane = 0; lane < tile.rows; ++lane) {
    if (pass.symmetric && lane % kLanes == 0) {
      const double* sums = pass.sums.columns.data + tile.start * (d + 1) + lane;
      for (int64_t f = 0; f <= d; ++f, sums += tile.columns)
        for (int64_t l = 0; l < kLanes; ++l) of_columns[l * (d + 1) + f] = sums[l];
    }
    const int64_t row = tile.row + lane;
    if (row < out.row_begin || row >= out.row_end) continue;
    const double w = double(layout.weight.data[tile.start + lane]);
    const T* z = layout.rows.data + (tile.start + lane) * layout.features;
    double* sums = pass.sums.rows.data + (tile.start + lane) * (d + 1);
    if (pass.symmetric) {
      const double* of_column = of_columns.data() + lane % kLanes * (d + 1);
      for (int64_t f = 0; f <= d; ++f) sums[f] += of_column[f];
    }
    if (layout.shifted) {  // but not for a row's pair with itself, which is in neither sum
      for (int64_t f = 0; f < d; ++f) sums[f] += of_all[f] - of_own * w * double(z[f]);
      sums[d] += of_all[d] - of_own * w;
    }
    T* grad = out.z + (layout.item * (out.row_end - out.row_begin) + row - out.row_begin) * d;
    for (int64_t f = 0; f < d; ++f) grad[f] = T(factor * w * (sums[d] * double(z[f]) - sums[f]));
  }
}

// Turns the sums into the derivatives in the weights.
template <typename T>
void gradient_of_weights(const Pass<T>& pass, T* grad) {
  const Layout<T>& layout = pass.layout;
  const int64_t d = layout.in.d;
  double values = 0;
  for (T weight : layout.value_weight) values += double(weight);
  for (const Tile& tile : layout.tiles) {
    const double mass = layout.related(tile.group, layout.mass.data());
    const double own = layout.relation_of(tile.group, tile.group);
    for (int64_t lane = 0; lane < tile.rows; ++lane) {
      const int64_t at = tile.start + lane;
      double sum = 0;
      if (!pass.sums.values.empty()) {
        sum = pass.sums.values[at];
      } else {  // the slopes are the values
        sum = pass.sums.rows[at * (d + 1) + d];
        if (pass.symmetric)
          sum += pass.sums.columns[tile.start * (d + 1) + d * tile.columns + lane];
        if (!layout.shifted) sum -= values * (mass - own * double(layout.weight.data[at]));
      }
      grad[tile.row + lane] = T(2 * sum);
    }
  }
}

// What all pairs of rows i != j weigh, [groups, groups].
template <typename T>
std::vector<double> pair_masses(const MmdProblem<T>& in, int64_t item) {
  std::vector<double> mass(in.groups, 0.0), square(in.groups, 0.0), out(in.groups * in.groups);
  for (int64_t g = 0; g < in.groups; ++g) {
    if (!in.weights) mass[g] = square[g] = double(in.begins[g + 1] - in.begins[g]);
    for (int64_t i = in.begins[g]; in.weights && i < in.begins[g + 1]; ++i) {
      const double w = double(in.weights[item * in.rows + i]);
      mass[g] += w;
      square[g] += w * w;
    }
  }
  for (int64_t g = 0; g < in.groups; ++g) {
    for (int64_t h = 0; h < in.groups; ++h) out[g * in.groups + h] = mass[g] * mass[h];
    out[g * in.groups + g] -= square[g];
  }
  return out;
}

// Sums of macro-tiles as those of blocks [groups, groups]: of every `step`-th number from `begin`.
// Where pairs were visited once, which order they count for is chance: the mean of both.
std::vector<double> by_block(const std::vector<int64_t>& group_of, int64_t groups,
                             const std::vector<double>& sums, int64_t step, int64_t begin) {
  std::vector<double> out(groups * groups, 0.0);
  for (size_t p = 0; p < group_of.size(); ++p)
    for (int64_t g = 0; g < groups; ++g)
      out[group_of[p] * groups + g] += sums[(p * groups + g) * step + begin];
  for (int64_t g = 0; g < groups; ++g)
    for (int64_t h = 0; h < g; ++h)
      out[g * groups + h] = out[h * groups + g] = 0.5 * (out[g * groups + h] + out[h * groups + g]);
  return out;
}

}  // namespace

template <typename T>
void finish_values(const Scaling<T>& of, const std::vector<int64_t>& group_of, const LossSums& sums,
                   const MmdValue<T>& out) {
  const MmdProblem<T>& in = of.in;
  const int64_t entries = in.groups * in.groups, scales = in.scales;
  std::vector<double> blocks = by_block(group_of, in.groups, sums.small, 1, 0);
  double loss = 0;
  for (int64_t q = 0; q < entries; ++q) loss += of.relation[q] * blocks[q];
  if (!of.shifted) {
    const std::vector<double> all = pair_masses(in, of.item);
    for (int64_t s = 0; s < scales; ++s) {
      const std::vector<double> near = by_block(group_of, in.groups, sums.near, scales, s);
      std::vector<double> far;
      if (in.weights) far = by_block(group_of, in.groups, sums.far, scales, s);
      const BlockWeights weights{near.data(), in.weights ? far.data() : nullptr, all.data(),
                                 entries};
      loss += in.kernel_weights[s] * weights.constant(of.relation);
      for (int64_t q = 0; q < entries; ++q) blocks[q] += in.kernel_weights[s] * weights.of_block(q);
    }
  }
  out.loss[of.item] = T(loss);
  if (out.relation) std::copy(blocks.begin(), blocks.end(), out.relation + of.item * entries);
  for (int64_t s = 0; out.variance && s < scales; ++s) {
    double sum = 0;
    for (size_t p = 0; p < group_of.size(); ++p) sum += sums.variance[p * scales + s];
    out.variance[of.item * scales + s] = T(in.kernel_weights[s] * sum / of.h[s]);
  }
}

template <typename T>
void finish(const Pass<T>& pass, int threads) {
  const Layout<T>& layout = pass.layout;
  const MmdProblem<T>& in = layout.in;
  const MmdValue<T>& out = pass.out;
  std::vector<int64_t> group_of;
  for (const MacroTile& macro_tile : pass.macro_tiles) group_of.push_back(macro_tile.group);
  finish_values(layout, group_of, pass.sums, out);
  if (out.weights) gradient_of_weights(pass, out.weights + layout.item * in.rows);
  if (out.row_end <= out.row_begin) return;
  double slopes = 0;
  for (T weight : layout.slope_weight) slopes += double(weight);
  const bool worth_waking = layout.padded * in.d > 1 << 16;
  parallel_parts(int(layout.tiles.size()), worth_waking ? threads : 1,
                 [&](int i) { gradient_of_tile(pass, layout.tiles[i], slopes); });
}

template void finish(const Pass<float>&, int);
template void finish(const Pass<double>&, int);
template void finish_values(const Scaling<float>&, const std::vector<int64_t>&, const LossSums&,
                            const MmdValue<float>&);
template void finish_values(const Scaling<double>&, const std::vector<int64_t>&, const LossSums&,
                            const MmdValue<double>&);

}  // namespace cgm_fast
