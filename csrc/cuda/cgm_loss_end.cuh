// What the last block of cgm_loss adds up: the loss, and what the prototypes' gradients have of the
// MMD.
#pragma once

#include "cuda/cgm_loss_block.cuh"

namespace cgm_fast::cuda {

template <typename T, int kD>
struct CgmLossEnd {
  const CgmLossBlock<T, kD>& block;

  // Total `which` of parts over the blocks of a group: of latents, of priors, and the margin loss.
  static constexpr int kTotals = 2 * kMargin + 1;
  __device__ double part(int which, int of_group) const {
    const int blocks = block.blocks_of_group();
    if (which >= kTotals || of_group >= blocks) return 0;
    const int group = which < kMargin ? kLatents : which < 2 * kMargin ? kPriors : kLatents;
    const int at = (group * blocks + of_group) * kCgmLossParts;
    return load_fresh(block.device.partials + at +
                      (which < 2 * kMargin ? which % kMargin : kMargin));
  }

  // Adds to the prototypes' gradients what their samples have of the MMD: some neighbouring lanes
  // share a number, and some of their loads are under way at once.
  __device__ void add_prior(T* grad_g) const {
    constexpr int kFlying = 8;
    const SampleOrder& order = block.tail.order;
    const int d = block.d, numbers = block.k * d;
    int lanes = kWarp;
    while (lanes > 1 && kThreads / lanes < numbers) lanes /= 2;
    const int share = static_cast<int>(threadIdx.x) % lanes, step = kThreads / lanes;
#pragma unroll 1
    for (int first = 0; first < numbers; first += step) {
      const int at = first + static_cast<int>(threadIdx.x) / lanes;
      const bool there = at < numbers;
      const int of_k = there ? block.places.row(at) : 0, f = at - of_k * d;
      const int parts = there ? order.parts(of_k) : 0;
      const T before = there && share == 0 ? load_fresh(grad_g + at) : T(0);
      double sum = 0;
#pragma unroll 1
      for (int begin = share; begin < parts; begin += kFlying * lanes) {
        T found[kFlying];
#pragma unroll
        for (int q = 0; q < kFlying; ++q) {
          const int part = begin + q * lanes;
          found[q] = 0;
          if (part < parts) {
            found[q] = load_fresh(block.device.prior + order.part(of_k, part) * d + f);
          }
        }
#pragma unroll
        for (int q = 0; q < kFlying; ++q) sum += found[q];
      }
#pragma unroll 1
      for (int bit = lanes / 2; bit > 0; bit /= 2) sum += shuffle_xor(sum, bit);
      if (there && share == 0) grad_g[at] = static_cast<T>(static_cast<double>(before) + sum);
    }
  }

  // MMD² of either group's columns [kLatents, kPriors] to the rows of latents, then of priors:
  // value and near pairs each.
  __device__ double mmd(const double* totals) const {
    const CgmLossInput<T>& in = block.in;
    const double rows = static_cast<double>(block.batch), scales = static_cast<double>(in.scales);
    const double of_pair = block.factors.of_pair;
    const auto of = [&](int of_rows, int of_columns, int which) {
      return totals[kMargin * of_rows + 2 * of_columns + which];
    };
    RelatedWeights related;
    double small = 0;
    for (const int group : {int{kLatents}, int{kPriors}}) {
      const double all = scales * (rows * rows - rows), near = of(group, group, 1);
      related.add(of_pair, near, all - near, all);
      small += of_pair * of(group, group, 0);
    }
    // The mean of both orders, for either.
    const double all = scales * rows * rows;
    const double near = 0.5 * (of(kLatents, kPriors, 1) + of(kPriors, kLatents, 1));
    for (int order = 0; order < 2; ++order) related.add(-of_pair, near, all - near, all);
    small -= of_pair * (of(kLatents, kPriors, 0) + of(kPriors, kLatents, 0));
    return small + static_cast<double>(block.tail.scales[0].weight) * related.constant();
  }

  __device__ void run(bool of_prior) const {
    const CgmLossInput<T>& in = block.in;
    const CgmLossGradient<T>& out = block.out;
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    const int warp = static_cast<int>(threadIdx.x) / kWarp;
    double totals[2];  // of a warp; their first loads are under way with those of add_prior
#pragma unroll
    for (int q = 0; q < 2; ++q) totals[q] = part(warp + q * kWarps, lane);
    if (of_prior) add_prior(out.grad_g);
#pragma unroll
    for (int q = 0; q < 2; ++q) {
      const int which = warp + q * kWarps;
#pragma unroll 4
      for (int at = lane + kWarp; at < block.blocks_of_group(); at += kWarp) {
        totals[q] += part(which, at);
      }
      totals[q] = sum_of_warp(totals[q]);
      if (which < kTotals && lane == 0) block.memory.totals[which] = totals[q];
    }
    sync_block();
    if (threadIdx.x != 0) return;
    const double of_mmd = mmd(block.memory.totals);
    const double of_margin = in.margin.scale * block.memory.totals[2 * kMargin];
    out.terms[0] = static_cast<T>(of_mmd);
    out.terms[1] = static_cast<T>(of_margin);
    out.loss[0] = static_cast<T>(in.mmd_weight * of_mmd + in.margin_weight * of_margin);
  }
};

}  // namespace cgm_fast::cuda
