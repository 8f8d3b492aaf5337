// The matrix products of a block of rows and a tile of columns (block.h). Included by kernels that
// are compiled once per instruction set, like simd.h.
#pragma once

#include "cpu/block.h"
#include "cpu/simd.h"

namespace cgm_fast {
namespace {

constexpr int kR = 4;  // rows in registers

// Vectors of sums in registers, and the rest for operands: of 32 registers, or of 16.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kPairColumns = 4, kRowFeatures = 5, kWideVectors = 4;
constexpr int kColumnVectors = 4, kColumnFeatures = 6, kOwnFeatures = 2;
#else
constexpr int kPairColumns = 2, kRowFeatures = 2, kWideVectors = 2;
constexpr int kColumnVectors = 2, kColumnFeatures = 5, kOwnFeatures = 1;
#endif

// e for 4 rows and C vectors of columns: the products over features [begin, end), what earlier
// features left in w, and the biases with the first. Sums start from zero and stay short, so that
// thousands of features round like few.
template <typename T, int C, bool kDifferences>
CGM_INLINE void exponents(const Block<T>& v, int64_t i, int64_t j, int64_t begin, int64_t end,
                          Vec<T> (&e)[kR][C]) {
  constexpr int kLanes = Simd<T>::kLanes;
  CGM_UNROLL for (int r = 0; r < kR; ++r) CGM_UNROLL for (int c = 0; c < C; ++c) e[r][c] = Vec<T>{};
  const T* row = v.rows_z + i * v.features;
  const T* column = v.panel + begin * v.stride + j;
  for (int64_t f = begin; f < end; ++f, column += v.stride) {
    Vec<T> z[C];
    CGM_UNROLL for (int c = 0; c < C; ++c) z[c] = load(column + c * kLanes);
    CGM_UNROLL for (int r = 0; r < kR; ++r) {
      const Vec<T> value = splat(row[r * v.features + f]);
      CGM_UNROLL for (int c = 0; c < C; ++c) {
        if (kDifferences) {
          const Vec<T> difference = value - z[c];
          e[r][c] -= difference * difference;
        } else {
          e[r][c] += value * z[c];
        }
      }
    }
  }
  CGM_UNROLL for (int r = 0; r < kR; ++r) {
    CGM_UNROLL for (int c = 0; c < C; ++c) {
      if (begin > 0)
        e[r][c] += load(v.w + (i + r) * v.columns + j + c * kLanes);
      else if (!kDifferences)
        e[r][c] += load(v.column_bias + j + c * kLanes) + v.row_bias[i + r];
    }
  }
}

// So many vectors of columns, as a type that a visit is told.
template <int C>
struct Vectors {
  static constexpr int kCount = C;
};

template <int C, typename T, typename Visit>
CGM_INLINE void each_column(const Block<T>& v, int64_t j, const Visit& visit) {
  constexpr int kStep = C * Simd<T>::kLanes;
  for (; j + kStep <= v.columns; j += kStep) visit(Vectors<C>(), j);
  if constexpr (C > 1) each_column<C / 2>(v, j, visit);
}

// Calls visit(vectors, row, column, begin, end) for kR rows and some vectors of columns at a time,
// over features [begin, end): a chunk of them, whose panel stays near.
template <int kColumns = kPairColumns, typename T, typename Visit>
CGM_INLINE void each_register_block(const Block<T>& v, const Visit& visit) {
  constexpr int64_t kChunk = kFeaturesAtOnce;
  for (int64_t begin = 0; begin < v.d; begin += kChunk) {
    const int64_t end = begin + kChunk < v.d ? begin + kChunk : v.d;
    for (int64_t i = 0; i < v.rows; i += kR)
      each_column<kColumns>(v, 0, [&](auto vectors, int64_t j) __attribute__((always_inline)) {
        visit(vectors, i, j, begin, end);
      });
  }
}

// Leaves the exponents of all pairs in `w`.
template <typename T, bool kDifferences>
void all_exponents(const Block<T>& v) {
  each_register_block(v, [&](auto vectors, int64_t i, int64_t j, int64_t begin,
                             int64_t end) __attribute__((always_inline)) {
    constexpr int C = decltype(vectors)::kCount, kLanes = Simd<T>::kLanes;
    Vec<T> e[kR][C];
    exponents<T, C, kDifferences>(v, i, j, begin, end, e);
    T* w = v.w + i * v.columns + j;
    CGM_UNROLL for (int r = 0; r < kR; ++r) CGM_UNROLL for (int c = 0; c < C; ++c)
        store(w + r * v.columns + c * kLanes, e[r][c]);
  });
}

// row_values += w (a z) for small d: lanes over columns, F features of 4 rows in registers.
// kDifferences: += w (x - z), of the block's own rows x; nothing cancels where rows and columns
// nearly coincide.
template <typename T, int F, bool kDifferences>
CGM_INLINE void add_to_rows(const Block<T>& v, int64_t i, int64_t f) {
  constexpr int kLanes = Simd<T>::kLanes;
  Vec<T> sum[kR][F], own[kR][F];
  T* values = v.row_values + (i * v.d + f) * kTileAlign;
  CGM_UNROLL for (int r = 0; r < kR; ++r) CGM_UNROLL for (int g = 0; g < F; ++g) {
    sum[r][g] = load(values + (r * v.d + g) * kTileAlign);
    if (kDifferences) own[r][g] = splat(v.rows_z[(i + r) * v.features + f + g]);
  }
  const T *w = v.w + i * v.columns, *panel = v.panel_weighted + f * v.stride;
  for (int64_t j = 0; j < v.columns; j += kLanes) {
    Vec<T> weight[kR];
    CGM_UNROLL for (int r = 0; r < kR; ++r) weight[r] = load(w + r * v.columns + j);
    CGM_UNROLL for (int g = 0; g < F; ++g) {
      const Vec<T> z = load(panel + g * v.stride + j);
      CGM_UNROLL for (int r = 0; r < kR; ++r) sum[r][g] +=
          weight[r] * (kDifferences ? own[r][g] - z : z);
    }
  }
  CGM_UNROLL for (int r = 0; r < kR; ++r) CGM_UNROLL for (int g = 0; g < F; ++g)
      store(values + (r * v.d + g) * kTileAlign, sum[r][g]);
}

// All features from f on, F at a time and the rest in smaller groups.
template <typename T, int F, bool kDifferences>
CGM_INLINE void row_features(const Block<T>& v, int64_t i, int64_t f) {
  for (; f + F <= v.d; f += F) add_to_rows<T, F, kDifferences>(v, i, f);
  if constexpr (F > 1) row_features<T, F / 2, kDifferences>(v, i, f);
}

// The same for large d: lanes over features, C vectors of them for 4 rows in registers.
template <typename T, int C, bool kDifferences>
CGM_INLINE void add_to_wide_rows(const Block<T>& v, int64_t i, int64_t f) {
  constexpr int kLanes = Simd<T>::kLanes;
  Vec<T> sum[kR][C], own[kR][C];
  T* values = v.row_values + i * v.features + f;
  CGM_UNROLL for (int r = 0; r < kR; ++r) CGM_UNROLL for (int c = 0; c < C; ++c) {
    sum[r][c] = load(values + r * v.features + c * kLanes);
    if (kDifferences) own[r][c] = load(v.rows_z + (i + r) * v.features + f + c * kLanes);
  }
  const T *w = v.w + i * v.columns, *column = v.columns_weighted + f;
  for (int64_t j = 0; j < v.columns; ++j, column += v.features) {
    Vec<T> z[C];
    CGM_UNROLL for (int c = 0; c < C; ++c) z[c] = load(column + c * kLanes);
    CGM_UNROLL for (int r = 0; r < kR; ++r) {
      const Vec<T> weight = splat(w[r * v.columns + j]);
      CGM_UNROLL for (int c = 0; c < C; ++c) sum[r][c] +=
          weight * (kDifferences ? own[r][c] - z[c] : z[c]);
    }
  }
  CGM_UNROLL for (int r = 0; r < kR; ++r) CGM_UNROLL for (int c = 0; c < C; ++c)
      store(values + r * v.features + c * kLanes, sum[r][c]);
}

// Features outside, rows inside: the columns' few features stay in the first-level cache.
template <typename T, int C, bool kDifferences>
CGM_INLINE void wide_features(const Block<T>& v, int64_t f) {
  constexpr int kStep = C * Simd<T>::kLanes;
  for (; f + kStep < v.d + Simd<T>::kLanes; f += kStep)
    for (int64_t i = 0; i < v.rows; i += kR) add_to_wide_rows<T, C, kDifferences>(v, i, f);
  if constexpr (C > 1) wide_features<T, C / 2, kDifferences>(v, f);
}

template <typename T, bool kDifferences = false>
void all_rows(const Block<T>& v) {
  // A difference holds a row's own features in registers, too.
  constexpr int kWide = kDifferences ? kOwnFeatures : kWideVectors;
  constexpr int kFew = kDifferences ? kOwnFeatures : kRowFeatures;
  if (v.d >= kFeatureLanes) return wide_features<T, kWide, kDifferences>(v, 0);
  for (int64_t i = 0; i < v.rows; i += kR) row_features<T, kFew, kDifferences>(v, i, 0);
}

// column_values += w^T (a z): F features of C vectors of columns in registers, over all rows of the
// block.
template <typename T, int F, int C>
CGM_INLINE void add_to_columns(const Block<T>& v, int64_t f, int64_t j) {
  constexpr int kLanes = Simd<T>::kLanes;
  Vec<T> sum[F][C];
  T* values = v.column_values + f * v.stride + j;
  CGM_UNROLL for (int g = 0; g < F; ++g) CGM_UNROLL for (int c = 0; c < C; ++c) sum[g][c] =
      load(values + g * v.stride + c * kLanes);
  const T *w = v.w + j, *row = v.rows_weighted + f;
  for (int i = 0; i < v.rows; ++i, w += v.columns, row += v.features) {
    Vec<T> weight[C];
    CGM_UNROLL for (int c = 0; c < C; ++c) weight[c] = load(w + c * kLanes);
    CGM_UNROLL for (int g = 0; g < F; ++g) {
      const Vec<T> z = splat(row[g]);
      CGM_UNROLL for (int c = 0; c < C; ++c) sum[g][c] += weight[c] * z;
    }
  }
  CGM_UNROLL for (int g = 0; g < F; ++g) CGM_UNROLL for (int c = 0; c < C; ++c)
      store(values + g * v.stride + c * kLanes, sum[g][c]);
}

template <typename T, int F, int C>
CGM_INLINE void column_features(const Block<T>& v, int64_t f, int64_t j) {
  for (; f + F <= v.d + 1; f += F) add_to_columns<T, F, C>(v, f, j);
  if constexpr (F > 1) column_features<T, F - 1, C>(v, f, j);
}

template <typename T>
void all_columns(const Block<T>& v) {
  constexpr int kLanes = Simd<T>::kLanes;
  int64_t j = 0;
  for (; j + kColumnVectors * kLanes <= v.columns; j += kColumnVectors * kLanes)
    column_features<T, kColumnFeatures, kColumnVectors>(v, 0, j);
  for (; j < v.columns; j += kLanes) column_features<T, kColumnFeatures, 1>(v, 0, j);
}

// Flush sums to double: out[i] += factor * from[i] [count]; zeroes `from`.
template <typename T>
void flush(T* from, int64_t count, double factor, double* out) {
  int64_t i = 0;
  for (; i + kWideLanes <= count; i += kWideLanes)
    *reinterpret_cast<UnalignedWide*>(out + i) += factor * widen(from + i);
  for (; i < count; ++i) out[i] += factor * double(from[i]);
  __builtin_memset(from, 0, count * sizeof(T));
}

// The same of sums in lanes: out[i] += factor * the sum of lanes[i], [count, kTileAlign].
template <typename T>
void flush_lanes(T* lanes, int64_t count, double factor, double* out) {
  int64_t i = 0;
  for (; i + kWideLanes <= count; i += kWideLanes) {
    Wide value[kWideLanes];
    CGM_UNROLL for (int l = 0; l < kWideLanes; ++l) {
      value[l] = widen_all(lanes + (i + l) * kTileAlign);
      store(lanes + (i + l) * kTileAlign, Vec<T>{});
    }
    *reinterpret_cast<UnalignedWide*>(out + i) += factor * sums_of_lanes(value);
  }
  for (; i < count; ++i) {
    out[i] += factor * sum_of_lanes(widen_all(lanes + i * kTileAlign));
    store(lanes + i * kTileAlign, Vec<T>{});
  }
}

}  // namespace
}  // namespace cgm_fast
