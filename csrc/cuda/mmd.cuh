// What the kernels of MMD² share: constants in shared memory, signs, and the end of a call.
//
// A block takes some rows against all columns, so that a row's sums never leave it; what the loss
// needs of it goes to `partials`, which the last block to finish adds in their order.
#pragma once

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

// How a row of z = [x; y] counts in the loss: its sample's sign, scale and weight.
template <typename T>
__device__ T signed_weight(const MmdInput<T>& in, int64_t item, int64_t i) {
  if (i < in.n) {
    return static_cast<T>(in.x_scale) * (in.x_weights ? in.x_weights[item * in.n + i] : T(1));
  }
  const int64_t j = i - in.n;
  return -static_cast<T>(in.y_scale) * (in.y_weights ? in.y_weights[item * in.m + j] : T(1));
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

// k - 1 of some pairs where the first bandwidth's exponents are e, and -2 h_0 dk/du: all
// bandwidths. Each is read once for these pairs, whose sums go on side by side.
template <typename T, int kPairs>
__device__ void kernels_at(const T (&e)[kPairs], const Scale<T>* scales, int64_t count,
                           T (&value)[kPairs], T (&slope)[kPairs]) {
#pragma unroll
  for (int p = 0; p < kPairs; ++p) value[p] = slope[p] = 0;
#pragma unroll 1
  for (int64_t s = 0; s < count; ++s) {
    const Scale<T> scale = scales[s];
    const T of_slope = scale.weight * scale.ratio;
#pragma unroll
    for (int p = 0; p < kPairs; ++p) {
      const Exp2<T> k = exp2_less_one(e[p] * scale.ratio);
      value[p] += scale.weight * k.less_one;
      slope[p] += of_slope * k.whole;
    }
  }
}

// The end of a call, after a block's rows have their sums over a_j (k - 1).
//   rows [count][2]: within the row's own sample, and across; of `rows` rows from `first` on
//   parts [2 + scales]: room for this block's parts, where those of the bandwidths already are
template <typename T>
__device__ void finish(const MmdCall<T>& call, const MmdGradient<T>& out, int64_t item,
                       unsigned block, unsigned blocks, int rows, const double (*sums)[2],
                       double* parts, double* scratch) {
  const MmdInput<T>& in = call.in;
  const int64_t first = int64_t{block} * rows, total = in.n + in.m;
  const double between = between_samples(in, item);
  double within = 0, across = 0;
  const int64_t i = first + threadIdx.x;
  if (static_cast<int>(threadIdx.x) < rows && i < total) {
    const double a = signed_weight(in, item, i);
    within = a * sums[threadIdx.x][0];
    across = a * sums[threadIdx.x][1];
    if (out.grad_a) {
      out.grad_a[item * total + i] =
          static_cast<T>(2 * (sums[threadIdx.x][0] + between * sums[threadIdx.x][1]));
    }
  }
  // Of one warp's rows, where there are no more.
  within = rows > kWarp ? sum_of_block(within, scratch) : sum_of_warp(within);
  across = rows > kWarp ? sum_of_block(across, scratch) : sum_of_warp(across);
  if (threadIdx.x == 0) {
    parts[0] = within;
    parts[1] = across;
  }
  sync_block();
  double of_loss = 0;  // the first thread's
  add_parts(call.device.partials, call.device.counters, item, block, blocks,
            static_cast<int>(2 + (out.grad_p ? in.scales : 0)), parts, scratch,
            [&](int q, double sum) {
              if (q == 0) {
                of_loss = sum;
              } else if (q == 1) {
                out.loss[item] = static_cast<T>(of_loss + between * sum);
                if (out.grad_p) {
                  out.grad_p[item * (in.scales + 1) + in.scales] = static_cast<T>(sum);
                }
              } else {
                const Scale<T> scale = scale_of(call, item, q - 2);
                out.grad_p[item * (in.scales + 1) + q - 2] =
                    static_cast<T>(static_cast<double>(scale.weight) * sum / scale.variance);
              }
            });
}

}  // namespace cgm_fast::cuda
