// The matrix products of two tiles of rows with many features (wide.h), by register blocks as in
// GotoBLAS: kM rows of one operand, number by number, against two vectors of the other, which comes
// from the first-level cache. Included by kernels that are compiled once per instruction set.
//
// Every sum starts from zero in registers, over kPanelsAtOnce panels or over the rows of a tile,
// and is added to the rest once: thousands of terms round like some hundred.
#pragma once

#include "cpu/simd.h"
#include "cpu/wide.h"

namespace cgm_fast {
namespace {

// Rows of a register block: two vectors of sums for each, and the rest of 32 registers or 16 for
// the operands.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kM = 8;
#else
constexpr int kM = 6;
#endif

// sum[r][c] += sum_k a[r kRow + k kStep] b[k kNext + c lanes].
template <typename T, int M, int C, int kRow, int kStep, int kNext, bool kDifferences = false>
CGM_INLINE void add_products(const T* a, const T* b, int64_t count, Vec<T> (&sum)[M][C]) {
  for (int64_t k = 0; k < count; ++k, a += kStep, b += kNext) {
    Vec<T> z[C];
    CGM_UNROLL for (int c = 0; c < C; ++c) z[c] = load(b + c * Simd<T>::kLanes);
    CGM_UNROLL for (int r = 0; r < M; ++r) {
      const Vec<T> value = splat(a[r * kRow]);
      CGM_UNROLL for (int c = 0; c < C; ++c) {
        if (kDifferences) {
          const Vec<T> difference = value - z[c];
          sum[r][c] -= difference * difference;
        } else {
          sum[r][c] += value * z[c];
        }
      }
    }
  }
}

// Calls visit(rows, i) for blocks of kM rows of [begin, end), and of half as many at the end where
// that is enough; it may be given rows beyond.
template <int M>
struct Rows {
  static constexpr int kCount = M;
};

template <typename Visit>
CGM_INLINE void each_rows(int64_t begin, int64_t end, const Visit& visit) {
  for (; begin + kM / 2 < end; begin += kM) visit(Rows<kM>(), begin);
  if (begin < end) visit(Rows<kM / 2>(), begin);
}

// Columns [j, j + C lanes) of a chunk of panels, transposed: [panels, kPanel, C lanes].
template <typename T, int C>
void pack_columns(const WideTile<T>& columns, int64_t j, int64_t panels, T* to) {
  constexpr int kLanes = Simd<T>::kLanes, kWidth = C * kLanes;
  for (int64_t p = 0; p < panels; ++p) {
    const T* from = columns.z + p * columns.step + j * kPanel<T>;
    for (int f = 0; f < kPanel<T>; f += kLanes, to += kLanes * kWidth) {
      for (int c = 0; c < C; ++c) {
        Vec<T> square[kLanes];
        CGM_UNROLL for (int l = 0; l < kLanes; ++l) square[l] =
            load(from + (c * kLanes + l) * kPanel<T> + f);
        transpose_square<T>(square);
        CGM_UNROLL for (int l = 0; l < kLanes; ++l) store(to + l * kWidth + c * kLanes, square[l]);
      }
    }
  }
}

// w[:, j : j + C lanes] = or += the products of all rows and these columns, over some features.
template <typename T, int C, bool kDifferences>
CGM_INLINE void add_exponents(const WideTile<T>& rows, const T* packed, int64_t features,
                              bool first, T* w) {
  constexpr int kLanes = Simd<T>::kLanes, kWidth = C * kLanes;
  each_rows(0, rows.rows, [&](auto of, int64_t i) __attribute__((always_inline)) {
    constexpr int M = decltype(of)::kCount;
    Vec<T> sum[M][C];
    CGM_UNROLL for (int r = 0; r < M; ++r) CGM_UNROLL for (int c = 0; c < C; ++c) sum[r][c] =
        Vec<T>{};
    const T *a = rows.z + i * kPanel<T>, *b = packed;
    for (int64_t f = 0; f < features; f += kPanel<T>, a += rows.step, b += kPanel<T> * kWidth)
      add_products<T, M, C, kPanel<T>, 1, kWidth, kDifferences>(
          a, b, features - f < kPanel<T> ? features - f : kPanel<T>, sum);
    CGM_UNROLL for (int r = 0; r < M; ++r) CGM_UNROLL for (int c = 0; c < C; ++c) {
      T* to = w + (i + r) * kWideStride + c * kLanes;
      store(to, first ? sum[r][c] : load(to) + sum[r][c]);
    }
  });
}

template <typename T, int C, bool kDifferences>
CGM_INLINE void exponents_of_columns(const WideTile<T>& rows, const WideTile<T>& columns, int64_t j,
                                     int64_t features, bool first, const WideScratch<T>& scratch) {
  T* packed = scratch.packed;
  pack_columns<T, C>(columns, j, (features + kPanel<T> - 1) / kPanel<T>, packed);
  add_exponents<T, C, kDifferences>(rows, packed, features, first, scratch.w + j);
}

// w = Z_rows Z_columns^T, or += that; or of plain differences, -|z_i - z_j|^2.
template <typename T, bool kDifferences>
void wide_exponents(WideTile<T> rows, WideTile<T> columns, int64_t d, const WideScratch<T>& scratch,
                    bool add = false) {
  constexpr int64_t kLanes = Simd<T>::kLanes, kChunk = kPanelsAtOnce * kPanel<T>;
  for (int64_t begin = 0; begin < d; begin += kChunk) {
    const int64_t count = d - begin < kChunk ? d - begin : kChunk;
    int64_t j = 0;
    for (; j + 2 * kLanes <= columns.rows; j += 2 * kLanes)
      exponents_of_columns<T, 2, kDifferences>(rows, columns, j, count, begin == 0 && !add,
                                               scratch);
    for (; j < columns.rows; j += kLanes)
      exponents_of_columns<T, 1, kDifferences>(rows, columns, j, count, begin == 0 && !add,
                                               scratch);
    rows.z += kPanelsAtOnce * rows.step;
    columns.z += kPanelsAtOnce * columns.step;
  }
}

// out += value, wherever it lies.
template <typename T>
CGM_INLINE void add_to(T* out, Vec<T> value) {
  Vec<T> sum;
  __builtin_memcpy(&sum, out, sizeof sum);
  sum += value;
  __builtin_memcpy(out, &sum, sizeof sum);
}

// out[r, :] += sum of a block, of which `rows` and `features` are there.
template <typename T, int M>
CGM_INLINE void add_block(Vec<T> (&sum)[M][2], T* out, int64_t d, int64_t rows, int64_t features) {
  constexpr int kLanes = Simd<T>::kLanes;
  if (rows >= M && features >= 2 * kLanes) {
    CGM_UNROLL for (int r = 0; r < M; ++r) {
      add_to(out + r * d, sum[r][0]);
      add_to(out + r * d + kLanes, sum[r][1]);
    }
    return;
  }
  alignas(64) T block[M][2 * kLanes];
  CGM_UNROLL for (int r = 0; r < M; ++r) {
    store(block[r], sum[r][0]);
    store(block[r] + kLanes, sum[r][1]);
  }
  for (int64_t r = 0; r < M && r < rows; ++r)
    for (int64_t f = 0; f < 2 * kLanes && f < features; ++f) out[r * d + f] += block[r][f];
}

// out [end - begin, d] += (w or its transpose)[begin : end, :] z. kRow and kStep are those of w:
// from one of its rows to the next, or of its columns.
template <typename T, int kRow, int kStep>
void add_wide_rows(const T* w, int64_t begin, int64_t end, const WideTile<T>& z, int64_t d,
                   T* out) {
  constexpr int kWidth = 2 * Simd<T>::kLanes;
  for (int64_t f = 0; f < d; f += kWidth) {
    const T* b = z.z + f / kPanel<T> * z.step + f % kPanel<T>;
    each_rows(begin, end, [&](auto of, int64_t i) __attribute__((always_inline)) {
      constexpr int M = decltype(of)::kCount;
      Vec<T> sum[M][2];
      T* to = out + (i - begin) * d + f;
      CGM_UNROLL for (int r = 0; r < M; ++r) {
        sum[r][0] = sum[r][1] = Vec<T>{};
        // Rows of the output are far from each other: no processor guesses the next.
        if (r < end - i) __builtin_prefetch(to + r * d, 1);
      }
      add_products<T, M, 2, kRow, kStep, kPanel<T>>(w + i * kRow, b, z.rows, sum);
      add_block(sum, to, d, end - i, d - f);
    });
  }
}

}  // namespace
}  // namespace cgm_fast
