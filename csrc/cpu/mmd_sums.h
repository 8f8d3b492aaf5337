// What the visits of one MMD² pass add up: by macro-tile, consecutive tiles of one group of rows.
#pragma once

#include <algorithm>
#include <vector>

#include "cpu/buffer.h"
#include "cpu/layout.h"
#include "mmd.h"

namespace cgm_fast {

constexpr int64_t kMacroRows = 512;  // at most, over which sums stay in T

struct MacroTile {
  size_t begin, end;       // tiles
  int64_t start, columns;  // padded rows
  int64_t group;
};

template <typename T>
std::vector<MacroTile> make_macro_tiles(const Layout<T>& layout, int threads) {
  const std::vector<Tile>& tiles = layout.tiles;
  // Enough of them for every thread to have a few tasks in a round.
  const int64_t target =
      threads > 1 ? std::min(kMacroRows, layout.padded / (2 * threads)) : kMacroRows;
  const size_t width = std::max<int64_t>(1, target / layout.width);
  std::vector<MacroTile> out;
  for (size_t i = 0; i < tiles.size(); ++i) {
    if (out.empty() || out.back().group != tiles[i].group || i - out.back().begin == width)
      out.push_back({i, i, tiles[i].start, 0, tiles[i].group});
    out.back().end = i + 1;
    out.back().columns += tiles[i].columns;
  }
  return out;
}

// What the loss and the derivatives in bandwidths are made of. Of each macro-tile of rows, by group
// of the columns: nobody else adds there.
struct LossSums {
  template <typename T>
  LossSums(const Scaling<T>& of, size_t macro_tiles)
      : small(macro_tiles * of.in.groups, 0.0),
        near(of.shifted ? 0 : small.size() * of.in.scales, 0.0),
        far(of.in.weights ? near.size() : 0, 0.0),
        variance(macro_tiles * of.in.scales, 0.0) {}

  // Sums of w_i w_j times k_ij - 1, or where the problem is not `shifted` times k_ij for far pairs;
  // and then per bandwidth, sums of w_i w_j over near pairs, and where rows have weights far ones.
  std::vector<double> small, near, far;
  std::vector<double> variance;  // per macro-tile of rows and bandwidth, sums of c_ij t k_s
};

// In the kernel's coordinates.
template <typename T>
struct Sums : LossSums {
  Sums(const Layout<T>& layout, size_t macro_tiles, bool with_gradient, bool with_columns,
       bool with_values)
      : LossSums(layout, macro_tiles),
        rows(with_gradient ? layout.padded * (layout.in.d + 1) : 0),
        columns(with_columns ? layout.padded * (layout.in.d + 1) : 0),
        values(with_values ? layout.padded : 0, 0.0) {}

  // Zeroes those of a macro-tile's rows, by the thread that is about to add to them.
  void start(const MacroTile& of, int64_t width) {
    for (const Buffer<double>* sums : {&rows, &columns})
      if (!sums->empty()) std::fill_n(sums->data + of.start * width, of.columns * width, 0.0);
  }

  // sum_j relation_ij w_j slope_ij (z_j, 1) over the pairs in which i was the row, [padded, d + 1],
  // and over those in which it was the column, tile by tile [d + 1, columns]
  Buffer<double> rows, columns;
  // sum_j relation_ij w_j (k_ij - 1); empty where the last of rows serves, k_ij if not `shifted`
  Buffer<double> values;
};

// One problem: its data, what is wanted of it and what has been added up.
template <typename T>
struct Pass {
  const Layout<T>& layout;
  const MmdValue<T>& out;
  const std::vector<MacroTile>& macro_tiles;
  Sums<T>& sums;
  bool symmetric, scaled;
  bool slopes_apart;  // sums of slopes are not those of values

  // Whether the derivatives of some row of a tile are asked for.
  bool wanted(const Tile& tile) const {
    return out.weights ||
           std::max(tile.row, out.row_begin) < std::min(tile.row + tile.rows, out.row_end);
  }
};

// Turns the sums into loss and derivatives.
template <typename T>
void finish(const Pass<T>& pass, int threads);

// The first of that, L, block sums and the derivatives in bandwidths, where `group_of` macro-tiles
// stand in sums.
template <typename T>
void finish_values(const Scaling<T>& of, const std::vector<int64_t>& group_of, const LossSums& sums,
                   const MmdValue<T>& out);

}  // namespace cgm_fast
