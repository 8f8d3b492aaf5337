// Rows in tiles, as kernels read them: row by row, and transposed in panels.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "cpu/block.h"
#include "cpu/buffer.h"

namespace cgm_fast {

constexpr double kLn2 = 0.69314718055994530942;

// A block's weights, a tile's panel and its sums stay in the first two levels of cache, and every
// thread gets a few tiles.
inline int64_t tile_width(int64_t d, int64_t rows, int threads) {
  const int64_t by_cache = 49152 / d, by_thread = threads > 1 ? rows / (2 * threads) : rows;
  return std::clamp<int64_t>(std::min(by_cache, by_thread) / 64 * 64, 64, 256);
}

// Whether products of features [d] cost too much of a distance: |a|^2 + |b|^2 - 2ab loses what
// |a|^2 has over it, the more so the more features are added up. `largest` is the largest |z|^2 in
// exponents of two. Few features cost no more as differences.
inline bool by_differences(double largest, int64_t d) {
  const double loss = 2 + 0.5 * std::sqrt(double(std::min<int64_t>(d, kFeaturesAtOnce)));
  return largest * loss > 16 || d <= 4;
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

// A tile of row-major `rows` [columns, features] as a panel [d, columns]: a line of cache at a
// time.
template <typename T>
void transpose(const T* rows, int64_t columns, int64_t features, int64_t d, T* panel) {
  for (int64_t lane = 0; lane < columns; lane += kTileAlign) {
    const T* row = rows + lane * features;
    T* to = panel + lane;
    for (int64_t f = 0; f < d; ++f, to += columns)
      for (int l = 0; l < kTileAlign; ++l) to[l] = row[l * features + f];
  }
}

}  // namespace cgm_fast
