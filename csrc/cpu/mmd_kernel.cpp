// The fast MMD² visit; see mmd_kernel.h. Compiled once per instruction set, as
// cgm_fast::CGM_FAST_ISA::mmd_kernels_float and _double.
//
// Three small matrix products and an exponential, on data that stays in L1 and L2:
//   1. e = bias_i + bias_j + z_i . z_j, w = slope of the kernel at e: registers hold 4 rows by 4
//      vectors of columns, one load of a panel serves 4 rows;
//   2. row_values += w (a z) (rows of the block);
//   3. column_values += w^T (a z) (columns of the tile), for pairs visited once for both orders.
#include "cpu/mmd_kernel.h"

#include "cpu/simd.h"

namespace cgm_fast {
namespace {

constexpr int kR = 4;  // rows in registers

// Vectors of sums in registers, and the rest for operands: of 32 registers, or of 16.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kPairColumns = 4, kRowFeatures = 5, kWideVectors = 4;
constexpr int kColumnVectors = 4, kColumnFeatures = 6;
#else
constexpr int kPairColumns = 2, kRowFeatures = 2, kWideVectors = 2;
constexpr int kColumnVectors = 2, kColumnFeatures = 5;
#endif

// A radial kernel as a function of the exponent e: its value less `shift` and its slope
// -2 h dk/du, less the same. For the Gaussian the two are one.
struct Gaussian {
  template <typename T>
  CGM_INLINE static void evaluate(Vec<T> e, T shift, Vec<T>& value, Vec<T>& slope) {
    value = slope = exp2_minus(e, shift);
  }
};

// e for 4 rows and C vectors of columns: the products over features [begin, end), what earlier
// features left in w, and the biases with the first. Sums start from zero and stay short, so that
// thousands of features round like few.
template <typename T, int C, bool kDifferences>
CGM_INLINE void exponents(const MmdVisit<T>& v, int64_t i, int64_t j, int64_t begin, int64_t end,
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

// Zeroes the lane of row i's pair with itself: its gradient vanishes, and where all other pairs are
// many bandwidths apart its rounding would be all there is.
template <typename T>
CGM_INLINE void leave_out_own(const MmdVisit<T>& v, int64_t i, int64_t j, Vec<T>& value) {
  const int64_t lane = v.diagonal + i - j;
  if (v.diagonal >= 0 && lane >= 0 && lane < Simd<T>::kLanes) value[lane] = T(0);
}

// Step 1 for 4 rows and C vectors of columns, up to feature `end`.
template <typename Kernel, typename T, int C, bool kDifferences, bool kDiagonal>
CGM_INLINE void weights(const MmdVisit<T>& v, int64_t i, int64_t j, int64_t begin, int64_t end) {
  constexpr int kLanes = Simd<T>::kLanes;
  Vec<T> e[kR][C];
  exponents<T, C, kDifferences>(v, i, j, begin, end, e);
  if (end < v.d) {
    CGM_UNROLL for (int r = 0; r < kR; ++r) CGM_UNROLL for (int c = 0; c < C; ++c)
        store(v.w + (i + r) * v.columns + j + c * kLanes, e[r][c]);
    return;
  }
  Vec<T> a_j[C];
  CGM_UNROLL for (int c = 0; c < C; ++c) a_j[c] = load(v.column_weight + j + c * kLanes);
  CGM_UNROLL for (int r = 0; r < kR; ++r) {
    T* sums = v.value_sums + (i + r) * kTileAlign;
    T* w = v.w + (i + r) * v.columns + j;
    Vec<T> sum = load(sums);
    CGM_UNROLL for (int c = 0; c < C; ++c) {
      Vec<T> value, slope;
      Kernel::template evaluate<T>(e[r][c], v.shift, value, slope);
      if (kDiagonal) leave_out_own<T>(v, i + r, j + c * kLanes, value);
      sum += value * a_j[c];
      store(w + c * kLanes, value);
    }
    store(sums, sum);
  }
}

// Step 1 with several bandwidths, or with derivatives in them.
template <typename Kernel, typename T, int C, bool kDifferences>
CGM_INLINE void weights_of_scales(const MmdVisit<T>& v, int64_t i, int64_t j, int64_t begin,
                                  int64_t end) {
  constexpr int kLanes = Simd<T>::kLanes;
  constexpr T kLn2 = T(0.69314718055994530942);
  Vec<T> e[kR][C];
  exponents<T, C, kDifferences>(v, i, j, begin, end, e);
  CGM_UNROLL for (int r = 0; r < kR; ++r) {
    T* value_sums = v.value_sums + (i + r) * kTileAlign;
    T* slope_sums = v.slope_sums + (i + r) * kTileAlign;
    T* w = v.w + (i + r) * v.columns + j;
    const T a_i = v.rows_weighted[(i + r) * v.features + v.d];
    CGM_UNROLL for (int c = 0; c < C; ++c) {
      if (end < v.d) {
        store(w + c * kLanes, e[r][c]);
        continue;
      }
      Vec<T> own = splat(T(1));
      leave_out_own<T>(v, i + r, j + c * kLanes, own);
      const Vec<T> a_j = load(v.column_weight + j + c * kLanes) * own;
      Vec<T> values = {}, slopes = {};
      for (int64_t s = 0; s < v.scales; ++s) {
        const Vec<T> exponent = e[r][c] * v.ratio[s];
        Vec<T> value, slope;
        Kernel::template evaluate<T>(exponent, v.shift, value, slope);
        values += value * v.value_weight[s];
        slopes += slope * v.slope_weight[s];
        if (v.with_variance) {
          T* sums = v.variance_sums + s * kTileAlign;
          store(sums, load(sums) + exponent * (slope + v.shift) * (-kLn2 * a_i) * a_j);
        }
      }
      store(value_sums, load(value_sums) + values * a_j);
      store(slope_sums, load(slope_sums) + slopes * a_j);
      store(w + c * kLanes, slopes * own);
    }
  }
}

enum class Step { plain, diagonal, scaled };

template <typename Kernel, typename T, int C, bool kDifferences, Step kStep>
CGM_INLINE void weights_of_rows(const MmdVisit<T>& v, int64_t i, int64_t j, int64_t begin,
                                int64_t end) {
  if (kStep == Step::scaled)
    weights_of_scales<Kernel, T, C, kDifferences>(v, i, j, begin, end);
  else
    weights<Kernel, T, C, kDifferences, kStep == Step::diagonal>(v, i, j, begin, end);
}

template <typename Kernel, typename T, bool kDifferences, Step kStep>
void all_weights(const MmdVisit<T>& v) {
  constexpr int kLanes = Simd<T>::kLanes;
  constexpr int64_t kChunk = 512;  // features whose panel stays near
  for (int64_t begin = 0; begin < v.d; begin += kChunk) {
    const int64_t end = begin + kChunk < v.d ? begin + kChunk : v.d;
    for (int64_t i = 0; i < v.rows; i += kR) {
      int64_t j = 0;
      for (; j + kPairColumns * kLanes <= v.columns; j += kPairColumns * kLanes)
        weights_of_rows<Kernel, T, kPairColumns, kDifferences, kStep>(v, i, j, begin, end);
      for (; j < v.columns; j += kLanes)
        weights_of_rows<Kernel, T, 1, kDifferences, kStep>(v, i, j, begin, end);
    }
  }
}

template <typename Kernel, typename T, bool kDifferences>
CGM_INLINE void weights_in_steps(const MmdVisit<T>& v) {
  if (v.scaled)
    all_weights<Kernel, T, kDifferences, Step::scaled>(v);
  else if (v.diagonal >= 0)
    all_weights<Kernel, T, kDifferences, Step::diagonal>(v);
  else
    all_weights<Kernel, T, kDifferences, Step::plain>(v);
}

// Step 2 for small d: lanes over columns, F features of 4 rows in registers.
template <typename T, int F>
CGM_INLINE void add_to_rows(const MmdVisit<T>& v, int64_t i, int64_t f) {
  constexpr int kLanes = Simd<T>::kLanes;
  Vec<T> sum[kR][F];
  T* values = v.row_values + (i * v.d + f) * kTileAlign;
  CGM_UNROLL for (int r = 0; r < kR; ++r) CGM_UNROLL for (int g = 0; g < F; ++g) sum[r][g] =
      load(values + (r * v.d + g) * kTileAlign);
  const T *w = v.w + i * v.columns, *panel = v.panel_weighted + f * v.stride;
  for (int64_t j = 0; j < v.columns; j += kLanes) {
    Vec<T> weight[kR];
    CGM_UNROLL for (int r = 0; r < kR; ++r) weight[r] = load(w + r * v.columns + j);
    CGM_UNROLL for (int g = 0; g < F; ++g) {
      const Vec<T> z = load(panel + g * v.stride + j);
      CGM_UNROLL for (int r = 0; r < kR; ++r) sum[r][g] += weight[r] * z;
    }
  }
  CGM_UNROLL for (int r = 0; r < kR; ++r) CGM_UNROLL for (int g = 0; g < F; ++g)
      store(values + (r * v.d + g) * kTileAlign, sum[r][g]);
}

// All features from f on, F at a time and the rest in smaller groups.
template <typename T, int F>
CGM_INLINE void row_features(const MmdVisit<T>& v, int64_t i, int64_t f) {
  for (; f + F <= v.d; f += F) add_to_rows<T, F>(v, i, f);
  if constexpr (F > 1) row_features<T, F / 2>(v, i, f);
}

// Step 2 for large d: lanes over features, C vectors of them for 4 rows in registers.
template <typename T, int C>
CGM_INLINE void add_to_wide_rows(const MmdVisit<T>& v, int64_t i, int64_t f) {
  constexpr int kLanes = Simd<T>::kLanes;
  Vec<T> sum[kR][C];
  T* values = v.row_values + i * v.features + f;
  CGM_UNROLL for (int r = 0; r < kR; ++r) CGM_UNROLL for (int c = 0; c < C; ++c) sum[r][c] =
      load(values + r * v.features + c * kLanes);
  const T *w = v.w + i * v.columns, *column = v.columns_weighted + f;
  for (int64_t j = 0; j < v.columns; ++j, column += v.features) {
    Vec<T> z[C];
    CGM_UNROLL for (int c = 0; c < C; ++c) z[c] = load(column + c * kLanes);
    CGM_UNROLL for (int r = 0; r < kR; ++r) {
      const Vec<T> weight = splat(w[r * v.columns + j]);
      CGM_UNROLL for (int c = 0; c < C; ++c) sum[r][c] += weight * z[c];
    }
  }
  CGM_UNROLL for (int r = 0; r < kR; ++r) CGM_UNROLL for (int c = 0; c < C; ++c)
      store(values + r * v.features + c * kLanes, sum[r][c]);
}

template <typename T, int C>
CGM_INLINE void wide_features(const MmdVisit<T>& v, int64_t i, int64_t f) {
  constexpr int kStep = C * Simd<T>::kLanes;
  for (; f + kStep < v.d + Simd<T>::kLanes; f += kStep) add_to_wide_rows<T, C>(v, i, f);
  if constexpr (C > 1) wide_features<T, C / 2>(v, i, f);
}

template <typename T>
void all_rows(const MmdVisit<T>& v) {
  for (int64_t i = 0; i < v.rows; i += kR) {
    if (v.d < kFeatureLanes)
      row_features<T, kRowFeatures>(v, i, 0);
    else
      wide_features<T, kWideVectors>(v, i, 0);
  }
}

// Step 3: F features of C vectors of columns in registers, over all rows of the block.
template <typename T, int F, int C>
CGM_INLINE void add_to_columns(const MmdVisit<T>& v, int64_t f, int64_t j) {
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
CGM_INLINE void column_features(const MmdVisit<T>& v, int64_t f, int64_t j) {
  for (; f + F <= v.d + 1; f += F) add_to_columns<T, F, C>(v, f, j);
  if constexpr (F > 1) column_features<T, F - 1, C>(v, f, j);
}

template <typename T>
void all_columns(const MmdVisit<T>& v) {
  constexpr int kLanes = Simd<T>::kLanes;
  int64_t j = 0;
  for (; j + kColumnVectors * kLanes <= v.columns; j += kColumnVectors * kLanes)
    column_features<T, kColumnFeatures, kColumnVectors>(v, 0, j);
  for (; j < v.columns; j += kLanes) column_features<T, kColumnFeatures, 1>(v, 0, j);
}

template <typename T>
void visit(const MmdVisit<T>& v) {
  if (v.differences)
    weights_in_steps<Gaussian, T, true>(v);
  else
    weights_in_steps<Gaussian, T, false>(v);
  if (v.with_rows) all_rows(v);
  if (v.with_columns) all_columns(v);
}

// out[i] += factor * from[i] [count], in double; zeroes `from`.
template <typename T>
void take(T* from, int64_t count, double factor, double* out) {
  int64_t i = 0;
  typedef double Unaligned __attribute__((vector_size(kVectorBytes), aligned(8), may_alias));
  for (; i + kWideLanes <= count; i += kWideLanes)
    *reinterpret_cast<Unaligned*>(out + i) += factor * widen(from + i);
  for (; i < count; ++i) out[i] += factor * double(from[i]);
  __builtin_memset(from, 0, count * sizeof(T));
}

template <typename T>
void take_lanes(T* lanes, int64_t count, double factor, double* out) {
  typedef double Unaligned __attribute__((vector_size(kVectorBytes), aligned(8), may_alias));
  int64_t i = 0;
  for (; i + kWideLanes <= count; i += kWideLanes) {
    Wide value[kWideLanes];
    CGM_UNROLL for (int l = 0; l < kWideLanes; ++l) {
      value[l] = widen_all(lanes + (i + l) * kTileAlign);
      store(lanes + (i + l) * kTileAlign, Vec<T>{});
    }
    *reinterpret_cast<Unaligned*>(out + i) += factor * sums_of_lanes(value);
  }
  for (; i < count; ++i) {
    out[i] += factor * sum_of_lanes(widen_all(lanes + i * kTileAlign));
    store(lanes + i * kTileAlign, Vec<T>{});
  }
}

}  // namespace

namespace CGM_FAST_ISA {
extern const MmdKernels<float> mmd_kernels_float = {visit<float>, take<float>, take_lanes<float>};
extern const MmdKernels<double> mmd_kernels_double = {visit<double>, take<double>,
                                                      take_lanes<double>};
}  // namespace CGM_FAST_ISA

}  // namespace cgm_fast
