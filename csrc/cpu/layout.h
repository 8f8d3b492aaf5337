// The data of one MMD² problem as the kernel reads it: centred, scaled, in tiles of rows.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <new>
#include <vector>

#include "cpu/mmd_kernel.h"
#include "cpu/samples.h"
#include "mmd.h"

namespace cgm_fast {

constexpr double kLn2 = 0.69314718055994530942;

inline int64_t round_up(int64_t value, int64_t unit) { return (value + unit - 1) / unit * unit; }

// Aligned, uninitialised storage.
template <typename U>
struct Buffer {
  explicit Buffer(int64_t size)
      : data(static_cast<U*>(
            std::aligned_alloc(64, round_up(std::max<int64_t>(size, 1) * sizeof(U), 64)))) {
    if (!data) throw std::bad_alloc();
  }
  ~Buffer() { std::free(data); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  U* data;
};

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

// Wide tiles amortise what a visit costs; narrow ones leave fewer pairs on the diagonal, which
// are visited twice, and keep a panel of many features in the second-level cache.
inline int64_t tile_width(int64_t rows, int64_t d) {
  const int64_t by_rows = rows <= 1024 ? 64 : rows <= 4096 ? 128 : 256;
  const int64_t by_features = round_up(std::max<int64_t>(1, 49152 / d), kTileAlign);
  return std::max<int64_t>(64, std::min(by_rows, by_features));
}

template <typename T>
struct Layout {
  Layout(const MmdInput<T>& in, int64_t item)
      : in(in),
        item(item),
        tiles(make_tiles(in.n, in.m, tile_width(in.n + in.m, in.d))),
        padded(tiles.back().start + tiles.back().columns),
        features(in.d < kFeatureLanes ? in.d : round_up(in.d, kTileAlign)),
        rows(padded * features),
        weighted(padded * (in.d + 1)),
        panels(padded * in.d),
        bias(padded),
        weight(padded),
        cross_weight(padded),
        cross(in.cross_scale * (in.cross ? double(in.cross[item]) : 1.0)),
        total(2 * in.d, 0.0) {
    for (int64_t s = 0; s < in.scales; ++s) {
      h.push_back(in.variance ? double(in.variance[item * in.scales + s]) : in.variances[s]);
      ratio.push_back(T(h[0] / h[s]));
      value_weight.push_back(T(in.kernel_weights[s]));
      slope_weight.push_back(T(in.kernel_weights[s] * h[0] / h[s]));
    }
    const std::vector<T> centre = find_centre();
    double mean, largest;
    squares(centre, mean, largest);
    const double widest = *std::max_element(ratio.begin(), ratio.end());
    // Which constant to take from k before summing, so that least is left to cancel: 1 where most
    // pairs are within a bandwidth or so (their mean |z_i - z_j|^2 is twice the mean square).
    shift = T(2 * kLn2 * mean * widest < 1 ? 1 : 0);
    // |a|^2 + |b|^2 - 2ab loses what |a|^2 has over the distance: not where the data is wide.
    differences = largest * widest > 24;
    several = in.scales > 1 || in.kernel_weights[0] != 1.0;
    scale = std::sqrt(1 / (2 * kLn2 * h[0])) * (differences ? 1.0 : std::sqrt(2.0));
    fill(centre);
  }

  const MmdInput<T>& in;
  int64_t item;
  std::vector<Tile> tiles;
  int64_t padded;                                                // rows of all tiles
  int64_t features;                                              // length of a row of `rows`
  Buffer<T> rows, weighted, panels, bias, weight, cross_weight;  // as MmdVisit describes them
  std::vector<double> h;
  std::vector<T> ratio, value_weight, slope_weight;
  double cross, scale;  // z in the kernel is (z - centre) * scale
  T shift;
  bool differences, several;  // several: bandwidths, or one of weight other than 1
  double mass[2] = {0, 0};    // sum of a_j over x and over y
  double own_mass = 0;        // sum of a_j^2
  std::vector<double> total;  // sum of a_j z_j over x [d] and over y [d]

  // The weight a of row i of the stacked samples.
  double own_weight(int64_t i) const {
    const bool of_y = i >= in.n;
    const int64_t row = of_y ? i - in.n : i;
    const T* given = of_y ? in.y_weights : in.x_weights;
    const double unit = of_y ? -in.y_scale : in.x_scale;
    return given ? unit * double(given[item * (of_y ? in.m : in.n) + row]) : unit;
  }

 private:
  // Calls visit(row [d]) for every row of both samples.
  template <typename Visit>
  void each_row(const Visit& visit) const {
    std::vector<T> row(in.d);
    for (int64_t i = 0; i < in.n + in.m; ++i) {
      const bool of_y = i >= in.n;
      read_row(of_y ? in.y : in.x, item, of_y ? i - in.n : i, in.d, row.data());
      visit(row.data());
    }
  }

  // Rounded to T: then z - centre is exact wherever the data is far from the origin.
  std::vector<T> find_centre() const {
    std::vector<double> sum(in.d, 0.0);
    each_row([&](const T* row) {
      for (int64_t f = 0; f < in.d; ++f) sum[f] += double(row[f]);
    });
    std::vector<T> centre(in.d);
    for (int64_t f = 0; f < in.d; ++f) centre[f] = T(sum[f] / double(in.n + in.m));
    return centre;
  }

  // Mean and largest |z|^2 in units where the first bandwidth's kernel is 2^-|z_i - z_j|^2.
  void squares(const std::vector<T>& centre, double& mean, double& largest) const {
    double sum = 0;
    largest = 0;
    each_row([&](const T* row) {
      double square = 0;
      for (int64_t f = 0; f < in.d; ++f) {
        const double value = double(row[f] - centre[f]);
        square += value * value;
      }
      sum += square;
      largest = std::max(largest, square);
    });
    const double unit = 1 / (2 * kLn2 * h[0]);
    mean = unit * sum / double(in.n + in.m);
    largest *= unit;
  }

  void fill(const std::vector<T>& centre) {
    const int64_t d = in.d;
    std::vector<T> row(d);
    for (const Tile& tile : tiles) {
      double* sum = total.data() + tile.of_y * d;
      for (int64_t lane = 0; lane < tile.columns; ++lane) {
        const int64_t at = tile.start + lane;
        double a = 0, square = 0;
        std::fill(row.begin(), row.end(), T(0));
        if (lane < tile.rows) {
          read_row(tile.of_y ? in.y : in.x, item, tile.row + lane, d, row.data());
          for (int64_t f = 0; f < d; ++f) row[f] = T(double(row[f] - centre[f]) * scale);
          a = own_weight((tile.of_y ? in.n : 0) + tile.row + lane);
        }
        std::copy(row.begin(), row.end(), rows.data + at * features);
        std::fill_n(rows.data + at * features + d, features - d, T(0));
        T* panel = panels.data + tile.start * d + lane;
        T* with_weight = weighted.data + at * (d + 1);
        for (int64_t f = 0; f < d; ++f) {
          panel[f * tile.columns] = row[f];
          with_weight[f] = T(a) * row[f];
          square += double(row[f]) * double(row[f]);
          sum[f] += a * double(row[f]);
        }
        with_weight[d] = T(a);
        bias.data[at] = T(-0.5 * square);
        weight.data[at] = T(a);
        cross_weight.data[at] = T(a * cross);
        mass[tile.of_y] += a;
        own_mass += a * a;
      }
    }
  }
};

}  // namespace cgm_fast
