#include "cpu/probe.h"

#include <algorithm>
#include <chrono>
#include <vector>

#include "cpu/isa.h"
#include "cpu/probe_kernel.h"
#include "cpu/threads.h"

namespace cgm_fast {

CGM_FAST_KERNELS(ProbeKernels, probe_kernels)

namespace {

// Steps per second of `run` on every thread, the best of several tries.
template <typename Run>
double rate(int threads, int64_t steps, const Run& run) {
  constexpr int kTries = 8;
  double best = 0;
  for (int attempt = 0; attempt < kTries; ++attempt) {
    std::vector<float> kept(threads);  // the results, lest the compiler see nobody needs them
    const auto begin = std::chrono::steady_clock::now();
    parallel_parts(threads, threads, [&](int part) { kept[part] = run(steps); });
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
    best = std::max(best, double(threads) * double(steps) / seconds.count());
  }
  return best;
}

}  // namespace

Limits measure_limits(int threads) {
  const ProbeKernels<float>& kernels = probe_kernels<float>();
  const double vector = kernels.lanes;
  return {rate(threads, 1000000, kernels.multiply_adds) * kProbeSums * vector,
          rate(threads, 500000, kernels.exponentials) * (kProbeSums / 3) * vector};
}

}  // namespace cgm_fast
