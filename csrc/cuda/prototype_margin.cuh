// Nearest prototype and margin loss: a block of samples against all prototypes, a tile at a time.
//
// Distances are plain differences: equal prototypes are equally far to the bit, so that ties go to
// the lowest index. Nothing of B x K is kept; where prototypes fill more than a tile, distances are
// taken twice, once to assign and once to weigh, the second time only if some margin is touched.
#pragma once

#include "cuda/nearest.cuh"
#include "cuda/read.cuh"
#include "cuda/tiles.cuh"
#include "prototype_margin.h"

namespace cgm_fast::cuda {

template <typename T>
constexpr int kTileColumns = sizeof(T) == 4 ? 128 : 64;

template <typename T>
struct PrototypeMemory {
  Chunk<T, kRows> rows;
  Chunk<T, kTileColumns<T>> columns;
  T weights[kRows][kTileColumns<T> + 1];
  double scratch[kScratch];
};

// A block of samples with all prototypes.
template <typename T>
struct PrototypeRows {
  static constexpr int kColumns = kTileColumns<T>;
  using Memory = PrototypeMemory<T>;
  const PrototypeMarginInput<T>& in;
  const PrototypeMarginGradient<T>& out;
  const PrototypeMarginDevice<T>& device;
  Memory& memory;
  int64_t first_row;
  int here;      // rows that there are
  T* partial_g;  // [k, d], the block of threads' own, or null
  Pairs<T, kColumns> u = {};
  Nearest<T> nearest[kRowsOfWarp];
  bool inside;  // whether some prototype may be inside a row's margin
  bool touched[kRowsOfWarp] = {};

  __device__ PrototypeRows(const PrototypeMarginInput<T>& in, const PrototypeMarginGradient<T>& out,
                           const PrototypeMarginDevice<T>& device, Memory& memory,
                           int64_t first_row, T* partial_g)
      : in(in),
        out(out),
        device(device),
        memory(memory),
        first_row(first_row),
        here(static_cast<int>(in.rows - first_row < kRows ? in.rows - first_row : kRows)),
        partial_g(partial_g) {}

  __device__ static int lane() { return static_cast<int>(threadIdx.x) % kWarp; }
  __device__ static int first_of_warp() {
    return static_cast<int>(threadIdx.x) / kWarp * kRowsOfWarp;
  }
  __device__ auto at_row() const {
    return [this](int row, int f) { return load<T>(in.r, 0, first_row + row, f); };
  }
  __device__ auto at_column(int first) const {
    return [this, first](int j, int f) { return load<T>(in.g, 0, first + j, f); };
  }
  __device__ int columns_from(int first) const {
    const int left = static_cast<int>(in.k) - first;
    return left < kColumns ? left : kColumns;
  }
  __device__ void distances(int first, int columns) {
    squared_distances<T, kColumns>(u, memory.rows, memory.columns, here, columns,
                                   static_cast<int>(in.d), at_row(), at_column(first));
  }

  // Those that are given; adds to the loss what is no label.
  __device__ void take_labels(double& loss) {
    const int k = static_cast<int>(in.k);
    inside = true;
#pragma unroll
    for (int q = 0; q < kRowsOfWarp; ++q) {
      const int row = first_of_warp() + q;
      const int64_t label = row < here ? in.labels[first_row + row] : 0;
      nearest[q] = {T(0), static_cast<int>(label < 0 ? 0 : label < k ? label : k - 1)};
      // Checked before, on the CPU.
      if (label != nearest[q].index && lane() == 0) loss += from_bits(0x7fc00000);
    }
  }

  __device__ void find_nearest() {
    const T margin = static_cast<T>(in.margin);
    int counts[kRowsOfWarp] = {};
#pragma unroll
    for (int q = 0; q < kRowsOfWarp; ++q) nearest[q] = {static_cast<T>(INFINITY), 0};
    for (int first = 0; first < in.k; first += kColumns) {
      const int columns = columns_from(first);
      distances(first, columns);
      each_pair<kColumns>([&](int q, int c, int row, int column) {
        if (row >= here || column >= columns) return;
        nearest[q].meet(u[q][c], first + column);
        // "Not beyond" is not "inside": a NaN is neither, and has to reach the loss.
        counts[q] += !(u[q][c] >= margin);
      });
    }
    inside = false;
#pragma unroll
    for (int q = 0; q < kRowsOfWarp; ++q) {
      nearest[q].share();
      inside = inside || sum_of_warp(counts[q]) > (nearest[q].distance < margin);
    }
    inside = any_in_block(inside);
  }

  // Whether some row's own prototype is among these.
  __device__ bool has_own(int first, int columns) const {
    bool own = false;
#pragma unroll
    for (int q = 0; q < kRowsOfWarp; ++q) {
      own = own || (nearest[q].index >= first && nearest[q].index < first + columns);
    }
    return any_in_block(own);
  }

  // A tile's pairs: adds to the loss, and says what differences are weighed with. The weights
  // before have been read: after them came the barriers of has_own or distances.
  __device__ void weigh(int first, int columns, double& loss) {
    const T margin = static_cast<T>(in.margin), negative = static_cast<T>(-in.negative_scale);
    if (inside && (in.labels || in.k > kColumns)) distances(first, columns);
    each_pair<kColumns>([&](int q, int c, int row, int column) {
      T w = 0;
      if (row < here && column < columns) {
        if (first + column == nearest[q].index) {
          w = 1;
          loss += inside ? u[q][c] : nearest[q].distance;
        } else if (inside && !(u[q][c] >= margin)) {
          w = u[q][c] < margin ? negative : T(0);
          loss += in.negative_scale * (margin - u[q][c]);
          touched[q] = true;
        }
      }
      memory.weights[row][column] = w;
    });
  }

  // A tile's share of the gradients; `begun`: not the first.
  __device__ void add_gradients(int first, int columns, bool begun) {
    const int d = static_cast<int>(in.d);
    const T factor = static_cast<T>(2 * in.scale);
    const auto add_row = [&](int row, int f, T sum) {
      if (!out.grad_r) return;
      T& to = out.grad_r[(first_row + row) * d + f];
      to = begun ? to + factor * sum : factor * sum;
    };
    if (partial_g) {
      weighted_differences<T, kColumns>(
          memory.weights, memory.rows, memory.columns, here, columns, d, at_row(), at_column(first),
          add_row, [&](int j, int f, T sum) { partial_g[int64_t{first + j} * d + f] += sum; });
    } else {
      weighted_differences<T, kColumns>(memory.weights, memory.rows, memory.columns, here, columns,
                                        d, at_row(), at_column(first), add_row);
    }
  }

  __device__ void write_assignment() const {
#pragma unroll
    for (int q = 0; q < kRowsOfWarp; ++q) {
      const int row = first_of_warp() + q;
      const bool any = sum_of_warp(static_cast<int>(touched[q])) > 0;
      if (lane() != 0 || row >= here) continue;
      out.assignment[first_row + row] =
          in.labels ? in.labels[first_row + row] : int64_t{nearest[q].index};
      // For the second launch: the sign says that others are inside the margin.
      if (device.own) device.own[first_row + row] = any ? ~nearest[q].index : nearest[q].index;
    }
  }

  // All of it; returns the thread's share of the loss.
  __device__ double visit() {
    double loss = 0;
    if (in.labels) {
      take_labels(loss);
    } else {
      find_nearest();
    }
    bool begun = false;
    for (int first = 0; first < in.k; first += kColumns) {
      const int columns = columns_from(first);
      if (!inside && !has_own(first, columns)) continue;
      weigh(first, columns, loss);
      if (!out.grad_r && !partial_g) continue;
      add_gradients(first, columns, begun);
      begun = true;
    }
    write_assignment();
    return loss;
  }
};

template <typename T>
__global__ void __launch_bounds__(kThreads, 1)
    prototype_rows_kernel(const PrototypeMarginInput<T> in, const PrototypeMarginGradient<T> out,
                          const PrototypeMarginDevice<T> device) {
  PrototypeMemory<T>& memory = *shared_memory<PrototypeMemory<T>>();
  const int64_t size = in.k * in.d;
  T* partial_g = device.partial_g ? device.partial_g + blockIdx.x * size : nullptr;
  if (partial_g) {
    // Added to behind the barriers of a tile.
    for (int64_t at = threadIdx.x; at < size; at += kThreads) partial_g[at] = 0;
  }
  double loss = 0;
  for (int64_t first = int64_t{blockIdx.x} * kRows; first < in.rows;
       first += int64_t{device.blocks} * kRows) {
    loss += PrototypeRows<T>(in, out, device, memory, first, partial_g).visit();
  }

  loss = sum_of_block(loss, memory.scratch);
  const Partials partials{device.partials, device.blocks, 1};
  if (!partials.leave(&loss, blockIdx.x, device.counter)) return;
  loss = partials.sum(0, memory.scratch);
  if (threadIdx.x == 0) out.loss[0] = static_cast<T>(in.scale * loss);
  if (!partial_g) return;
  for (int64_t at = threadIdx.x; at < size; at += kThreads) {
    double sum = 0;
#pragma unroll 4
    for (int64_t b = 0; b < device.blocks; ++b) sum += load_fresh(device.partial_g + b * size + at);
    out.grad_g[at] = static_cast<T>(2 * in.scale * sum);
  }
}

// What the kernel of weighted differences is given: where pairs are weighed, and what is weighed.
template <typename T>
struct PrototypeDifferences {
  PrototypeMarginInput<T> in;
  const int64_t* assignment;   // [rows], or null
  const std::int32_t* own;     // [rows], as the kernel above leaves it, where assignment is null
  Samples values_r, values_g;  // data null for zeros
  T* out;
};

template <typename T>
__device__ T load_or_zero(const Samples& of, int64_t row, int f) {
  return of.data ? load<T>(of, 0, row, f) : T(0);
}

// out_k = 2 scale sum_i a_ik (values_g_k - values_r_i) for a block of prototypes (kOfPrototypes),
// or out_i = 2 scale sum_k a_ik (values_r_i - values_g_k) for a block of samples.
template <typename T, bool kOfPrototypes>
__global__ void __launch_bounds__(kThreads, 1)
    prototype_differences_kernel(const PrototypeDifferences<T> given) {
  constexpr int kColumns = kTileColumns<T>;
  PrototypeMemory<T>& memory = *shared_memory<PrototypeMemory<T>>();
  const PrototypeMarginInput<T>& in = given.in;
  const Samples &of_rows = kOfPrototypes ? in.g : in.r, &of_columns = kOfPrototypes ? in.r : in.g;
  const Samples& row_values = kOfPrototypes ? given.values_g : given.values_r;
  const Samples& column_values = kOfPrototypes ? given.values_r : given.values_g;
  const int64_t count = kOfPrototypes ? in.k : in.rows, across = kOfPrototypes ? in.rows : in.k;
  const int64_t first_row = int64_t{blockIdx.x} * kRows;
  const int rows_here = static_cast<int>(count - first_row < kRows ? count - first_row : kRows);
  const int d = static_cast<int>(in.d);
  const T margin = static_cast<T>(in.margin), negative = static_cast<T>(-in.negative_scale);
  const T factor = static_cast<T>(2 * in.scale);
  const auto at_row = [&](int row, int f) { return load<T>(of_rows, 0, first_row + row, f); };
  const auto row_value = [&](int row, int f) {
    return load_or_zero<T>(row_values, first_row + row, f);
  };
  bool begun = false;
  for (int64_t first = 0; first < across; first += kColumns) {
    const int here = static_cast<int>(across - first < kColumns ? across - first : kColumns);
    const auto at_column = [&](int j, int f) { return load<T>(of_columns, 0, first + j, f); };
    const auto column_value = [&](int j, int f) {
      return load_or_zero<T>(column_values, first + j, f);
    };
    bool inside = true;
    if (kOfPrototypes && given.own) {
      bool mine = false, others = false;
      for (int j = static_cast<int>(threadIdx.x); j < here; j += kThreads) {
        const std::int32_t own = given.own[first + j];
        others = others || own < 0;
        const std::int32_t k = own < 0 ? ~own : own;
        mine = mine || (k >= first_row && k < first_row + rows_here);
      }
      inside = any_in_block(others);
      if (!inside && !any_in_block(mine)) continue;
    }
    Pairs<T, kColumns> u;
    if (inside) {
      squared_distances<T, kColumns>(u, memory.rows, memory.columns, rows_here, here, d, at_row,
                                     at_column);
    }
    sync_block();
    each_pair<kColumns>([&](int q, int c, int row, int column) {
      T w = 0;
      if (row < rows_here && column < here) {
        const int64_t i = kOfPrototypes ? first + column : first_row + row;
        const int64_t k = kOfPrototypes ? first_row + row : first + column;
        int64_t own;
        if (given.assignment) {
          own = given.assignment[i];
          own = own < 0 ? 0 : own < in.k ? own : in.k - 1;
        } else {
          own = given.own[i] < 0 ? ~given.own[i] : given.own[i];
        }
        w = k == own ? T(1) : inside && u[q][c] < margin ? negative : T(0);
      }
      memory.weights[row][column] = w;
    });
    weighted_differences<T, kColumns>(memory.weights, memory.rows, memory.columns, rows_here, here,
                                      d, row_value, column_value, [&](int row, int f, T sum) {
                                        T& to = given.out[(first_row + row) * d + f];
                                        to = begun ? to + factor * sum : factor * sum;
                                      });
    begun = true;
  }
  if (begun) return;
  for (int at = static_cast<int>(threadIdx.x); at < rows_here * d; at += kThreads) {
    given.out[first_row * d + at] = 0;
  }
}

}  // namespace cgm_fast::cuda
