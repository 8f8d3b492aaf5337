// The groups of rows that a problem's z is made of: a block's rows and a tile's columns lie within
// one of them each. What a block adds up over the columns of every group, the last block to finish
// turns into the block sums S and the loss.
#pragma once

#include "block_sums.h"
#include "cuda/read.cuh"
#include "cuda/reduce.cuh"
#include "mmd.h"

namespace cgm_fast::cuda {

// A block's rows, all of one group.
struct BlockOfRows {
  int group, here;  // rows that there are
  int64_t first;    // of z

  // Whether columns [begin, begin + count) have any of them.
  __device__ bool among(int64_t begin, int64_t count) const {
    return begin < first + here && first < begin + count;
  }

  // Whether some of them are in [begin, end).
  __device__ bool wanted(int64_t begin, int64_t end) const {
    return first < end && first + here > begin;
  }
};

// Block number `block` of an item, of `rows` rows at most; a power of two, if that is said.
template <bool kPowerOfTwo = true, typename T>
__device__ BlockOfRows block_of_rows(const MmdProblem<T>& in, unsigned block, int rows) {
  int64_t first = int64_t{block} * rows, begin = 0, size = 0;  // first: were all blocks full
  int group = 0;
#pragma unroll 1
  while (true) {
    const int64_t end = in.begins[group + 1];
    size = end - begin;
    const int64_t padded =
        kPowerOfTwo ? (size + rows - 1) & -int64_t{rows} : (size + rows - 1) / rows * rows;
    if (first < padded) break;
    first -= padded;
    begin = end;
    ++group;
  }
  const int64_t left = size - first;
  return {group, static_cast<int>(left < rows ? left : rows), begin + first};
}

// A tile of columns, all of one group. The tiles of all groups stand in a line.
template <int kColumns>
struct ColumnTile {
  int group, here;
  int64_t first;
  bool last;  // of its group

  template <typename T>
  __device__ static ColumnTile at(const MmdProblem<T>& in, int tile) {
    const BlockOfRows of = block_of_rows<false>(in, static_cast<unsigned>(tile), kColumns);
    return {of.group, of.here, of.first, of.first + of.here == in.begins[of.group + 1]};
  }

  // The one after it, which there has to be.
  template <typename T>
  __device__ ColumnTile next(const MmdProblem<T>& in) const {
    const int64_t begin = first + here;
    int of = group;
#pragma unroll 1
    while (begin >= in.begins[of + 1]) ++of;
    const int64_t left = in.begins[of + 1] - begin;
    return {of, static_cast<int>(left < kColumns ? left : kColumns), begin, left <= kColumns};
  }
};

// Rows of z from `first` on, as far as its group goes: these are all x's or all y's.
template <typename T>
__device__ Samples rows_of(const MmdProblem<T>& in, int64_t item, int64_t first) {
  return first < in.x_rows ? rows_from(in.x, item, first)
                           : rows_from(in.y, item, first - in.x_rows);
}

// Of an item, [groups, groups].
template <typename T>
__device__ const double* relation_of(const MmdProblem<T>& in, int64_t item) {
  return in.relation + (in.relation_per_item ? item * in.groups * in.groups : 0);
}

// A row's own weight.
template <typename T>
__device__ T row_weight(const MmdProblem<T>& in, int64_t item, int64_t i) {
  return in.weights ? in.weights[item * in.rows + i] : T(1);
}

// What a block has of the columns of each group: sums over its rows i and the group's columns j of
// w_i w_j times k - k(0) for near pairs (k >= 1/2) and k for far ones; of w_i w_j over near pairs;
// and over far ones. The weights turn the first into sums of k - k(0) (block_sums.h), so that
// nothing is left of 1 - 1 where k is small; without row weights those of far pairs are what near
// ones leave, and may be zero.
enum { kValue, kNear, kFar, kOfGroup };

// Adds some of them up over a block, to `parts` [groups, kOfGroup].
__device__ inline void add_to_group(double (&sums)[kOfGroup], int group, double* parts,
                                    double* scratch) {
  sums_of_block(sums, scratch);
  if (threadIdx.x != 0) return;
#pragma unroll
  for (int q = 0; q < kOfGroup; ++q) parts[kOfGroup * group + q] += sums[q];
}

// Blocks of an item before each group's, [groups + 1].
template <typename T>
__device__ void count_blocks(const MmdProblem<T>& in, unsigned rows, unsigned* first_block) {
  if (threadIdx.x == 0) {
    unsigned blocks = first_block[0] = 0;
#pragma unroll 1
    for (int g = 0; g < in.groups; ++g) {
      blocks += (static_cast<unsigned>(in.begins[g + 1] - in.begins[g]) + rows - 1) / rows;
      first_block[g + 1] = blocks;
    }
  }
  sync_block();
}

// Calls `use(g, h, sums)` for every pair of groups g <= h in one thread, with the sums over blocks
// of what those of either group have of the other, kCount numbers: the mean of both orders. Some
// neighbouring lanes share a pair.
template <int kCount, typename Use>
__device__ void each_pair_of_groups(int groups, const unsigned* first_block,
                                    const Partials& partials, const Use& use) {
  const int entries = groups * groups;
  int lanes = kWarp;
  while (lanes > 1 && entries * lanes > kThreads) lanes /= 2;
  const int share = static_cast<int>(threadIdx.x) % lanes;
#pragma unroll 1
  for (int first = 0; first < entries; first += kThreads / lanes) {
    const int entry = first + static_cast<int>(threadIdx.x) / lanes;
    const int g = entry / groups, h = entry % groups;
    const bool mine = entry < entries && g <= h;
    double sums[kCount] = {};
#pragma unroll 1
    for (int order = 0; order < 2; ++order) {
      if (!mine || (order == 1 && g == h)) continue;
      const int rows = order ? h : g, columns = order ? g : h;
#pragma unroll 2
      for (int64_t b = first_block[rows] + share; b < first_block[rows + 1]; b += lanes) {
#pragma unroll
        for (int q = 0; q < kCount; ++q) sums[q] += partials.of(b, kCount * columns + q);
      }
    }
#pragma unroll
    for (int q = 0; q < kCount; ++q) {
#pragma unroll 1
      for (int bit = lanes / 2; bit > 0; bit /= 2) sums[q] += shuffle_xor(sums[q], bit);
      if (g != h) sums[q] *= 0.5;
    }
    if (mine && share == 0) use(g, h, sums);
  }
}

// What all rows of each group weigh, and the sum of their weights' squares: [groups, 2].
template <typename T>
__device__ void load_masses(const MmdProblem<T>& in, int64_t item, double* masses,
                            double* scratch) {
#pragma unroll 1
  for (int g = 0; g < in.groups; ++g) {
    const int64_t begin = in.begins[g], end = in.begins[g + 1];
    double sums[2] = {static_cast<double>(end - begin), static_cast<double>(end - begin)};
    if (in.weights) {
      sums[0] = sums[1] = 0;
#pragma unroll 1
      for (int64_t i = begin + threadIdx.x; i < end; i += kThreads) {
        const double weight = row_weight(in, item, i);
        sums[0] += weight;
        sums[1] += weight * weight;
      }
      sums_of_block(sums, scratch);
    }
    if (threadIdx.x == 0) {
      masses[2 * g] = sums[0];
      masses[2 * g + 1] = sums[1];
    }
  }
  sync_block();
}

// The loss, to all threads of the last block, and S [groups, groups] unless it is null. All
// bandwidths have the weight `of_kernel`, or all pairs are near.
//   masses [2 groups]: room
template <typename T>
__device__ double close(const MmdProblem<T>& in, int64_t item, double of_kernel,
                        const unsigned* first_block, const Partials& partials, double* block_sums,
                        double* masses, double* scratch) {
  load_masses(in, item, masses, scratch);
  const int groups = static_cast<int>(in.groups);
  const double* relation = relation_of(in, item);
  RelatedWeights related;
  double small = 0;
  each_pair_of_groups<kOfGroup>(
      groups, first_block, partials, [&](int g, int h, const double (&sums)[kOfGroup]) {
        double all = masses[2 * g] * masses[2 * h];
        if (g == h) all -= masses[2 * g + 1];
        all *= static_cast<double>(in.scales);
        const double near = sums[kNear], far = in.weights ? sums[kFar] : all - near;
        const int here = g * groups + h, there = h * groups + g;
        related.add(relation[here], near, far, all);
        small += relation[here] * sums[kValue];
        if (g != h) {
          related.add(relation[there], near, far, all);
          small += relation[there] * sums[kValue];
        }
        if (!block_sums) return;
        const double sum = sums[kValue] + of_kernel * constant_of_block(near, far, all);
        block_sums[here] = block_sums[there] = sum;
      });
  double sums[] = {small,          related.of_near,   related.of_far,
                   related.of_all, related.near_size, related.far_size};
  sums_of_block(sums, scratch);
  related = {sums[1], sums[2], sums[3], sums[4], sums[5]};
  return sums[0] + of_kernel * related.constant();
}

}  // namespace cgm_fast::cuda
