// Loops of nothing but multiply-adds, and of nothing but exponentials.
#pragma once

#include <stdint.h>

namespace cgm_fast {

constexpr int kProbeSums = 12;

template <typename T>
struct ProbeKernels {
  int lanes;
  T (*multiply_adds)(int64_t steps);  // kProbeSums vectors a step; returns what must not be lost
  T (*exponentials)(int64_t steps);   // kProbeSums / 3 vectors a step
};

// The kernels in the best instruction set that this processor has.
template <typename T>
const ProbeKernels<T>& probe_kernels();

}  // namespace cgm_fast
