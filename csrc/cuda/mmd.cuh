// What the kernels of MMD² share: constants in shared memory, kernels of pairs, and the end of a
// call.
//
// A block takes some rows of a group against all columns, so that a row's sums never leave it; what
// the loss needs of it goes to `partials`, which the last block to finish adds in their order.
#pragma once

#include "cuda/groups.cuh"
#include "cuda/math.cuh"
#include "cuda/read.cuh"
#include "cuda/shared.cuh"

namespace cgm_fast::cuda {

template <typename T>
struct MmdCall {
  MmdProblem<T> in;
  MmdDevice<T> device;
};

// What tensor cores multiply: float32 samples as two tf32 parts each, or rounded to tf32; or half
// samples as they are.
enum class Numbers { tf32x3, tf32, bfloat16, float16 };

// |a|² + |b|² - 2ab loses what |a|² has over the distance: largest |z|² for it, as an exponent
// of 2.
constexpr float kFarSquare = 24;

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

// What a block has in shared memory behind its kernel's own.
template <typename T>
struct MmdTail {
  double* parts;          // [groups, kOfGroup], and what else a block adds up
  Scale<T>* scales;       // [scales]
  unsigned* first_block;  // [groups + 1], for the last block

  __host__ __device__ MmdTail(SharedLayout& layout, int64_t groups, int64_t scales, int64_t besides)
      : parts(layout.array<double>(kOfGroup * groups + besides)),
        scales(layout.array<Scale<T>>(scales)),
        first_block(layout.array<unsigned>(groups + 1)) {}

  // Beside the groups' parts are those of the variances.
  __host__ __device__ MmdTail(SharedLayout& layout, const MmdProblem<T>& in)
      : MmdTail(layout, in.groups, in.scales, in.scales) {}

  // A barrier has to follow.
  __device__ void load(const MmdCall<T>& call, int64_t item) const {
#pragma unroll 1
    for (int s = static_cast<int>(threadIdx.x); s < call.in.scales; s += kThreads) {
      scales[s] = scale_of(call, item, s);
    }
    clear_parts(call.in);
  }

  // The same.
  __device__ void clear_parts(const MmdProblem<T>& in) const {
#pragma unroll 1
    for (int q = static_cast<int>(threadIdx.x); q < kOfGroup * in.groups; q += kThreads) {
      parts[q] = 0;
    }
  }
};

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
  const T far_less = near_from == -1 ? T(0) : T(1);
#pragma unroll
  for (int p = 0; p < kPairs; ++p) value[p] = slope[p] = near[p] = 0;
#pragma unroll 1
  for (int64_t s = 0; s < count; ++s) {
    const Scale<T> scale = scales[s];
    const T of_slope = scale.weight * scale.ratio;
#pragma unroll
    for (int p = 0; p < kPairs; ++p) {
      const T exponent = e[p] * scale.ratio, one = is_near(exponent, near_from);
      const Exp2<T> k = exp2_near(exponent, far_less);
      value[p] += scale.weight * k.less;
      slope[p] += of_slope * k.whole;
      near[p] += one;
    }
  }
}

// What a row adds up over columns of one group: values, and what near and far pairs weigh.
template <typename T>
struct OfColumns {
  T value, near, far;

  // The derivative of the loss in the row's weight, half of it, where the group's relation is 1: of
  // k - k(0), less what was not subtracted for far pairs.
  __device__ double of_weight(T of_kernel) const {
    return static_cast<double>(value) - static_cast<double>(of_kernel) * static_cast<double>(far);
  }

  // Adds them up over a block whose threads have a row each that weighs so much; or none is
  // `there`, whose sums may be anything.
  __device__ void add(bool there, double weight, int group, double* parts, double* scratch) const {
    double sums[kOfGroup] = {};
    if (there) {
      sums[kValue] = weight * static_cast<double>(value);
      sums[kNear] = weight * static_cast<double>(near);
      sums[kFar] = weight * static_cast<double>(far);
    }
    add_to_group(sums, group, parts, scratch);
  }
};

// Where a row's gradient goes.
template <typename T>
__device__ T* gradient_of(const MmdProblem<T>& in, const MmdValue<T>& out, int64_t item,
                          int64_t i) {
  return out.z + (item * (out.row_end - out.row_begin) + i - out.row_begin) * in.d;
}

// The end of a call, after a block's parts are complete.
template <typename T>
__device__ void finish(const MmdCall<T>& call, const MmdValue<T>& out, int64_t item, unsigned block,
                       const MmdTail<T>& tail, double* scratch) {
  const MmdProblem<T>& in = call.in;
  const int of_groups = kOfGroup * static_cast<int>(in.groups);
  const int count = of_groups + static_cast<int>(out.variance ? in.scales : 0);
  const unsigned blocks = call.device.blocks;
  const Partials partials{call.device.partials + item * blocks * count, blocks, count};
  sync_block();
  if (!partials.leave(tail.parts, block, call.device.counters + item)) return;
  count_blocks(in, static_cast<unsigned>(call.device.rows), tail.first_block);
  double* block_sums = out.relation ? out.relation + item * in.groups * in.groups : nullptr;
  const double loss = close(in, item, call.device.kernel_weights[0], tail.first_block, partials,
                            block_sums, tail.parts, scratch);
  if (threadIdx.x == 0) out.loss[item] = static_cast<T>(loss);
  if (!out.variance) return;
#pragma unroll 1
  for (int s = 0; s < in.scales; ++s) {
    const Scale<T> scale = scale_of(call, item, s);
    const double sum = partials.sum(of_groups + s, scratch);
    if (threadIdx.x != 0) continue;
    out.variance[item * in.scales + s] =
        static_cast<T>(static_cast<double>(scale.weight) * sum / scale.variance);
  }
}

}  // namespace cgm_fast::cuda
