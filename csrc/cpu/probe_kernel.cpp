// What this processor can do at most, measured: the limit that benchmarks compare with. Compiled
// once per instruction set.
#include "cpu/probe_kernel.h"

#include "cpu/simd.h"

namespace cgm_fast {
namespace {

// More independent sums than a multiply-add takes cycles, in registers.
template <typename T>
T multiply_adds(int64_t steps) {
  constexpr int kSums = kProbeSums;
  Vec<T> sum[kSums];
  CGM_UNROLL for (int i = 0; i < kSums; ++i) sum[i] = splat(T(i));
  const Vec<T> factor = splat(T(0.999)), term = splat(T(1e-3));
  for (int64_t step = 0; step < steps; ++step)
    CGM_UNROLL for (int i = 0; i < kSums; ++i) sum[i] = sum[i] * factor + term;
  CGM_UNROLL for (int i = 1; i < kSums; ++i) sum[0] += sum[i];
  return sum[0][0];
}

template <typename T>
T exponentials(int64_t steps) {
  constexpr int kSums = kProbeSums / 3;
  Vec<T> sum[kSums] = {}, e = splat(T(-1));
  for (int64_t step = 0; step < steps; ++step, e -= T(1e-6))
    CGM_UNROLL for (int i = 0; i < kSums; ++i) {
      Vec<T> power, rest;
      split_exp2<T>(e - T(i), power, rest);
      sum[i] += rest + (power - T(1));
    }
  CGM_UNROLL for (int i = 1; i < kSums; ++i) sum[0] += sum[i];
  return sum[0][0];
}

template <typename T>
constexpr ProbeKernels<T> kernels = {Simd<T>::kLanes, multiply_adds<T>, exponentials<T>};

}  // namespace

namespace CGM_FAST_ISA {
extern const ProbeKernels<float> probe_kernels_float = kernels<float>;
extern const ProbeKernels<double> probe_kernels_double = kernels<double>;
}  // namespace CGM_FAST_ISA

}  // namespace cgm_fast
