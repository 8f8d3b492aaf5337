// The CGM latent objective of a batch in one launch: assignment, noisy latents, MMD², margin loss
// and all gradients.
//
// Distances to prototypes are so cheap at a batch's size that every block assigns all samples by
// itself, rather than wait for another. Then a block has some rows of z = [r + sigma e; g_k + tau
// e'] against all of them, as in mmd_rows.cuh, or a prototype's gradient of the margin loss. What
// is left needs all blocks, and the last to finish does it: the loss, and the gradient from a
// prototype's own samples.
#pragma once

#include "cgm_loss.h"
#include "cuda/mmd_rows.cuh"
#include "cuda/prototype_margin.cuh"

namespace cgm_fast::cuda {

// What a block adds up: the parts of MMD², then of the margin loss.
constexpr int kMargin = kParts, kLossParts = kParts + 1;

// A block's shared memory behind RowsMemory: double parts[kLossParts], Scale<T> scales[scales],
// int own[batch].
template <typename T, int kD>
std::size_t cgm_loss_shared_bytes(int64_t scales, int64_t batch) {
  return sizeof(RowsMemory<T, kD>) + kLossParts * sizeof(double) +
         static_cast<std::size_t>(scales) * sizeof(Scale<T>) +
         static_cast<std::size_t>(batch) * sizeof(int);
}

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

// sums [kOfRow + f] += w (a - b), where the row b is read again: with many features registers are
// too few to keep it, and most often w is zero.
template <typename T, int kD>
__device__ void add_difference(T w, const T (&a)[kD], const Samples& of, int64_t row, int d,
                               T (&sums)[kOfRow + kD]) {
  if (w == 0) return;
#pragma unroll
  for (int f = 0; f < kD; ++f) {
    if (f % 16 == 0) compiler_barrier();
    T& sum = sums[kOfRow + f];
    if (f < d) sum = fma(w, a[f] - load_plain<T>(of, 0, row, f), sum);
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

// The margin loss of the block's rows and their weighted differences from prototypes; or,
// of_prototype, those of one prototype from all samples. Added to memory's sums of row `mine`.
template <typename T, int kD>
__device__ void margin_of(const PrototypeMarginInput<T>& in, const Lane& lane, bool of_prototype,
                          int mine, const int* own, RowsMemory<T, kD>& memory) {
  const Samples &of_mine = of_prototype ? in.g : in.r, &of_others = of_prototype ? in.r : in.g;
  const int others = static_cast<int>(of_prototype ? in.rows : in.k);
  const T margin = static_cast<T>(in.margin), negative = static_cast<T>(-in.negative_scale);
  T sums[kOfRow + kD] = {};
  if (mine < (of_prototype ? in.k : in.rows)) {
    if (!of_prototype && in.labels && lane.group == 0 && in.labels[mine] != own[mine]) {
      sums[0] = from_bits(0x7fc00000);  // checked before, on the CPU
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
        sums[0] += u;
      } else if (!(u >= margin)) {  // a NaN is neither inside nor beyond, and has to reach the loss
        w = u < margin ? negative : T(0);
        sums[0] -= negative * (margin - u);
      }
      add_difference(w, a, of_others, other, d, sums);
    }
  }
  // Its lane anew: all registers were needed above.
  collect<T, kD, kOfRow + kD>(sums, Lane(opaque(lane.rows)), memory);
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

template <typename T, int kD>
__global__ void __launch_bounds__(kThreads, 1)
    cgm_loss_kernel(const CgmLossInput<T> in, const CgmLossGradient<T> out,
                    const CgmLossDevice<T> device, unsigned row_blocks) {
  const PrototypeMarginInput<T>& of = in.margin;
  RowsMemory<T, kD>& memory = *shared_memory<RowsMemory<T, kD>>();
  double* parts = reinterpret_cast<double*>(&memory + 1);
  Scale<T>* scales = reinterpret_cast<Scale<T>*>(parts + kLossParts);
  int* own = reinterpret_cast<int*>(scales + in.scales);
  const int64_t batch = of.rows;
  const int d = static_cast<int>(of.d), rows = device.rows;
  const bool of_prior = out.grad_g && !in.detach_prior;
  const double per_row = 1.0 / static_cast<double>(batch);

  // The MMD's own view of it: two unweighted samples of the same size.
  MmdCall<T> call{};
  call.in.n = call.in.m = batch;
  call.in.d = of.d;
  call.in.scales = in.scales;
  call.in.x_scale = call.in.y_scale = per_row;
  call.in.cross_scale = 1;
  call.in.variance = device.variances;
  call.device.kernel_weights = device.kernel_weights;
  load_scales(call, 0, scales);
  if (threadIdx.x < kLossParts) parts[threadIdx.x] = 0;
  clear_sums(memory, kWarp);
  assign_all<T, kD>(of, own);

  // A prototype is one row, to which every thread brings its share of the samples.
  const bool of_prototype = blockIdx.x >= row_blocks;
  const int of_k = static_cast<int>(blockIdx.x - row_blocks);
  const int64_t first = of_prototype ? 0 : int64_t{blockIdx.x} * rows;
  if (first < batch) {
    const Lane lane(of_prototype ? 1 : rows);
    const int mine = of_prototype ? of_k : static_cast<int>(first) + lane.row;
    if constexpr (kD < 64) {
      margin_of<T, kD>(of, lane, of_prototype, mine, own, memory);
    } else if (of_prototype) {  // registers are too few for a choice
      margin_of<T, kD>(of, lane, true, mine, own, memory);
    } else {
      margin_of<T, kD>(of, lane, false, mine, own, memory);
    }
  }
  if (of_prototype) {
    const double factor = 2 * of.scale * in.margin_weight;
#pragma unroll 1
    for (int f = static_cast<int>(threadIdx.x); f < d; f += kThreads) {
      out.grad_g[int64_t{of_k} * d + f] = static_cast<T>(factor * memory.sums[0][kOfRow + f]);
    }
  } else {
    if (first < batch) {
      if (threadIdx.x == 0) {
#pragma unroll 1
        for (int row = 0; row < rows; ++row) parts[kMargin] += memory.sums[row][0];
      }
      if (out.grad_r) {
        const double factor = 2 * of.scale * in.margin_weight;
#pragma unroll 1
        for (int place = static_cast<int>(threadIdx.x); place < rows * d; place += kThreads) {
          if (first + place / d >= batch) continue;
          out.grad_r[first * d + place] =
              static_cast<T>(factor * memory.sums[place / d][kOfRow + place % d]);
        }
      }
      sync_block();
      clear_sums(memory, rows);
    }
    const Lane lane(opaque(rows));  // anew: all registers were needed above
    const int64_t i = first + lane.row;
    const T sigma = static_cast<T>(in.sigma), prior_sigma = static_cast<T>(in.prior_sigma);
    const auto at = [&](int sample, int64_t row, int f) {
      const T mean = sample ? load_plain<T>(of.g, 0, own[row], f) : load_plain<T>(of.r, 0, row, f);
      return fma(sample ? prior_sigma : sigma, load_plain<T>(in.noise, sample, row, f), mean);
    };
    if (lane.group == 0) {
      const bool in_y = i >= batch;
#pragma unroll 1
      for (int f = 0; f < kD; ++f) {
        const T z = i < 2 * batch && f < d ? at(in_y, in_y ? i - batch : i, f) : T(0);
        memory.rows[lane.row][f] = z;
        if (i < batch && f < d) out.z[i * d + f] = z;
      }
    }
    sync_block();
    const View<T> view =
        view_of(call.in, scales,
                static_cast<int>(2 * batch - first < rows ? 2 * batch - first : rows), memory);
    if ((out.grad_r && first < batch) || (of_prior && first + rows > batch)) {
      visit<T, kD, true, true>(call.in, 0, lane, first, view, scales, at, memory);
      const double factor = -2 * in.mmd_weight / scales[0].variance * per_row;
#pragma unroll 1
      for (int place = static_cast<int>(threadIdx.x); place < rows * d; place += kThreads) {
        const int64_t row = first + place / d;
        const int f = place % d;
        const double gradient = factor * memory.sums[place / d][kOfRow + f];
        if (row < batch && out.grad_r) out.grad_r[row * d + f] += static_cast<T>(gradient);
        if (row >= batch && row < 2 * batch && of_prior) {
          device.prior[(row - batch) * d + f] = static_cast<T>(-gradient);
        }
      }
    } else {
      visit<T, kD, true, false>(call.in, 0, lane, first, view, scales, at, memory);
    }
    if (threadIdx.x < kWarp) {
      const int row = static_cast<int>(threadIdx.x);
      RowParts<T> mine;
      if (row < rows && first + row < 2 * batch) {
        mine = RowParts<T>(call.in, 0, first + row, memory.sums[row]);
      }
      add_rows(mine.first, rows, parts, memory.scratch);
      add_rows(mine.second, rows, parts + kTogether, memory.scratch);
    }
#pragma unroll 1
    for (int row = static_cast<int>(threadIdx.x); row < rows; row += kThreads) {
      if (first + row >= batch) continue;
      out.assignment[first + row] = of.labels ? of.labels[first + row] : int64_t{own[first + row]};
    }
  }
  sync_block();
  if (!add_parts(device.partials, device.counter, 0, blockIdx.x, gridDim.x, kLossParts, parts,
                 memory.scratch)) {
    return;
  }
  if (threadIdx.x == 0) {
    const Coefficients all = coefficients_of(call.in, 0, memory.scratch);
    const Constants missing = constants_of(all, parts, in.scales, false);
    const double mmd = parts[kWithin] + parts[kAcross] + scales[0].weight * missing.loss;
    const double margin = of.scale * parts[kMargin];
    out.terms[0] = static_cast<T>(mmd);
    out.terms[1] = static_cast<T>(margin);
    out.loss[0] = static_cast<T>(in.mmd_weight * mmd + in.margin_weight * margin);
  }
  if (of_prior) add_prior(in, device.prior, own, out.grad_g);
}

}  // namespace cgm_fast::cuda
