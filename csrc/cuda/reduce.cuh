// Sums over blocks, in an order that does not depend on which finished first.
#pragma once

#include "cuda/device.cuh"

namespace cgm_fast::cuda {

constexpr int kThreads = 256, kWarps = kThreads / kWarp;  // of every block

// The sum over a block of one number per thread, to all of them; `scratch` [kWarps].
__device__ inline double sum_of_block(double value, double* scratch) {
  value = sum_of_warp(value);
  sync_block();  // nobody still reads the sums before
  if (threadIdx.x % kWarp == 0) scratch[threadIdx.x / kWarp] = value;
  sync_block();
  double sum = 0;
#pragma unroll 1
  for (int warp = 0; warp < kWarps; ++warp) sum += scratch[warp];
  return sum;
}

// Whether this block is the last of its batch item; every thread's writes are then to be seen.
__device__ inline bool last_to_finish(unsigned* counter, unsigned blocks) {
  fence();
  sync_block();
  const bool last = threadIdx.x == 0 && count_up(counter, blocks - 1) == blocks - 1;
  return any_in_block(last);
}

// Write a block's `count` parts; the last block calls `use(index, sum over all blocks)`, from its
// first thread, in the order of the indices. Whether this block is the last, to all its threads.
template <typename Use>
__device__ bool add_parts(double* partials, unsigned* counter, int64_t item, unsigned block,
                          unsigned blocks, int count, const double* parts, double* scratch,
                          const Use& use) {
  double* of_item = partials + item * blocks * count;
#pragma unroll 1
  for (int q = static_cast<int>(threadIdx.x); q < count; q += kThreads) {
    of_item[int64_t{block} * count + q] = parts[q];
  }
  if (!last_to_finish(counter + item, blocks)) return false;
#pragma unroll 1
  for (int q = 0; q < count; ++q) {
    double sum = 0;
#pragma unroll 1
    for (int64_t b = threadIdx.x; b < blocks; b += kThreads) {
      sum += load_fresh(of_item + b * count + q);
    }
    sum = sum_of_block(sum, scratch);
    if (threadIdx.x == 0) use(q, sum);
  }
  return true;
}

}  // namespace cgm_fast::cuda
