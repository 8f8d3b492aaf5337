// The samples of a batch by their prototypes, so that a prototype's are neighbours: a stable
// counting sort.
//
// Blocks take the prototypes' samples in this order. What a block adds up for one prototype is then
// one row of `prior`, and a prototype has few of these, however many samples it has.
#pragma once

#include "cuda/device.cuh"
#include "cuda/shared.cuh"

namespace cgm_fast::cuda {

struct SampleOrder {
  int *begins, *ranks, *samples;  // [k + 1], [rows], [rows]: of the prototypes, and by place
  int rows, k, shift;             // a block has 2^shift rows: 4, or 8

  __host__ __device__ SampleOrder(SharedLayout& layout, int64_t rows, int64_t k, int of_block)
      : begins(layout.array<int>(k + 1)),
        ranks(layout.array<int>(rows)),
        samples(layout.array<int>(rows)),
        rows(static_cast<int>(rows)),
        k(static_cast<int>(k)),
        shift(of_block == 4 ? 2 : 3) {}

  // By one warp, from each sample's prototype `own` [rows]. A barrier has to follow.
  __device__ void sort(const int* own) const {
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
#pragma unroll 1
    for (int at = lane; at <= k; at += kWarp) begins[at] = 0;
    sync_warp();
    // How many samples before it have a sample's prototype.
#pragma unroll 1
    for (int first = 0; first < rows; first += kWarp) {
      const int i = first + lane, of_k = i < rows ? own[i] : -1;
      const unsigned same = match_lanes(of_k);
      const int before = count_bits(same & ((1u << lane) - 1)), count = i < rows ? begins[of_k] : 0;
      sync_warp();
      if (i < rows) ranks[i] = count + before;
      if (i < rows && before == 0) begins[of_k] = count + count_bits(same);
      sync_warp();
    }
    // From counts to their sums over the prototypes before.
    int total = 0;
#pragma unroll 1
    for (int first = 0; first <= k; first += kWarp) {
      const int at = first + lane;
      int sum = at < k ? begins[at] : 0, before = 0;
#pragma unroll 1
      for (int bit = 1; bit < kWarp; bit *= 2) {
        const int other = shuffle_xor(sum, bit);
        if (lane & bit) before += other;
        sum += other;
      }
      if (at <= k) begins[at] = total + before;
      total += sum;
    }
    sync_warp();
#pragma unroll 1
    for (int i = lane; i < rows; i += kWarp) samples[begins[own[i]] + ranks[i]] = i;
  }

  // Of prototype `of_k`, how many rows of `prior` blocks leave, and number q.
  __device__ int parts(int of_k) const {
    const int begin = begins[of_k], end = begins[of_k + 1];
    return begin < end ? ((end - 1) >> shift) - (begin >> shift) + 1 : 0;
  }
  __device__ int part(int of_k, int q) const {
    return q == 0 ? begins[of_k] : ((begins[of_k] >> shift) + q) << shift;
  }
};

}  // namespace cgm_fast::cuda
