// The data of one MMD² problem as the kernel reads it: centred, scaled, in tiles of rows.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "cpu/buffer.h"
#include "cpu/mmd_kernel.h"
#include "cpu/parallel.h"
#include "cpu/read.h"
#include "cpu/tiles.h"
#include "mmd.h"

namespace cgm_fast {

struct Tile {
  int64_t group;    // of rows, that it lies in
  int64_t row;      // of z, the first
  int64_t rows;     // that there are
  int64_t start;    // its first padded row among those of all tiles
  int64_t columns;  // rows, padded
};

template <typename T>
std::vector<Tile> make_tiles(const MmdProblem<T>& in, int64_t width) {
  std::vector<Tile> tiles;
  int64_t start = 0;
  for (int64_t group = 0; group < in.groups; ++group) {
    const int64_t end = in.begins[group + 1];
    for (int64_t row = in.begins[group]; row < end; row += width) {
      const int64_t count = std::min(width, end - row);
      const int64_t columns = round_up(count, kTileAlign);
      tiles.push_back({group, row, count, start, columns});
      start += columns;
    }
  }
  return tiles;
}

template <typename T>
struct Layout {
  Layout(const MmdProblem<T>& in, int64_t item, int threads)
      : in(in),
        item(item),
        threads(threads),
        relation(in.relation_of(item)),
        width(tile_width(in.d, in.rows, threads)),
        tiles(make_tiles(in, width)),
        padded(tiles.back().start + tiles.back().columns),
        features(in.d < kFeatureLanes ? in.d + 1 : round_up(in.d + 1, kTileAlign)),
        rows(padded * features),
        panels(padded * in.d),
        bias(padded),
        weight(padded),
        own_weighted(in.weights ? padded * features : 0),
        own_weighted_panels(in.weights ? padded * in.d : 0),
        weighted(in.weights ? own_weighted.data : rows.data),
        weighted_panels(in.weights ? own_weighted_panels.data : panels.data),
        mass(in.groups, 0.0),
        total(in.groups * in.d, 0.0) {
    for (int64_t s = 0; s < in.scales; ++s) {
      h.push_back(in.variance ? double(in.variance[item * in.scales + s]) : in.variances[s]);
      ratio.push_back(T(h[0] / h[s]));
      value_weight.push_back(T(in.kernel_weights[s]));
      slope_weight.push_back(T(in.kernel_weights[s] * h[0] / h[s]));
    }
    const double largest = centre();
    const double widest = *std::max_element(ratio.begin(), ratio.end());
    // Slopes less 1 leave least to cancel where all pairs are within a bandwidth or so; but a row
    // far from all others would be left with the rounding of 1 - 1.
    shifted = in.kernel == Kernel::gaussian && largest * widest < 1.5;
    differences = has_kink(in.kernel) || by_differences(largest * widest, in.d);
    several = in.scales > 1 || in.kernel_weights[0] != 1.0;
    scale = std::sqrt(1 / (2 * kLn2 * h[0])) * (differences ? 1.0 : std::sqrt(2.0));
    finish();
  }

  const MmdProblem<T>& in;
  int64_t item;
  int threads;
  const double* relation;  // [groups, groups]
  int64_t width;           // columns of a tile, at most
  std::vector<Tile> tiles;
  int64_t padded;                        // rows of all tiles
  int64_t features;                      // length of a row of `rows`
  Buffer<T> rows, panels, bias, weight;  // as MmdVisit describes them; padding weighs 0
  Buffer<T> own_weighted, own_weighted_panels;
  const T *weighted, *weighted_panels;  // the same as rows and panels where all rows weigh 1
  std::vector<double> h;
  std::vector<T> ratio, value_weight, slope_weight;
  double scale;  // z in the kernel is (z - centre) * scale
  bool shifted;
  bool differences, several;  // several: bandwidths, or one of weight other than 1
  std::vector<double> mass;   // [groups], sum of w_j
  std::vector<double> total;  // [groups, d], sum of w_j z_j

  // How pairs of rows of two groups count.
  double relation_of(int64_t group, int64_t other) const {
    return relation[group * in.groups + other];
  }

 private:
  // Calls body(tile, its index); on all threads where that is worth waking them.
  template <typename Body>
  void each_tile(const Body& body) const {
    parallel_parts(int(tiles.size()), padded * in.d > 1 << 16 ? threads : 1,
                   [&](int i) { body(tiles[i], i); });
  }

  void read_row_of_z(int64_t i, T* row) const {
    const bool of_y = i >= in.x_rows;
    read_row(of_y ? in.y : in.x, item, of_y ? i - in.x_rows : i, in.d, row);
  }

  // Reads the rows; returns the sums of every tile, [tiles, d].
  std::vector<double> read() {
    std::vector<double> sums(tiles.size() * in.d, 0.0);
    each_tile([&](const Tile& tile, int i) {
      double* sum = sums.data() + i * in.d;
      T* row = rows.data + tile.start * features;
      for (int64_t lane = 0; lane < tile.columns; ++lane, row += features) {
        if (lane < tile.rows)
          read_row_of_z(tile.row + lane, row);
        else
          std::fill_n(row, in.d, T(0));
        std::fill(row + in.d, row + features, T(0));
        for (int64_t f = 0; f < in.d; ++f) sum[f] += double(row[f]);
      }
    });
    return sums;
  }

  // Takes the mean row from every row; then the largest |z|^2 in units where the first bandwidth's
  // kernel is 2^-|z_i - z_j|^2.
  double centre() {
    const std::vector<double> sums = read();
    std::vector<double> sum(in.d, 0.0);
    for (size_t at = 0; at < sums.size();)
      for (int64_t f = 0; f < in.d; ++f) sum[f] += sums[at++];
    // Rounded to T: then z - centre is exact wherever the data is far from the origin.
    std::vector<T> middle(in.d);
    for (int64_t f = 0; f < in.d; ++f) middle[f] = T(sum[f] / double(in.rows));
    std::vector<double> largest(tiles.size(), 0.0);
    each_tile([&](const Tile& tile, int i) {
      T* row = rows.data + tile.start * features;
      for (int64_t lane = 0; lane < tile.rows; ++lane, row += features) {
        for (int64_t f = 0; f < in.d; ++f) row[f] -= middle[f];
        largest[i] = std::max(largest[i], sum_of_squares(row, in.d));
      }
    });
    return *std::max_element(largest.begin(), largest.end()) / (2 * kLn2 * h[0]);
  }

  // Scales the rows; transposes them, weighs them, and adds up masses and totals.
  void finish() {
    const int64_t width = in.d + 1;
    std::vector<double> sums(tiles.size() * width, 0.0);
    each_tile([&](const Tile& tile, int i) { finish(tile, sums.data() + i * width); });
    for (size_t i = 0; i < tiles.size(); ++i) {
      const int64_t group = tiles[i].group;
      const double* sum = sums.data() + i * width;
      for (int64_t f = 0; f < in.d; ++f) total[group * in.d + f] += sum[f];
      mass[group] += sum[in.d];
    }
  }

  // `sum` gets those of w z and of w, [d + 1].
  void finish(const Tile& tile, double* sum) {
    const int64_t d = in.d;
    const T* given = in.weights ? in.weights + item * in.rows + tile.row : nullptr;
    for (int64_t lane = 0; lane < tile.columns; ++lane) {
      const int64_t at = tile.start + lane;
      T* row = rows.data + at * features;
      const T own = lane < tile.rows ? (given ? given[lane] : T(1)) : T(0);
      for (int64_t f = 0; f < d; ++f) row[f] = T(double(row[f]) * scale);
      for (int64_t f = 0; f < d; ++f) sum[f] += double(own) * double(row[f]);
      sum[d] += double(own);
      row[d] = own;
      bias.data[at] = T(-0.5 * sum_of_squares(row, d));
      weight.data[at] = own;
      if (!given) continue;
      T* of_row = own_weighted.data + at * features;
      std::fill_n(of_row, features, T(0));
      for (int64_t f = 0; f < d; ++f) of_row[f] = own * row[f];
      of_row[d] = own;
    }
    const int64_t at = tile.start * features, of_panel = tile.start * d;
    transpose(rows.data + at, tile.columns, features, d, panels.data + of_panel);
    if (given)
      transpose(own_weighted.data + at, tile.columns, features, d,
                own_weighted_panels.data + of_panel);
  }
};

}  // namespace cgm_fast
