// The data of one kernel product as the kernel reads it: centred, scaled, columns in tiles.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "cpu/kernel_product_kernel.h"
#include "cpu/parallel.h"
#include "cpu/read.h"
#include "cpu/tiles.h"
#include "kernel_product.h"

namespace cgm_fast {

// Columns [row, row + columns), of which those beyond the last only pad.
struct ColumnTile {
  int64_t start, columns;
};

template <typename T>
struct KernelProductLayout {
  // `slopes`: whether derivatives are wanted besides the product.
  KernelProductLayout(const KernelProductProblem<T>& in, int64_t item, bool slopes, int threads)
      : in(in),
        item(item),
        threads(threads),
        width(tile_width(std::max(in.d, in.values), in.columns, 1)),
        features(row_length(in.d)),
        value_features(row_length(in.values)),
        x(round_up(in.rows, kBlockRows) * features),
        x_bias(round_up(in.rows, kBlockRows)),
        u(slopes ? round_up(in.rows, kBlockRows) * value_features : 0),
        y(round_up(in.columns, kTileAlign) * features),
        y_bias(round_up(in.columns, kTileAlign)),
        y_panels(round_up(in.columns, kTileAlign) * in.d),
        v(round_up(in.columns, kTileAlign) * value_features),
        v_panels(slopes || in.values < kFeatureLanes ? round_up(in.columns, kTileAlign) * in.values
                                                     : 0) {
    double widest = 1;
    for (int64_t s = 0; s < in.scales; ++s) {
      h.push_back(in.variance ? double(in.variance[item * in.scales + s]) : in.variances[s]);
      value_weight.push_back(T(in.kernel_weights[s]));
      slope_weight.push_back(T(in.kernel_weights[s] * h[0] / h[s]));
      widest = std::max(widest, h[0] / h[s]);
    }
    for (int64_t start = 0; start < in.columns; start += width)
      tiles.push_back({start, round_up(std::min(width, in.columns - start), kTileAlign)});
    read(in.x, in.rows, x);
    const std::vector<T> middle = mean(read(in.y, in.columns, y));
    const double largest =
        std::max(largest_square(x, in.rows, middle), largest_square(y, in.columns, middle));
    differences = has_kink(in.kernel) || by_differences(largest * widest / (2 * kLn2 * h[0]), in.d);
    scale = std::sqrt(1 / h[0]);
    if (differences) scale = std::exp2(std::round(std::log2(scale)));
    for (int64_t s = 0; s < in.scales; ++s)
      ratio.push_back(T(differences ? 0.5 / (h[s] * scale * scale) : h[0] / h[s]));
    finish(differences ? std::vector<T>(in.d, T(0)) : middle);
  }

  const KernelProductProblem<T>& in;
  int64_t item;
  int threads;
  int64_t width;                     // columns of a tile, at most
  int64_t features, value_features;  // length of a row of coordinates, of values
  Buffer<T> x, x_bias, u;            // [rows, features], [rows], [rows, value_features]
  Buffer<T> y, y_bias, y_panels;     // [columns, features], [columns]; of each tile [d, columns]
  Buffer<T> v, v_panels;             // [columns, value_features]; of each tile [values, columns]
  std::vector<ColumnTile> tiles;
  std::vector<double> h;
  std::vector<T> ratio, value_weight, slope_weight;
  bool differences;
  double scale;  // a coordinate in the kernel is z * scale, or (z - centre) * scale

 private:
  static constexpr int64_t kPart = 256;  // rows that a thread takes at once

  static int64_t row_length(int64_t d) { return d < kFeatureLanes ? d : round_up(d, kTileAlign); }

  // Calls body(begin, end, part) for parts of the rows; on all threads where it is worth it.
  template <typename Body>
  void each_part(int64_t rows, const Body& body) const {
    const int parts = static_cast<int>((rows + kPart - 1) / kPart);
    parallel_parts(parts, rows * (in.d + in.values) > 1 << 16 ? threads : 1,
                   [&](int part) { body(part * kPart, std::min(rows, (part + 1) * kPart), part); });
  }

  // Reads rows; returns sums of them, [parts, d].
  std::vector<double> read(const Samples& from, int64_t count, const Buffer<T>& rows) {
    std::vector<double> sums((count + kPart - 1) / kPart * in.d, 0.0);
    each_part(count, [&](int64_t begin, int64_t end, int part) {
      double* sum = sums.data() + part * in.d;
      for (int64_t i = begin; i < end; ++i) {
        T* row = rows.data + i * features;
        read_row(from, item, i, in.d, row);
        for (int64_t f = 0; f < in.d; ++f) sum[f] += double(row[f]);
      }
    });
    return sums;
  }

  // Of the columns, rounded to T: then a difference from it is exact wherever the data is far from
  // the origin.
  std::vector<T> mean(const std::vector<double>& sums) const {
    std::vector<double> total(in.d, 0.0);
    for (size_t at = 0; at < sums.size();)
      for (int64_t f = 0; f < in.d; ++f) total[f] += sums[at++];
    std::vector<T> middle(in.d);
    for (int64_t f = 0; f < in.d; ++f) middle[f] = T(total[f] / double(in.columns));
    return middle;
  }

  // The largest |z|^2 about the middle; infinite where one is not finite.
  double largest_square(const Buffer<T>& rows, int64_t count, const std::vector<T>& middle) const {
    std::vector<double> largest((count + kPart - 1) / kPart, 0.0);
    each_part(count, [&](int64_t begin, int64_t end, int part) {
      std::vector<T> z(in.d);
      for (int64_t i = begin; i < end; ++i) {
        const T* row = rows.data + i * features;
        for (int64_t f = 0; f < in.d; ++f) z[f] = row[f] - middle[f];
        const double square = sum_of_squares(z.data(), in.d);
        largest[part] = std::max(largest[part], std::isfinite(square) ? square : INFINITY);
      }
    });
    return *std::max_element(largest.begin(), largest.end());
  }

  // Takes the middle from coordinates and scales them, copies values, pads both with zeros and
  // transposes tiles of columns.
  void finish(const std::vector<T>& middle) {
    const T* of_u = u.empty() ? nullptr : in.u + item * in.rows * in.values;
    each_part(in.rows, [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; ++i) {
        finish_row(i, middle, x, x_bias);
        if (of_u) copy_values(of_u + i * in.values, u.data + i * value_features);
      }
    });
    const int64_t padded = round_up(in.rows, kBlockRows);
    std::fill(x.data + in.rows * features, x.data + padded * features, T(0));
    std::fill(x_bias.data + in.rows, x_bias.data + padded, T(0));
    if (of_u) std::fill(u.data + in.rows * value_features, u.data + padded * value_features, T(0));
    const T* of_v = in.v + item * in.columns * in.values;
    parallel_parts(static_cast<int>(tiles.size()),
                   in.columns * (in.d + in.values) > 1 << 16 ? threads : 1,
                   [&](int tile) { finish_tile(tiles[tile], middle, of_v); });
  }

  void finish_tile(const ColumnTile& tile, const std::vector<T>& middle, const T* of_v) {
    for (int64_t j = tile.start; j < tile.start + tile.columns; ++j) {
      if (j < in.columns) {
        finish_row(j, middle, y, y_bias);
        copy_values(of_v + j * in.values, v.data + j * value_features);
      } else {
        std::fill_n(y.data + j * features, features, T(0));
        std::fill_n(v.data + j * value_features, value_features, T(0));
        y_bias[j] = 0;
      }
    }
    transpose(y.data + tile.start * features, tile.columns, features, in.d,
              y_panels.data + tile.start * in.d);
    if (!v_panels.empty())
      transpose(v.data + tile.start * value_features, tile.columns, value_features, in.values,
                v_panels.data + tile.start * in.values);
  }

  void finish_row(int64_t i, const std::vector<T>& middle, const Buffer<T>& rows,
                  const Buffer<T>& bias) {
    T* row = rows.data + i * features;
    for (int64_t f = 0; f < in.d; ++f) row[f] = T(double(row[f] - middle[f]) * scale);
    std::fill(row + in.d, row + features, T(0));
    bias[i] = T(-0.5 * sum_of_squares(row, in.d));
  }

  void copy_values(const T* from, T* to) const {
    std::copy_n(from, in.values, to);
    std::fill(to + in.values, to + value_features, T(0));
  }
};

}  // namespace cgm_fast
