// The CGM latent objective of a batch in one launch: assignment, noisy latents, MMD², margin loss
// and all gradients.
//
// Distances to prototypes are so cheap at a batch's size that every block assigns all samples by
// itself, rather than wait for another. Then a block has some rows of r + sigma e, or of g_k + tau
// e', against all of both, as in mmd_rows.cuh, or a prototype's gradient of the margin loss. What
// is left needs all blocks, and the last to finish does it: the loss, and the gradient from a
// prototype's own samples.
#pragma once

#include "cgm_loss.h"
#include "cuda/mmd_rows.cuh"
#include "cuda/prototype_margin.cuh"

namespace cgm_fast::cuda {

// The MMD's groups of rows: latents, and their prototypes'. Blocks that come after these have a
// prototype each.
enum { kLatents, kPriors, kGroups, kPrototypes = kGroups };

// What a block adds up: the parts of MMD², then the margin loss.
constexpr int kMargin = kOfGroup * kGroups, kLossParts = kMargin + 1;

// What a block has in shared memory behind RowsMemory.
template <typename T>
struct CgmLossTail : MmdTail<T> {
  double* relation;  // [kGroups, kGroups]
  int64_t* begins;   // [kGroups + 1]
  int* own;          // [batch], of each sample its prototype

  __host__ __device__ CgmLossTail(SharedLayout& layout, const CgmLossInput<T>& in)
      : MmdTail<T>(layout, kGroups, in.scales, kLossParts - kMargin),
        relation(layout.array<double>(kGroups * kGroups)),
        begins(layout.array<int64_t>(kGroups + 1)),
        own(layout.array<int>(in.margin.rows)) {}

  // The MMD's own view of it. A barrier has to follow.
  __device__ MmdCall<T> call(const CgmLossInput<T>& in, const CgmLossDevice<T>& device) const {
    const int64_t batch = in.margin.rows;
    const double of_pair = 1.0 / (static_cast<double>(batch) * static_cast<double>(batch));
    const int at = static_cast<int>(threadIdx.x);
    if (at < kGroups * kGroups) relation[at] = at / kGroups == at % kGroups ? of_pair : -of_pair;
    if (at <= kGroups) begins[at] = at * batch;
    MmdCall<T> call{};
    call.in.rows = kGroups * batch;
    call.in.d = in.margin.d;
    call.in.groups = kGroups;
    call.in.scales = in.scales;
    call.in.begins = begins;
    call.in.relation = relation;
    call.in.variance = device.variances;
    call.device.kernel_weights = device.kernel_weights;
    return call;
  }
};

template <typename T, int kD>
__device__ void load_row(const Samples& of, int64_t row, int d, T (&values)[kD]) {
#pragma unroll
  for (int f = 0; f < kD; ++f) values[f] = f < d ? load_plain<T>(of, 0, row, f) : T(0);
}

template <typename T, int kD>
__device__ T squared_distance(const T (&a)[kD], const Samples& of, int64_t row, int d) {
  T u = 0;
#pragma unroll
  for (int f = 0; f < kD; ++f) {
    if (f % 16 == 0) compiler_barrier();
    if (f < d) {
      const T difference = a[f] - load_plain<T>(of, 0, row, f);
      u = fma(difference, difference, u);
    }
  }
  return u;
}

// sums += w (a - b), where the row b is read again: with many features registers are
// too few to keep it, and most often w is zero.
template <typename T, int kD>
__device__ void add_difference(T w, const T (&a)[kD], const Samples& of, int64_t row, int d,
                               T (&sums)[kD]) {
  if (w == 0) return;
#pragma unroll
  for (int f = 0; f < kD; ++f) {
    if (f % 16 == 0) compiler_barrier();
    if (f < d) sums[f] = fma(w, a[f] - load_plain<T>(of, 0, row, f), sums[f]);
  }
}

// own [rows]: the prototype assigned to each sample. Some neighbouring lanes share a sample.
template <typename T, int kD>
__device__ void assign_all(const PrototypeMarginInput<T>& in, int* own) {
  const int rows = static_cast<int>(in.rows), k = static_cast<int>(in.k),
            d = static_cast<int>(in.d);
  if (in.labels) {
    for (int i = static_cast<int>(threadIdx.x); i < rows; i += kThreads) {
      const int64_t label = in.labels[i];
      own[i] = static_cast<int>(label < 0 ? 0 : label < k ? label : k - 1);
    }
    sync_block();
    return;
  }
  int lanes = kWarp;
  while (lanes > 1 && kThreads / lanes < rows) lanes /= 2;
  const int share = static_cast<int>(threadIdx.x) % lanes;
  for (int first = 0; first < rows; first += kThreads / lanes) {
    const int i = first + static_cast<int>(threadIdx.x) / lanes;
    Nearest<T> nearest{static_cast<T>(INFINITY), 0};
    if (i < rows) {
      T r[kD];
      load_row(in.r, i, d, r);
#pragma unroll 1
      for (int of_k = share; of_k < k; of_k += lanes) {
        nearest.meet(squared_distance(r, in.g, of_k, d), of_k);
      }
    }
    nearest.share(lanes);
    if (share == 0 && i < rows) own[i] = nearest.index;
  }
  sync_block();
}

// A thread's share of the margin loss of the block's rows, and all of their weighted differences
// from prototypes; or, of_prototype, those of one prototype from all samples. The differences are
// added to memory's sums of row `mine`.
template <typename T, int kD>
__device__ T margin_of(const PrototypeMarginInput<T>& in, const Lane& lane, bool of_prototype,
                       int mine, const int* own, RowsMemory<T, kD>& memory) {
  const Samples &of_mine = of_prototype ? in.g : in.r, &of_others = of_prototype ? in.r : in.g;
  const int others = static_cast<int>(of_prototype ? in.rows : in.k);
  const T margin = static_cast<T>(in.margin), negative = static_cast<T>(-in.negative_scale);
  T sums[kD] = {}, loss = 0;
  if (mine < (of_prototype ? in.k : in.rows)) {
    if (!of_prototype && in.labels && lane.group == 0 && in.labels[mine] != own[mine]) {
      loss = from_bits(0x7fc00000);  // checked before, on the CPU
    }
    T a[kD];
    load_row(of_mine, mine, static_cast<int>(in.d), a);
#pragma unroll 1
    for (int other = lane.group; other < others; other += lane.groups) {
      const int d = opaque(static_cast<int>(in.d));
      const T u = squared_distance(a, of_others, other, d);
      const int of_k = of_prototype ? mine : other;
      T w = 0;
      if (of_k == own[of_prototype ? other : mine]) {
        w = 1;
        loss += u;
      } else if (!(u >= margin)) {  // a NaN is neither inside nor beyond, and has to reach the loss
        w = u < margin ? negative : T(0);
        loss -= negative * (margin - u);
      }
      add_difference(w, a, of_others, other, d, sums);
    }
  }
  // Its lane anew: all registers were needed above.
  collect<T, kD>(sums, Lane(opaque(lane.rows)), memory);
  return loss;
}

// A warp for each prototype adds the gradients of its own samples, in their order.
template <typename T>
__device__ void add_prior(const CgmLossInput<T>& in, const T* prior, const int* own, T* grad_g) {
  const int rows = static_cast<int>(in.margin.rows), d = static_cast<int>(in.margin.d);
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  for (int of_k = warp; of_k < in.margin.k; of_k += kWarps) {
    for (int begin = 0; begin < d; begin += kWarp) {
      const int f = begin + lane;
      double sum = 0;
#pragma unroll 1
      for (int first = 0; first < rows; first += kWarp) {
        unsigned mine = ballot(first + lane < rows && own[first + lane] == of_k);
        for (int i = first; mine; ++i, mine >>= 1) {
          if ((mine & 1) && f < d) sum += load_fresh(prior + int64_t{i} * d + f);
        }
      }
      if (f < d) {
        T& to = grad_g[int64_t{of_k} * d + f];
        to = static_cast<T>(load_fresh(&to) + sum);
      }
    }
  }
}

// Who the block is, and what it has.
template <typename T, int kD>
struct CgmLossBlock {
  const CgmLossInput<T>& in;
  const CgmLossGradient<T>& out;
  const CgmLossTail<T>& tail;
  RowsMemory<T, kD>& memory;

  // The margin loss of samples and their gradients; or a prototype's, which is one row, to which
  // every thread brings its share of the samples.
  __device__ void visit_margin(const BlockOfRows& rows, int rows_of_block) const {
    const PrototypeMarginInput<T>& of = in.margin;
    const bool of_prototype = rows.group == kPrototypes;
    const Lane lane(of_prototype ? 1 : rows_of_block);
    const int d = static_cast<int>(of.d), mine = static_cast<int>(rows.first) + lane.row;
    T loss;
    if constexpr (kD < 64) {
      loss = margin_of<T, kD>(of, lane, of_prototype, mine, tail.own, memory);
    } else if (of_prototype) {  // registers are too few for a choice
      loss = margin_of<T, kD>(of, lane, true, mine, tail.own, memory);
    } else {
      loss = margin_of<T, kD>(of, lane, false, mine, tail.own, memory);
    }
    T* gradient = of_prototype ? out.grad_g : out.grad_r;
    if (gradient) {
      const double factor = 2 * of.scale * in.margin_weight;
#pragma unroll 1
      for (int place = static_cast<int>(threadIdx.x); place < rows.here * d; place += kThreads) {
        gradient[rows.first * d + place] =
            static_cast<T>(factor * memory.sums[place / d][place % d]);
      }
    }
    if (of_prototype) return;
    const double sum = sum_of_block(loss, memory.scratch);
    if (threadIdx.x == 0) tail.parts[kMargin] = sum;
#pragma unroll 1
    for (int row = static_cast<int>(threadIdx.x); row < rows.here; row += kThreads) {
      const int64_t i = rows.first + row;
      out.assignment[i] = of.labels ? of.labels[i] : int64_t{tail.own[i]};
    }
    clear_sums(memory, rows_of_block);  // which were read before the barriers of the sum
  }

  // Rows of the MMD against all.
  __device__ void visit_mmd(const MmdCall<T>& call, const BlockOfRows& rows, int rows_of_block,
                            bool of_prior, T* prior) const {
    const int64_t batch = in.margin.rows;
    const int d = static_cast<int>(in.margin.d);
    const Lane lane(opaque(rows_of_block));  // anew: all registers were needed above
    const T sigma = static_cast<T>(in.sigma), prior_sigma = static_cast<T>(in.prior_sigma);
    const auto rows_at = [&](int group, int64_t first) {
      return [&, group, first](int row, int f) {
        const int64_t i = group == kPriors ? first + row - batch : first + row;
        const T mean = group == kPriors ? load_plain<T>(in.margin.g, 0, tail.own[i], f)
                                        : load_plain<T>(in.margin.r, 0, i, f);
        return fma(group == kPriors ? prior_sigma : sigma, load_plain<T>(in.noise, group, i, f),
                   mean);
      };
    };
    const auto at = rows_at(rows.group, rows.first);
    if (lane.group == 0) {
      const bool there = lane.row < rows.here;
      const int64_t i = rows.first + lane.row;
#pragma unroll 1
      for (int f = 0; f < kD; ++f) {
        const T z = there && f < d ? at(lane.row, f) : T(0);
        memory.rows[lane.row][f] = z;
        if (there && f < d && rows.group == kLatents) out.z[i * d + f] = z;
      }
    }
    sync_block();
    const View<T> view = view_of(call.in, tail.scales, rows.here, memory);
    const RowsPass<T> pass(call.in, 0, rows, tail);
    if (!(rows.group == kLatents ? out.grad_r != nullptr : of_prior)) {
      visit<T, kD, true, false>(pass, lane, view, rows_at, memory);
      return;
    }
    visit<T, kD, true, true>(pass, lane, view, rows_at, memory);
    const double factor = -2 * in.mmd_weight / tail.scales[0].variance;
#pragma unroll 1
    for (int place = static_cast<int>(threadIdx.x); place < rows.here * d; place += kThreads) {
      const int64_t at = rows.first * d + place;
      const T gradient = static_cast<T>(factor * memory.sums[place / d][place % d]);
      if (rows.group == kLatents) {
        out.grad_r[at] += gradient;
      } else {
        prior[at - batch * d] = gradient;
      }
    }
  }
};

template <typename T, int kD>
__global__ void __launch_bounds__(kThreads, 1)
    cgm_loss_kernel(const CgmLossInput<T> in, const CgmLossGradient<T> out,
                    const CgmLossDevice<T> device, unsigned row_blocks) {
  SharedLayout layout(shared_memory<unsigned char>());
  RowsMemory<T, kD>& memory = *layout.array<RowsMemory<T, kD>>(1);
  const CgmLossTail<T> tail(layout, in);
  const MmdCall<T> call = tail.call(in, device);
  const bool of_prior = out.grad_g && !in.detach_prior;
  tail.load(call, 0);
  if (threadIdx.x == 0) tail.parts[kMargin] = 0;
  clear_sums(memory, kWarp);
  assign_all<T, kD>(in.margin, tail.own);

  const CgmLossBlock<T, kD> block{in, out, tail, memory};
  const BlockOfRows rows = blockIdx.x < row_blocks
                               ? block_of_rows(call.in, blockIdx.x, device.rows)
                               : BlockOfRows{kPrototypes, 1, int64_t{blockIdx.x - row_blocks}};
  if (rows.group != kPriors) block.visit_margin(rows, device.rows);
  if (rows.group != kPrototypes) {
    block.visit_mmd(call, rows, device.rows, of_prior, device.prior);
  }

  const Partials partials{device.partials, gridDim.x, kLossParts};
  sync_block();
  if (!partials.leave(tail.parts, blockIdx.x, device.counter)) return;
  count_blocks(call.in, static_cast<unsigned>(device.rows), tail.first_block);
  const double mmd = close(call.in, 0, tail.scales[0].weight, tail.first_block, partials, nullptr,
                           tail.parts, memory.scratch);
  const double margin = in.margin.scale * partials.sum(kMargin, memory.scratch);
  if (threadIdx.x == 0) {
    out.terms[0] = static_cast<T>(mmd);
    out.terms[1] = static_cast<T>(margin);
    out.loss[0] = static_cast<T>(in.mmd_weight * mmd + in.margin_weight * margin);
  }
  if (of_prior) add_prior(in, device.prior, tail.own, out.grad_g);
}

}  // namespace cgm_fast::cuda
