// The CGM latent objective of a batch in one launch: assignment, noisy latents, MMD², margin loss
// and all gradients.
//
// Distances to prototypes are so cheap at a batch's size that every block assigns all samples by
// itself, rather than wait for another. Then a block has some rows of r + sigma e, or of g_k + tau
// e', against all of both, or a prototype's gradient of the margin loss. A lane has a row, in
// registers, and some columns, from shared memory; distances are plain differences. What is left
// needs all blocks, and the last to finish does it: the loss, and what the prototypes' gradients
// have of the MMD.
//
// At a batch's size the time is latency: see the table in cgm_fast/ops/cgm_loss/README.md before
// adding a barrier, or a load that waits for another.
#pragma once

#include "cuda/cgm_loss_end.cuh"

namespace cgm_fast::cuda {

template <typename T, int kD>
__global__ void __launch_bounds__(kThreads, kD * sizeof(T) <= 64 ? 2 : 1)
    cgm_loss_kernel(const CgmLossInput<T> in, const CgmLossGradient<T> out,
                    const CgmLossDevice<T> device, const CgmLossFactors<T> factors) {
  SharedLayout layout(shared_memory<unsigned char>());
  CgmLossMemory<T, kD>& memory = *layout.array<CgmLossMemory<T, kD>>(1);
  const CgmLossTail<T> tail(layout, in, device.rows);
  const CgmLossBlock<T, kD> block(in, out, device, factors, tail, memory);
  const bool of_prior = out.grad_g && !in.detach_prior;
  const CgmLossLane lane(device.rows);
  block.begin();
  block.assign();

  T sums[kD] = {}, loss = 0, values[kOfGroups] = {}, nears[kOfGroups] = {};
  if (block.group == kPrototypes) {
    block.visit_samples(sums);
  } else {
    if (block.group == kLatents) {
      block.visit_prototypes(lane, loss, sums);
    } else {
      if (threadIdx.x < kWarp) tail.order.sort(tail.own);
      sync_block();
    }
    block.visit_pairs(lane, values, nears, sums);
  }
  const double parts[kCgmLossParts] = {values[kLatents], nears[kLatents], values[kPriors],
                                       nears[kPriors], loss};
  leave_sums(sums, parts, device.rows, memory);
  sync_block();
  T* prior = of_prior ? device.prior : nullptr;
  block.write(block.group == kLatents ? out.grad_r : block.group == kPriors ? prior : out.grad_g);

  // The last block needs the order of the samples, which blocks of priors have.
  const auto meanwhile = [&] {
    if (of_prior && block.group != kPriors && threadIdx.x / kWarp == 1) tail.order.sort(tail.own);
  };
  if (!last_to_finish(device.counter, gridDim.x, meanwhile)) return;
  CgmLossEnd<T, kD>{block}.run(of_prior);
}

}  // namespace cgm_fast::cuda
