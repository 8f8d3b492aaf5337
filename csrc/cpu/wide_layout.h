// The data of one MMD² problem with many features: centred and scaled, in tiles of rows and panels
// of features (wide.h).
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "cpu/buffer.h"
#include "cpu/parallel.h"
#include "cpu/scaling.h"
#include "cpu/wide.h"

namespace cgm_fast {

// Rows of one group.
struct TileOfRows {
  int64_t group;
  int64_t row, rows;      // of z
  int64_t start, padded;  // among the padded rows of all tiles
};

// Equal shares of every group.
template <typename T>
std::vector<TileOfRows> make_wide_tiles(const MmdProblem<T>& in, int threads) {
  // With several threads a few tasks for each in a round.
  const int64_t target = threads > 1 ? in.rows / (4 * threads) : in.rows;
  const int64_t most = std::clamp<int64_t>(target / 16 * 16, 32, kWideTile);
  std::vector<TileOfRows> tiles;
  int64_t start = 0;
  for (int64_t group = 0; group < in.groups; ++group) {
    const int64_t begin = in.begins[group], rows = in.begins[group + 1] - begin;
    const int64_t parts = (rows + most - 1) / most;
    for (int64_t part = 0; part < parts; ++part) {
      const int64_t row = rows * part / parts, end = rows * (part + 1) / parts;
      const int64_t padded = round_up(end - row, 16);
      tiles.push_back({group, begin + row, end - row, start, padded});
      start += padded;
    }
  }
  return tiles;
}

template <typename T>
struct WideLayout : Scaling<T> {
  using Scaling<T>::in;
  using Scaling<T>::item;
  using Scaling<T>::scale;

  WideLayout(const MmdProblem<T>& in, int64_t item, int threads)
      : Scaling<T>(in, item),
        threads(threads),
        tiles(make_wide_tiles(in, threads)),
        padded(tiles.back().start + tiles.back().padded),
        panels((in.d + kPanel<T> - 1) / kPanel<T>),
        step(padded * kPanel<T>),
        z(panels * step + kWideSlack * kPanel<T>),
        bias(padded, T(0)),
        weight(padded, T(0)) {
    std::fill_n(z.data + panels * step, kWideSlack * kPanel<T>, T(0));
    this->decide(centre());
    finish();
  }

  int threads;
  std::vector<TileOfRows> tiles;
  int64_t padded;  // rows of all tiles
  int64_t panels, step;
  Buffer<T> z;             // [panels, padded, kPanel], and rows that only are read
  Buffer<T> bias, weight;  // [padded]

  WideRow<T> row(int64_t padded_row) const { return {z.data + padded_row * kPanel<T>, step}; }

 private:
  template <typename Body>
  void each_tile(const Body& body) const {
    parallel_parts(int(tiles.size()), threads, [&](int i) { body(tiles[i], i); });
  }

  const T* read(int64_t i, std::vector<T>& copy) const {
    const bool of_y = i >= in.x_rows;
    return row_or_copy(of_y ? in.y : in.x, item, of_y ? i - in.x_rows : i, in.d, copy);
  }

  std::vector<T> mean() const {
    std::vector<double> sums(tiles.size() * in.d, 0.0);
    each_tile([&](const TileOfRows& tile, int i) {
      double* sum = sums.data() + i * in.d;
      std::vector<T> copy;
      for (int64_t r = 0; r < tile.rows; ++r) rows_.add(read(tile.row + r, copy), in.d, sum);
    });
    std::vector<T> middle(in.d);  // rounded to T, so that z - centre is exact far from the origin
    for (int64_t f = 0; f < in.d; ++f) {
      double sum = 0;
      for (size_t i = 0; i < tiles.size(); ++i) sum += sums[i * in.d + f];
      middle[f] = T(sum / double(in.rows));
    }
    return middle;
  }

  // Takes the mean row from every row; then the largest |z|^2.
  double centre() {
    const std::vector<T> middle = mean();
    std::vector<double> largest(tiles.size(), 0.0);
    each_tile([&](const TileOfRows& tile, int i) {
      std::vector<T> copy;
      T* panel = z.data + tile.start * kPanel<T>;
      for (int64_t p = 0; p < panels; ++p, panel += step) {
        // What a kernel reads beyond rows and features.
        std::fill_n(panel + tile.rows * kPanel<T>, (tile.padded - tile.rows) * kPanel<T>, T(0));
        for (int64_t r = 0; p == panels - 1 && r < tile.rows; ++r)
          std::fill_n(panel + r * kPanel<T>, kPanel<T>, T(0));
      }
      for (int64_t r = 0; r < tile.rows; ++r)
        largest[i] = std::max(largest[i], rows_.centre(read(tile.row + r, copy), middle.data(),
                                                       in.d, row(tile.start + r)));
    });
    return *std::max_element(largest.begin(), largest.end());
  }

  // Scales and weighs the rows; adds up masses and totals.
  void finish() {
    const int64_t width = in.d + 1;
    std::vector<double> sums(tiles.size() * width, 0.0);
    each_tile([&](const TileOfRows& tile, int i) { finish(tile, sums.data() + i * width); });
    for (size_t i = 0; i < tiles.size(); ++i) {
      const int64_t group = tiles[i].group;
      const double* sum = sums.data() + i * width;
      for (int64_t f = 0; f < in.d; ++f) this->total[group * in.d + f] += sum[f];
      this->mass[group] += sum[in.d];
    }
  }

  // `sum` gets those of w z and of w, [d + 1].
  void finish(const TileOfRows& tile, double* sum) {
    for (int64_t r = 0; r < tile.rows; ++r) {
      const int64_t at = tile.start + r;
      const T own = in.weights ? in.weights[item * in.rows + tile.row + r] : T(1);
      const double squares = rows_.scale(row(at), in.d, scale, double(own), sum);
      sum[in.d] += double(own);
      bias[at] = T(-0.5 * squares);
      weight[at] = own;
    }
  }

  const WideRowKernels<T>& rows_ = wide_row_kernels<T>();
};

// The rows of a tile whose derivatives are wanted, [begin, end), and where these go.
template <typename T>
struct WantedRows {
  int64_t begin = 0, end = 0;
  T* at = nullptr;

  // `out` has rows [begin, end) of z of every item; a result of the pass, MmdValue or MmdProduct.
  template <typename Out>
  WantedRows(const WideLayout<T>& layout, const TileOfRows& tile, const Out& out) {
    const int64_t first = std::max(tile.row, out.row_begin);
    const int64_t last = std::min(tile.row + tile.rows, out.row_end);
    if (first >= last) return;
    begin = first - tile.row;
    end = last - tile.row;
    const int64_t row = layout.item * (out.row_end - out.row_begin) + first - out.row_begin;
    at = out.z + row * layout.in.d;
  }

  void zero(int64_t d) const { std::fill_n(at, (end - begin) * d, T(0)); }
};

}  // namespace cgm_fast
