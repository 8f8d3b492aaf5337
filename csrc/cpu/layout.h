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
#include "mmd.h"

namespace cgm_fast {

constexpr double kLn2 = 0.69314718055994530942;

struct Tile {
  bool of_y;
  int64_t row;      // of its sample, the first
  int64_t rows;     // that there are
  int64_t start;    // its first padded row among those of all tiles
  int64_t columns;  // rows, padded
};

inline std::vector<Tile> make_tiles(int64_t n, int64_t m, int64_t width) {
  std::vector<Tile> tiles;
  int64_t start = 0;
  for (bool of_y : {false, true}) {
    const int64_t rows = of_y ? m : n;
    for (int64_t row = 0; row < rows; row += width) {
      const int64_t count = std::min(width, rows - row);
      const int64_t columns = round_up(count, kTileAlign);
      tiles.push_back({of_y, row, count, start, columns});
      start += columns;
    }
  }
  return tiles;
}

// A block's slopes, a tile's panel and its sums stay in the first two levels of cache, and every
// thread gets a few tiles.
inline int64_t tile_width(int64_t d, int64_t rows, int threads) {
  const int64_t by_cache = 49152 / d, by_thread = threads > 1 ? rows / (2 * threads) : rows;
  return std::clamp<int64_t>(std::min(by_cache, by_thread) / 64 * 64, 64, 256);
}

// In eight sums: one would wait for each addition.
template <typename T>
double sum_of_squares(const T* row, int64_t d) {
  double part[8] = {}, rest = 0;
  int64_t f = 0;
  for (; f + 8 <= d; f += 8)
    for (int l = 0; l < 8; ++l) part[l] += double(row[f + l]) * double(row[f + l]);
  for (; f < d; ++f) rest += double(row[f]) * double(row[f]);
  for (int l = 0; l < 4; ++l) part[l] += part[l + 4];
  return ((part[0] + part[1]) + (part[2] + part[3])) + rest;
}

template <typename T>
struct Layout {
  Layout(const MmdInput<T>& in, int64_t item, int threads)
      : in(in),
        item(item),
        threads(threads),
        weighted_rows(in.x_weights || in.y_weights),
        width(tile_width(in.d, in.n + in.m, threads)),
        tiles(make_tiles(in.n, in.m, width)),
        padded(tiles.back().start + tiles.back().columns),
        features(in.d < kFeatureLanes ? in.d + 1 : round_up(in.d + 1, kTileAlign)),
        rows(padded * features),
        panels(padded * in.d),
        bias(padded),
        weight(padded),
        own_weighted(weighted_rows ? padded * features : 0),
        own_weighted_panels(weighted_rows ? padded * in.d : 0),
        weighted(weighted_rows ? own_weighted.data : rows.data),
        weighted_panels(weighted_rows ? own_weighted_panels.data : panels.data),
        cross(in.cross_scale * (in.cross ? double(in.cross[item]) : 1.0)),
        total(2 * in.d, 0.0) {
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
    shifted = largest * widest < 1.5;
    // |a|^2 + |b|^2 - 2ab loses what |a|^2 has over the distance, the more so the more features are
    // added up: not where the data is wide, nor where so few features cost no more as differences.
    const double loss = 2 + 0.5 * std::sqrt(double(std::min<int64_t>(in.d, kFeaturesAtOnce)));
    differences = largest * widest * loss > 48 || in.d <= 4;
    several = in.scales > 1 || in.kernel_weights[0] != 1.0;
    scale = std::sqrt(1 / (2 * kLn2 * h[0])) * (differences ? 1.0 : std::sqrt(2.0));
    finish();
  }

  const MmdInput<T>& in;
  int64_t item;
  int threads;
  bool weighted_rows;  // rows have weights of their own; else all rows of a sample weigh unit()
  int64_t width;       // columns of a tile, at most
  std::vector<Tile> tiles;
  int64_t padded;                        // rows of all tiles
  int64_t features;                      // length of a row of `rows`
  Buffer<T> rows, panels, bias, weight;  // as MmdVisit describes them; weights less unit()
  Buffer<T> own_weighted, own_weighted_panels;
  const T *weighted, *weighted_panels;  // the same as rows and panels without weights of their own
  std::vector<double> h;
  std::vector<T> ratio, value_weight, slope_weight;
  double cross, scale;  // z in the kernel is (z - centre) * scale
  bool shifted;
  bool differences, several;  // several: bandwidths, or one of weight other than 1
  double mass[2] = {0, 0};    // sum of a_j over x and over y
  std::vector<double> total;  // sum of a_j z_j over x [d] and over y [d]

  // What the weights of a sample's rows are to be multiplied by.
  double unit(bool of_y) const { return of_y ? -in.y_scale : in.x_scale; }

  // The weight a of row i of the stacked samples.
  double own_weight(int64_t i) const {
    const bool of_y = i >= in.n;
    const int64_t row = of_y ? i - in.n : i;
    const T* given = of_y ? in.y_weights : in.x_weights;
    return unit(of_y) * (given ? double(given[item * (of_y ? in.m : in.n) + row]) : 1.0);
  }

 private:
  // Calls body(tile, its index); on all threads where that is worth waking them.
  template <typename Body>
  void each_tile(const Body& body) const {
    parallel_parts(int(tiles.size()), padded * in.d > 1 << 16 ? threads : 1,
                   [&](int i) { body(tiles[i], i); });
  }

  // Reads the rows; returns the sums of every tile, [tiles, d].
  std::vector<double> read() {
    std::vector<double> sums(tiles.size() * in.d, 0.0);
    each_tile([&](const Tile& tile, int i) {
      double* sum = sums.data() + i * in.d;
      T* row = rows.data + tile.start * features;
      for (int64_t lane = 0; lane < tile.columns; ++lane, row += features) {
        if (lane < tile.rows)
          read_row(tile.of_y ? in.y : in.x, item, tile.row + lane, in.d, row);
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
    for (int64_t f = 0; f < in.d; ++f) middle[f] = T(sum[f] / double(in.n + in.m));
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
      const bool of_y = tiles[i].of_y;
      const double *sum = sums.data() + i * width, by = unit(of_y);
      for (int64_t f = 0; f < in.d; ++f) total[of_y * in.d + f] += by * sum[f];
      mass[of_y] += by * sum[in.d];
    }
  }

  // `sum` gets those of w z and of w, [d + 1].
  void finish(const Tile& tile, double* sum) {
    const int64_t d = in.d;
    const T* given = tile.of_y ? in.y_weights : in.x_weights;
    if (given) given += item * (tile.of_y ? in.m : in.n) + tile.row;
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
      if (!weighted_rows) continue;
      T* of_row = own_weighted.data + at * features;
      std::fill_n(of_row, features, T(0));
      for (int64_t f = 0; f < d; ++f) of_row[f] = own * row[f];
      of_row[d] = own;
    }
    transpose(rows.data, tile, panels.data);
    if (weighted_rows) transpose(own_weighted.data, tile, own_weighted_panels.data);
  }

  // A tile of row-major `from` as a panel: a line of cache at a time.
  void transpose(const T* from, const Tile& tile, T* to) const {
    for (int64_t lane = 0; lane < tile.columns; lane += kTileAlign) {
      const T* row = from + (tile.start + lane) * features;
      T* panel = to + tile.start * in.d + lane;
      for (int64_t f = 0; f < in.d; ++f, panel += tile.columns)
        for (int l = 0; l < kTileAlign; ++l) panel[l] = row[l * features + f];
    }
  }
};

}  // namespace cgm_fast
