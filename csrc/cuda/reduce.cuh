// Sums over blocks, in an order that does not depend on which finished first.
#pragma once

#include "cuda/device.cuh"

namespace cgm_fast::cuda {

constexpr int kThreads = 256, kWarps = kThreads / kWarp;  // of every block

// Sums of a block that are added up between the same two barriers, at most, and room for them.
constexpr int kTogether = 6, kScratch = kTogether * kWarps;

// Sums over a block of kCount numbers per thread, to all of them; `scratch` [kScratch].
template <int kCount>
__device__ void sums_of_block(double (&values)[kCount], double* scratch) {
  static_assert(kCount <= kTogether);
#pragma unroll
  for (int q = 0; q < kCount; ++q) values[q] = sum_of_warp(values[q]);
  sync_block();  // nobody still reads the sums before
  if (threadIdx.x % kWarp == 0) {
#pragma unroll
    for (int q = 0; q < kCount; ++q) scratch[threadIdx.x / kWarp * kCount + q] = values[q];
  }
  sync_block();
#pragma unroll
  for (int q = 0; q < kCount; ++q) values[q] = 0;
#pragma unroll 1
  for (int warp = 0; warp < kWarps; ++warp) {
#pragma unroll
    for (int q = 0; q < kCount; ++q) values[q] += scratch[warp * kCount + q];
  }
}

__device__ inline double sum_of_block(double value, double* scratch) {
  double values[1] = {value};
  sums_of_block(values, scratch);
  return values[0];
}

// Whether this block is the last of its batch item; every thread's writes are then to be seen. One
// thread's fence is enough: the barrier orders the block's writes before it, and a fence is
// cumulative. Behind the count it orders what the last block reads after its own barrier. Meanwhile
// the other warps may do something of use.
template <typename Meanwhile>
__device__ bool last_to_finish(unsigned* counter, unsigned blocks, const Meanwhile& meanwhile) {
  sync_block();
  bool last = false;
  if (threadIdx.x == 0) {
    fence();
    last = count_up(counter, blocks - 1) == blocks - 1;
    if (last) fence();
  }
  meanwhile();
  return any_in_block(last);
}
__device__ inline bool last_to_finish(unsigned* counter, unsigned blocks) {
  return last_to_finish(counter, blocks, [] {});
}

// What blocks leave for the last of them to add up: `count` numbers each, [blocks, count].
struct Partials {
  double* of_item;
  unsigned blocks;
  int count;

  // Write a block's numbers; whether this block is the last, to all its threads.
  __device__ bool leave(const double* parts, unsigned block, unsigned* counter) const {
#pragma unroll 1
    for (int q = static_cast<int>(threadIdx.x); q < count; q += kThreads) {
      of_item[int64_t{block} * count + q] = parts[q];
    }
    return last_to_finish(counter, blocks);
  }

  // Number q of a block.
  __device__ double of(int64_t block, int q) const {
    return load_fresh(of_item + block * count + q);
  }

  // The sum of number q over all blocks, by a block of threads and to all of them.
  __device__ double sum(int q, double* scratch) const {
    double sum = 0;
#pragma unroll 1
    for (int64_t block = threadIdx.x; block < blocks; block += kThreads) sum += of(block, q);
    return sum_of_block(sum, scratch);
  }
};

}  // namespace cgm_fast::cuda
