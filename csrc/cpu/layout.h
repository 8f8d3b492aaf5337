// The data of one MMD² problem as the kernel reads it: centred, scaled, in tiles of rows.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "cpu/buffer.h"
#include "cpu/mmd_kernel.h"
#include "cpu/parallel.h"
#include "cpu/scaling.h"
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
struct Layout : Scaling<T> {
  using Scaling<T>::in;
  using Scaling<T>::item;
  using Scaling<T>::scale;

  Layout(const MmdProblem<T>& in, int64_t item, int threads)
      : Scaling<T>(in, item),
        threads(threads),
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
        weighted_panels(in.weights ? own_weighted_panels.data : panels.data) {
    this->decide(centre());
    finish();
  }

  int threads;
  int64_t width;  // columns of a tile, at most
  std::vector<Tile> tiles;
  int64_t padded;                        // rows of all tiles
  int64_t features;                      // length of a row of `rows`
  Buffer<T> rows, panels, bias, weight;  // as MmdVisit describes them; padding weighs 0
  Buffer<T> own_weighted, own_weighted_panels;
  const T *weighted, *weighted_panels;  // the same as rows and panels where all rows weigh 1

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
          this->read_row_of_z(tile.row + lane, row);
        else
          std::fill_n(row, in.d, T(0));
        std::fill(row + in.d, row + features, T(0));
        for (int64_t f = 0; f < in.d; ++f) sum[f] += double(row[f]);
      }
    });
    return sums;
  }

  // Takes the mean row from every row; then the largest |z|^2.
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
    return *std::max_element(largest.begin(), largest.end());
  }

  // Scales the rows; transposes them, weighs them, and adds up masses and totals.
  void finish() {
    const int64_t width = in.d + 1;
    std::vector<double> sums(tiles.size() * width, 0.0);
    each_tile([&](const Tile& tile, int i) { finish(tile, sums.data() + i * width); });
    for (size_t i = 0; i < tiles.size(); ++i) {
      const int64_t group = tiles[i].group;
      const double* sum = sums.data() + i * width;
      for (int64_t f = 0; f < in.d; ++f) this->total[group * in.d + f] += sum[f];
      this->mass[group] += sum[in.d];
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
