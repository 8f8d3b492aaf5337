// What the kernels of MMD² share: constants in shared memory, signs, and the end of a call.
//
// A block takes some rows against all columns, so that a row's sums never leave it; what the loss
// needs of it goes to `partials`, which the last block to finish adds in their order.
#pragma once

#include "coefficients.h"
#include "cuda/device.cuh"
#include "cuda/math.cuh"
#include "cuda/read.cuh"
#include "cuda/reduce.cuh"
#include "mmd.h"

namespace cgm_fast::cuda {

template <typename T>
struct MmdCall {
  MmdInput<T> in;
  MmdDevice<T> device;
};

// What tensor cores multiply: float32 samples as two tf32 parts each, or rounded to tf32; or half
// samples as they are.
enum class Numbers { tf32x3, tf32, bfloat16, float16 };

// |a|² + |b|² - 2ab loses what |a|² has over the distance: largest |z|² for it, as an exponent
// of 2.
constexpr float kFar = 24;

// Of one bandwidth.
template <typename T>
struct Scale {
  T unit;    // exponents of 2 are unit |a - b|²: -log2(e) / 2h
  T ratio;   // of the first variance to this one
  T weight;  // of its kernel
  T variance;
};

template <typename T>
__device__ Scale<T> scale_of(const MmdCall<T>& call, int64_t item, int s) {
  const T* variance = call.in.variance + item * call.device.variance_item;
  return {static_cast<T>(-0.72134752044448170368) / variance[s], variance[0] / variance[s],
          call.device.kernel_weights[s], variance[s]};
}

template <typename T>
__device__ void load_scales(const MmdCall<T>& call, int64_t item, Scale<T>* scales) {
#pragma unroll 1
  for (int s = static_cast<int>(threadIdx.x); s < call.in.scales; s += kThreads) {
    scales[s] = scale_of(call, item, s);
  }
}

// A row's own weight, of z = [x; y].
template <typename T>
__device__ T row_weight(const MmdInput<T>& in, int64_t item, int64_t i) {
  if (i < in.n) return in.x_weights ? in.x_weights[item * in.n + i] : T(1);
  return in.y_weights ? in.y_weights[item * in.m + i - in.n] : T(1);
}

// Its sample's sign and scale.
template <typename T>
__device__ double signed_scale(const MmdInput<T>& in, int64_t i) {
  return i < in.n ? in.x_scale : -in.y_scale;
}

// How it counts in the loss.
template <typename T>
__device__ T signed_weight(const MmdInput<T>& in, int64_t item, int64_t i) {
  return static_cast<T>(signed_scale(in, i)) * row_weight(in, item, i);
}

// What a pair from two samples counts.
template <typename T>
__device__ T between_samples(const MmdInput<T>& in, int64_t item) {
  return static_cast<T>(in.cross_scale) * (in.cross ? in.cross[item] : T(1));
}

template <typename T>
__device__ T element(const MmdInput<T>& in, int64_t item, int64_t i, int feature) {
  return i < in.n ? load<T>(in.x, item, i, feature) : load<T>(in.y, item, i - in.n, feature);
}

// Sums over the columns that a row is paired with: of k - 1 for near pairs (k >= 1/2) and k for
// far ones; of near pairs' own weights, and of far ones'. Each within the row's own sample, and
// then across. The weights turn the first into sums of k - 1 (Coefficients), so that nothing is
// left of 1 - 1 where k is small; without row weights those of far pairs are what near ones leave.
enum { kValues = 0, kNears = 2, kFars = 4, kOfRow = 6 };

// The exponent of 2 from which pairs are near: where k is 1/2. Near pairs of all bandwidths are
// counted together; if these weigh unlike, all pairs are near.
template <typename T, bool kOptions>
__device__ T near_exponent(const Scale<T>* scales, int64_t count) {
  if (!kOptions) return T(-1);
  bool alike = true;
#pragma unroll 1
  for (int64_t s = 1; s < count; ++s) alike = alike && scales[s].weight == scales[0].weight;
  return alike ? T(-1) : static_cast<T>(-INFINITY);
}

// 1 for a near pair, else 0; its exponent is e.
template <typename T>
__device__ T is_near(T e, T near_from) {
  return e >= near_from ? T(1) : T(0);
}

// k - 1 or k of some pairs where the first bandwidth's exponents are e, -2 h_0 dk/du, and in how
// many bandwidths they are near: all bandwidths. Each is read once for these pairs, whose sums go
// on side by side.
template <typename T, int kPairs>
__device__ void kernels_at(const T (&e)[kPairs], const Scale<T>* scales, int64_t count, T near_from,
                           T (&value)[kPairs], T (&slope)[kPairs], T (&near)[kPairs]) {
#pragma unroll
  for (int p = 0; p < kPairs; ++p) value[p] = slope[p] = near[p] = 0;
#pragma unroll 1
  for (int64_t s = 0; s < count; ++s) {
    const Scale<T> scale = scales[s];
    const T of_slope = scale.weight * scale.ratio;
#pragma unroll
    for (int p = 0; p < kPairs; ++p) {
      const T exponent = e[p] * scale.ratio, one = is_near(exponent, near_from);
      const Exp2<T> k = exp2_less(exponent, one);
      value[p] += scale.weight * k.less;
      slope[p] += of_slope * k.whole;
      near[p] += one;
    }
  }
}

// What all pairs weigh. A barrier, for a whole block.
template <typename T>
__device__ Coefficients coefficients_of(const MmdInput<T>& in, int64_t item, double* scratch) {
  double mass[2], square[2];
#pragma unroll
  for (int sample = 0; sample < 2; ++sample) {
    const int64_t rows = sample ? in.m : in.n;
    const T* given = sample ? in.y_weights : in.x_weights;
    double sums[2] = {};
    if (given) {
#pragma unroll 1
      for (int64_t i = threadIdx.x; i < rows; i += kThreads) {
        const double weight = given[item * rows + i];
        sums[0] += weight;
        sums[1] += weight * weight;
      }
      sums_of_block(sums, scratch);
    }
    mass[sample] = given ? sums[0] : static_cast<double>(rows);
    square[sample] = given ? sums[1] : static_cast<double>(rows);
  }
  const bool weighted = in.x_weights || in.y_weights;
  return {
      mass[0] * mass[0] - square[0],
      mass[1] * mass[1] - square[1],
      2 * mass[0] * mass[1],
      in.x_scale,
      in.y_scale,
      in.cross_scale * (in.cross ? static_cast<double>(in.cross[item]) : 1.0),
      in.cross || in.cross_scale != 1,
      !weighted ? 1e-14 : 16 * (sizeof(T) == 4 ? 1.1920928955078125e-7 : 2.2204460492503131e-16)};
}

// What a block adds to the loss, in parts: of its rows' values within a sample and across, of the
// weights of near pairs within x, within y and across, and of far ones.
enum { kWithin, kAcross, kNearX, kNearY, kNearAcross, kFarX, kFarY, kFarAcross, kParts };

// A row's share of these.
template <typename T>
struct RowParts {
  static_assert(kParts == 2 * kTogether);
  double first[kTogether] = {}, second[kTogether] = {};

  RowParts() = default;
  __device__ RowParts(const MmdInput<T>& in, int64_t item, int64_t i, const double* sums) {
    const double weight = row_weight(in, item, i), a = weight * signed_scale(in, i);
    const bool of_y = i >= in.n;
    first[kWithin] = a * sums[kValues];
    first[kAcross] = a * sums[kValues + 1];
    first[kNearX] = of_y ? 0.0 : weight * sums[kNears];
    first[kNearY] = of_y ? weight * sums[kNears] : 0.0;
    second[kNearAcross - kTogether] = weight * sums[kNears + 1];
    second[kFarX - kTogether] = of_y ? 0.0 : weight * sums[kFars];
    second[kFarY - kTogether] = of_y ? weight * sums[kFars] : 0.0;
    second[kFarAcross - kTogether] = weight * sums[kFars + 1];
  }
};

// Sums of some parts over a block's rows, of which there are no more than a warp has lanes, or all
// of its threads'.
__device__ inline void add_rows(double (&values)[kTogether], int rows, double* parts,
                                double* scratch) {
  if (rows > kWarp) {
    sums_of_block(values, scratch);
  } else {
#pragma unroll
    for (int q = 0; q < kTogether; ++q) values[q] = sum_of_warp(values[q]);
  }
  if (threadIdx.x != 0) return;
#pragma unroll
  for (int q = 0; q < kTogether; ++q) parts[q] = values[q];
}

// What is missing from the loss, and from its sum across the samples, before they are of k - 1; for
// bandwidths of weight 1. `all` is for one of them, `parts` are those of all blocks.
struct Constants {
  double loss, across;
};

__device__ inline Constants constants_of(Coefficients all, const double* parts, int64_t scales,
                                         bool weighted) {
  const double count = static_cast<double>(scales);
  all.x *= count;
  all.y *= count;
  all.across *= count;
  const Coefficients::Pairs near{parts[kNearX], parts[kNearY], parts[kNearAcross]};
  const Coefficients::Pairs far =
      weighted ? Coefficients::Pairs{parts[kFarX], parts[kFarY], parts[kFarAcross]}
               : all.without(near);
  return {all.constant(near, far), all.x_scale * all.y_scale * far.across};
}

// The end of a call, after a block's rows have their sums.
//   sums [rows][kOfRow]: of rows from `block` times `rows` on
//   parts [kParts + scales]: room for this block's parts, where those of the bandwidths already are
template <typename T>
__device__ void finish(const MmdCall<T>& call, const MmdGradient<T>& out, int64_t item,
                       unsigned block, unsigned blocks, int rows, const double (*sums)[kOfRow],
                       double* parts, double* scratch) {
  const MmdInput<T>& in = call.in;
  const int64_t first = int64_t{block} * rows, total = in.n + in.m;
  const double between = between_samples(in, item);
  const double of_kernel = call.device.kernel_weights[0];
  const bool weighted = in.x_weights || in.y_weights;
  RowParts<T> mine;
  const int64_t i = first + threadIdx.x;
  if (static_cast<int>(threadIdx.x) < rows && i < total) {
    const double* of_row = sums[threadIdx.x];
    mine = RowParts<T>(in, item, i, of_row);
    if (out.grad_a) {  // of k - 1: less what was not subtracted for far pairs
      const double own = signed_scale(in, i), other = signed_scale(in, i < in.n ? in.n : 0);
      const double within = of_row[kValues] - of_kernel * own * of_row[kFars];
      const double across = of_row[kValues + 1] - of_kernel * other * of_row[kFars + 1];
      out.grad_a[item * total + i] = static_cast<T>(2 * (within + between * across));
    }
  }
  add_rows(mine.first, rows, parts, scratch);
  add_rows(mine.second, rows, parts + kTogether, scratch);
  sync_block();
  const int64_t of_scales = out.grad_p ? in.scales : 0;
  if (!add_parts(call.device.partials, call.device.counters, item, block, blocks,
                 static_cast<int>(kParts + of_scales), parts, scratch)) {
    return;
  }
  const Coefficients all = coefficients_of(in, item, scratch);
  if (threadIdx.x != 0) return;
  const Constants missing = constants_of(all, parts, in.scales, weighted);
  out.loss[item] =
      static_cast<T>(parts[kWithin] + between * parts[kAcross] + of_kernel * missing.loss);
  if (!out.grad_p) return;
  T* of_item = out.grad_p + item * (in.scales + 1);
  of_item[in.scales] = static_cast<T>(parts[kAcross] + of_kernel * missing.across);
#pragma unroll 1
  for (int s = 0; s < in.scales; ++s) {
    const Scale<T> scale = scale_of(call, item, s);
    of_item[s] =
        static_cast<T>(static_cast<double>(scale.weight) * parts[kParts + s] / scale.variance);
  }
}

}  // namespace cgm_fast::cuda
