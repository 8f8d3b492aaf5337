// Tiles of rows with many features, as the kernels see them.
//
// Features come in panels of so many bytes that they fill a line or two of the cache: z [panels,
// rows, kPanel]. A panel of a tile is one piece of memory, so that a product reads what it needs
// from a few pages, and a panel is a matrix's rows and, read with other steps, another's columns.
#pragma once

#include <stdint.h>

namespace cgm_fast {

template <typename T>
constexpr int kPanel = 128 / int(sizeof(T));

constexpr int kWideTile = 192;               // rows of a tile, at most
constexpr int kWideStride = kWideTile + 16;  // of a tile of weights: no power of two
constexpr int kWideSlack = 16;               // rows that kernels may read and write beyond a tile
constexpr int64_t kPanelsAtOnce = 4;         // whose products are added up in one sum

// A tile of rows, of which only padding is beyond the last.
template <typename T>
struct WideTile {
  const T* z;    // [panels, kPanel] of row 0; a row further is kPanel on
  int64_t rows;  // a multiple of 16
  int64_t step;  // from a panel of a row to its next
};

// One row.
template <typename T>
struct WideRow {
  T* data;       // [panels, kPanel]
  int64_t step;  // from a panel to the next
};

// Passes over single rows (wide_rows.h).
template <typename T>
struct WideRowKernels {
  void (*add)(const T* row, int64_t d, double* sum);
  double (*centre)(const T* row, const T* middle, int64_t d, const WideRow<T>& z);
  double (*scale)(const WideRow<T>& z, int64_t d, double scale, double weight, double* sum);
  void (*finish)(const WideRow<T>& z, int64_t d, double factor, double s, double weight,
                 const double* of_all, T* out);
};

template <typename T>
const WideRowKernels<T>& wide_row_kernels();

// Scratch of a thread.
template <typename T>
struct WideScratch {
  T* w;       // [kWideTile + kWideSlack, kWideStride]: products, then what pairs weigh
  T* packed;  // [2 vectors of columns, kPanelsAtOnce kPanel]: their features, transposed
};

}  // namespace cgm_fast
