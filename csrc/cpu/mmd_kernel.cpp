// The fast MMD² visit; see mmd_kernel.h. Compiled once per instruction set, as
// cgm_fast::CGM_FAST_ISA::mmd_visit.
//
// Three small matrix products and an exponential, on data that stays in L1 and L2:
//   1. e = bias_i + bias_j + z_i . z_j, k = 2^e, w = a_j (k - shift): registers hold 4 rows by 4
//      vectors of columns, one load of a panel serves 4 rows;
//   2. row_values += w z (rows of the block);
//   3. column_values += w^T (a z) (columns of the tile), for pairs visited once for both orders.
#include "cpu/mmd_kernel.h"

#include "cpu/simd.h"

namespace cgm_fast {
namespace {

constexpr int kR = 4;  // rows in registers

// e for 4 rows and C vectors of columns, over features [begin, end): what earlier features left in
// w, and the biases with the last ones. Sums stay short, so that thousands of features round like
// few.
template <typename T, int C, bool kDifferences>
CGM_INLINE void exponents(const MmdVisit<T>& v, int64_t i, int64_t j, int64_t begin, int64_t end,
                          Vec<T> (&e)[kR][C]) {
  constexpr int kLanes = Simd<T>::kLanes;
  for (int r = 0; r < kR; ++r)
    for (int c = 0; c < C; ++c) e[r][c] = Vec<T>{};
  const T* row = v.rows_z + i * v.features;
  const T* column = v.panel + begin * v.columns + j;
  for (int64_t f = begin; f < end; ++f, column += v.columns) {
    Vec<T> z[C];
    for (int c = 0; c < C; ++c) z[c] = load(column + c * kLanes);
    for (int r = 0; r < kR; ++r) {
      const Vec<T> value = splat(row[r * v.features + f]);
      for (int c = 0; c < C; ++c) {
        if (kDifferences) {
          const Vec<T> difference = value - z[c];
          e[r][c] -= difference * difference;
        } else {
          e[r][c] += value * z[c];
        }
      }
    }
  }
  for (int r = 0; r < kR; ++r) {
    for (int c = 0; c < C; ++c) {
      if (begin > 0) e[r][c] += load(v.w + (i + r) * v.columns + j + c * kLanes);
      if (end == v.d && !kDifferences)
        e[r][c] += load(v.column_bias + j + c * kLanes) + v.row_bias[i + r];
    }
  }
}

// Zeroes the lane of row i's pair with itself: its gradient vanishes, and where all other pairs are
// many bandwidths apart its rounding would be all there is.
template <typename T>
CGM_INLINE void leave_out_own(const MmdVisit<T>& v, int64_t i, int64_t j, Vec<T>& value) {
  const int64_t lane = v.diagonal + i - j;
  if (v.diagonal >= 0 && lane >= 0 && lane < Simd<T>::kLanes) value[lane] = T(0);
}

// Step 1 for 4 rows and C vectors of columns, up to feature `end`.
template <typename T, int C, bool kDifferences>
CGM_INLINE void weights(const MmdVisit<T>& v, int64_t i, int64_t j, int64_t begin, int64_t end) {
  constexpr int kLanes = Simd<T>::kLanes;
  Vec<T> e[kR][C];
  exponents<T, C, kDifferences>(v, i, j, begin, end, e);
  for (int r = 0; r < kR; ++r) {
    T* sums = v.value_sums + (i + r) * kTileAlign;
    T* w = v.w + (i + r) * v.columns + j;
    if (end < v.d) {
      for (int c = 0; c < C; ++c) store(w + c * kLanes, e[r][c]);
      continue;
    }
    Vec<T> sum = load(sums);
    for (int c = 0; c < C; ++c) {
      Vec<T> value = exp2_minus(e[r][c], v.shift) * load(v.column_weight + j + c * kLanes);
      leave_out_own<T>(v, i + r, j + c * kLanes, value);
      sum += value;
      store(w + c * kLanes, value);
    }
    store(sums, sum);
  }
}

// Step 1 with several bandwidths, or with derivatives in them.
template <typename T, int C, bool kDifferences>
CGM_INLINE void weights_of_scales(const MmdVisit<T>& v, int64_t i, int64_t j, int64_t begin,
                                  int64_t end) {
  constexpr int kLanes = Simd<T>::kLanes;
  constexpr T kLn2 = T(0.69314718055994530942);
  Vec<T> e[kR][C];
  exponents<T, C, kDifferences>(v, i, j, begin, end, e);
  for (int r = 0; r < kR; ++r) {
    T* value_sums = v.value_sums + (i + r) * kTileAlign;
    T* slope_sums = v.slope_sums + (i + r) * kTileAlign;
    T* w = v.w + (i + r) * v.columns + j;
    const T a_i = v.rows_weighted[(i + r) * (v.d + 1) + v.d];
    for (int c = 0; c < C; ++c) {
      if (end < v.d) {
        store(w + c * kLanes, e[r][c]);
        continue;
      }
      Vec<T> a_j = load(v.column_weight + j + c * kLanes);
      leave_out_own<T>(v, i + r, j + c * kLanes, a_j);
      Vec<T> value = {}, slope = {};
      for (int64_t s = 0; s < v.scales; ++s) {
        const Vec<T> exponent = e[r][c] * v.ratio[s];
        const Vec<T> k = exp2_minus(exponent, v.shift);
        value += k * v.value_weight[s];
        slope += k * v.slope_weight[s];
        if (v.with_variance) {
          T* sums = v.variance_sums + s * kTileAlign;
          const Vec<T> t_k = exponent * (k + v.shift) * (-kLn2 * a_i);
          store(sums, load(sums) + t_k * a_j);
        }
      }
      store(value_sums, load(value_sums) + value * a_j);
      store(slope_sums, load(slope_sums) + slope * a_j);
      store(w + c * kLanes, slope * a_j);
    }
  }
}

template <typename T, int C, bool kDifferences, bool kScaled>
CGM_INLINE void weights_of_rows(const MmdVisit<T>& v, int64_t i, int64_t j, int64_t begin,
                                int64_t end) {
  if (kScaled)
    weights_of_scales<T, C, kDifferences>(v, i, j, begin, end);
  else
    weights<T, C, kDifferences>(v, i, j, begin, end);
}

template <typename T, bool kDifferences, bool kScaled>
CGM_INLINE void all_weights(const MmdVisit<T>& v) {
  constexpr int kLanes = Simd<T>::kLanes;
  // Vectors of columns in registers beside 4 rows: 16 sums, and the rest for operands.
  constexpr int kC = kVectorBytes == 64 ? 4 : 2;
  constexpr int64_t kChunk = 512;  // features whose panel stays near
  for (int64_t begin = 0; begin < v.d; begin += kChunk) {
    const int64_t end = begin + kChunk < v.d ? begin + kChunk : v.d;
    for (int64_t i = 0; i < v.rows; i += kR) {
      int64_t j = 0;
      for (; j + kC * kLanes <= v.columns; j += kC * kLanes)
        weights_of_rows<T, kC, kDifferences, kScaled>(v, i, j, begin, end);
      for (; j < v.columns; j += kLanes)
        weights_of_rows<T, 1, kDifferences, kScaled>(v, i, j, begin, end);
    }
  }
}

// Step 2 for small d: lanes over columns, F features of 4 rows in registers.
template <typename T, int F>
CGM_INLINE void add_to_rows(const MmdVisit<T>& v, int64_t i, int64_t f) {
  constexpr int kLanes = Simd<T>::kLanes;
  Vec<T> sum[kR][F];
  T* values = v.row_values + (i * v.d + f) * kTileAlign;
  for (int r = 0; r < kR; ++r)
    for (int g = 0; g < F; ++g) sum[r][g] = load(values + (r * v.d + g) * kTileAlign);
  const T *w = v.w + i * v.columns, *panel = v.panel + f * v.columns;
  for (int64_t j = 0; j < v.columns; j += kLanes) {
    Vec<T> weight[kR];
    for (int r = 0; r < kR; ++r) weight[r] = load(w + r * v.columns + j);
    for (int g = 0; g < F; ++g) {
      const Vec<T> z = load(panel + g * v.columns + j);
      for (int r = 0; r < kR; ++r) sum[r][g] += weight[r] * z;
    }
  }
  for (int r = 0; r < kR; ++r)
    for (int g = 0; g < F; ++g) store(values + (r * v.d + g) * kTileAlign, sum[r][g]);
}

// Step 2 for large d: lanes over features, C vectors of them for 4 rows in registers.
template <typename T, int C>
CGM_INLINE void add_to_wide_rows(const MmdVisit<T>& v, int64_t i, int64_t f) {
  constexpr int kLanes = Simd<T>::kLanes;
  Vec<T> sum[kR][C];
  T* values = v.row_values + i * v.features + f;
  for (int r = 0; r < kR; ++r)
    for (int c = 0; c < C; ++c) sum[r][c] = load(values + r * v.features + c * kLanes);
  const T *w = v.w + i * v.columns, *column = v.column_rows + f;
  for (int64_t j = 0; j < v.columns; ++j, column += v.features) {
    Vec<T> z[C];
    for (int c = 0; c < C; ++c) z[c] = load(column + c * kLanes);
    for (int r = 0; r < kR; ++r) {
      const Vec<T> weight = splat(w[r * v.columns + j]);
      for (int c = 0; c < C; ++c) sum[r][c] += weight * z[c];
    }
  }
  for (int r = 0; r < kR; ++r)
    for (int c = 0; c < C; ++c) store(values + r * v.features + c * kLanes, sum[r][c]);
}

template <typename T>
CGM_INLINE void all_rows(const MmdVisit<T>& v) {
  constexpr int kLanes = Simd<T>::kLanes;
  constexpr int kF = kVectorBytes == 64 ? 5 : 2;
  constexpr int kC = kVectorBytes == 64 ? 4 : 2;
  for (int64_t i = 0; i < v.rows; i += kR) {
    int64_t f = 0;
    if (v.d < kFeatureLanes) {
      for (; f + kF <= v.d; f += kF) add_to_rows<T, kF>(v, i, f);
      for (; f < v.d; ++f) add_to_rows<T, 1>(v, i, f);
    } else {
      for (; f + kC * kLanes <= v.features; f += kC * kLanes) add_to_wide_rows<T, kC>(v, i, f);
      for (; f < v.features; f += kLanes) add_to_wide_rows<T, 1>(v, i, f);
    }
  }
}

// Step 3: F features of C vectors of columns in registers, over all rows of the block.
template <typename T, int F, int C>
CGM_INLINE void add_to_columns(const MmdVisit<T>& v, int64_t f, int64_t j) {
  constexpr int kLanes = Simd<T>::kLanes;
  Vec<T> sum[F][C];
  T* values = v.column_values + f * v.columns + j;
  for (int g = 0; g < F; ++g)
    for (int c = 0; c < C; ++c) sum[g][c] = load(values + g * v.columns + c * kLanes);
  const T *w = v.w + j, *row = v.rows_weighted + f;
  for (int i = 0; i < v.rows; ++i, w += v.columns, row += v.d + 1) {
    Vec<T> weight[C];
    for (int c = 0; c < C; ++c) weight[c] = load(w + c * kLanes);
    for (int g = 0; g < F; ++g) {
      const Vec<T> z = splat(row[g]);
      for (int c = 0; c < C; ++c) sum[g][c] += weight[c] * z;
    }
  }
  for (int g = 0; g < F; ++g)
    for (int c = 0; c < C; ++c) store(values + g * v.columns + c * kLanes, sum[g][c]);
}

template <typename T, int C>
CGM_INLINE void columns_of_features(const MmdVisit<T>& v, int64_t j) {
  constexpr int kF = kVectorBytes == 64 ? 4 : 2;
  int64_t f = 0;
  for (; f + kF <= v.d + 1; f += kF) add_to_columns<T, kF, C>(v, f, j);
  for (; f < v.d + 1; ++f) add_to_columns<T, 1, C>(v, f, j);
}

template <typename T>
CGM_INLINE void all_columns(const MmdVisit<T>& v) {
  constexpr int kLanes = Simd<T>::kLanes;
  constexpr int kC = kVectorBytes == 64 ? 4 : 2;
  int64_t j = 0;
  for (; j + kC * kLanes <= v.columns; j += kC * kLanes) columns_of_features<T, kC>(v, j);
  for (; j < v.columns; j += kLanes) columns_of_features<T, 1>(v, j);
}

template <typename T>
void visit(const MmdVisit<T>& v) {
  if (v.differences) {
    v.scaled ? all_weights<T, true, true>(v) : all_weights<T, true, false>(v);
  } else {
    v.scaled ? all_weights<T, false, true>(v) : all_weights<T, false, false>(v);
  }
  if (v.with_rows) all_rows(v);
  if (v.with_columns) all_columns(v);
}

}  // namespace

namespace CGM_FAST_ISA {
void mmd_visit_float(const MmdVisit<float>& v) { visit(v); }
void mmd_visit_double(const MmdVisit<double>& v) { visit(v); }
}  // namespace CGM_FAST_ISA

}  // namespace cgm_fast
