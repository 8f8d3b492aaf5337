// Stream-K scheduling: work cut evenly among a fixed grid of blocks of threads, here called
// workers, whatever the number of rows. Whole output tiles each (data-parallel scheduling) would
// leave most of a GPU waiting for the last wave.
//
// An output tile is a block of rows, an iteration of it a tile of columns, here called a unit; all
// units stand in a line. A worker takes an even share of it, so of the output tiles that it meets
// only the first and the last can be another's too. The fix-up: whoever is last with one of these
// adds up the partial sums of all, in their order. Sums depend on the number of workers, not on who
// was when.
#pragma once

#include "cuda/reduce.cuh"

namespace cgm_fast::cuda {

struct StreamK {
  int64_t units, units_of_rows;  // in all, and of a block of rows
  int64_t workers;

  __device__ int64_t begin(int64_t worker) const { return units * worker / workers; }
  __device__ int64_t worker_of(int64_t unit) const { return ((unit + 1) * workers - 1) / units; }

  // Where a worker leaves its part of a block of rows.
  __device__ int64_t slot(int64_t worker, int64_t rows) const {
    return 2 * worker + (begin(worker) / units_of_rows != rows);
  }
};

// The fix-up. Where others had parts of these rows, leave mine in a slot of the workspace for the
// last of us: false, or, to the last, true and the sums over all workers of every thread's
// `numbers` and of the block's `parts` [count]. A slot has room for these, and then for the
// numbers.
template <int kCount>
__device__ bool stream_k_fixup(const StreamK& stream_k, int64_t worker, int64_t rows, double* slots,
                               unsigned* counters, double* parts, int count,
                               float (&numbers)[kCount]) {
  static_assert(kCount % 2 == 0);
  const int64_t first = stream_k.worker_of(rows * stream_k.units_of_rows);
  const int64_t last = stream_k.worker_of((rows + 1) * stream_k.units_of_rows - 1);
  if (first == last) return true;
  const int thread = static_cast<int>(threadIdx.x);
  const int64_t room = count + kThreads * kCount / 2;
  double* mine = slots + stream_k.slot(worker, rows) * room;
#pragma unroll 1
  for (int q = thread; q < count; q += kThreads) mine[q] = parts[q];
  float* floats = reinterpret_cast<float*>(mine + count);
#pragma unroll
  for (int q = 0; q < kCount; ++q) floats[q * kThreads + thread] = numbers[q];
  // A worker is the first of one block of rows at most that it does not end.
  if (!last_to_finish(counters + first, static_cast<unsigned>(last - first + 1))) return false;
#pragma unroll 1
  for (int q = thread; q < count; q += kThreads) parts[q] = 0;
#pragma unroll
  for (int q = 0; q < kCount; ++q) numbers[q] = 0;
#pragma unroll 1
  for (int64_t other = first; other <= last; ++other) {
    const double* its = slots + stream_k.slot(other, rows) * room;
#pragma unroll 1
    for (int q = thread; q < count; q += kThreads) parts[q] += load_fresh(its + q);
    const float* its_floats = reinterpret_cast<const float*>(its + count);
#pragma unroll
    for (int q = 0; q < kCount; ++q) numbers[q] += load_fresh(its_floats + q * kThreads + thread);
  }
  return true;
}

}  // namespace cgm_fast::cuda
