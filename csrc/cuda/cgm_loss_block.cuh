// A block of cgm_loss: who it is, and what it adds up of its rows with prototypes, samples and
// latents.
#pragma once

#include "cuda/cgm_loss_order.cuh"
#include "cuda/cgm_loss_tile.cuh"
#include "cuda/mmd.cuh"
#include "cuda/nearest.cuh"

namespace cgm_fast::cuda {

// What a block's rows are: latents, their prototypes' samples in the order of the prototypes, or a
// prototype.
enum { kLatents, kPriors, kPrototypes };

// What a block adds up over columns of either group, 2 numbers each, and of the margin loss.
enum { kOfGroups = 2, kMargin = 2 * kOfGroups };
static_assert(kMargin + 1 == kCgmLossParts);

// What a block has in shared memory behind CgmLossMemory.
template <typename T>
struct CgmLossTail {
  Scale<T>* scales;  // [scales]
  int* own;          // [batch], of each sample its prototype
  SampleOrder order;

  __host__ __device__ CgmLossTail(SharedLayout& layout, const CgmLossInput<T>& in, int rows)
      : scales(layout.array<Scale<T>>(in.scales)),
        own(layout.array<int>(in.margin.rows)),
        order(layout, in.margin.rows, in.margin.k, rows) {}
};

// What the host has worked out: a division in float64 takes a thread longer than a pair of rows.
template <typename T>
struct CgmLossFactors {
  double of_pair;  // of the pairs of a group and itself, in MMD²
  T margin;        // of a weighted difference in the margin loss's gradient
  T pair;          // of one of a pair's, and of the first bandwidth's unit, in the MMD's

  explicit CgmLossFactors(const CgmLossInput<T>& in)
      : of_pair(1 / (static_cast<double>(in.margin.rows) * static_cast<double>(in.margin.rows))),
        margin(static_cast<T>(2 * in.margin.scale * in.margin_weight)),
        pair(static_cast<T>(2.7725887222397812377 * in.mmd_weight * of_pair)) {}  // 4 ln 2
};

// A lane's row, and its share of the columns.
struct CgmLossLane {
  int row, group, groups;

  __device__ explicit CgmLossLane(int rows) {
    const int lane = static_cast<int>(threadIdx.x) % kWarp, shares = kWarp / rows;
    row = lane % rows;
    group = static_cast<int>(threadIdx.x) / kWarp * shares + lane / rows;
    groups = kWarps * shares;
  }
};

// Who the block is, and what it has.
template <typename T, int kD>
struct CgmLossBlock {
  using Memory = CgmLossMemory<T, kD>;
  const CgmLossInput<T>& in;
  const CgmLossGradient<T>& out;
  const CgmLossDevice<T>& device;
  const CgmLossFactors<T>& factors;
  const CgmLossTail<T>& tail;
  Memory& memory;
  const T *r, *g, *noise;
  int batch, k, d, at_once;  // rows of a block that are gone through at once
  FlatRows places;
  int group, first, here;  // its rows

  __device__ CgmLossBlock(const CgmLossInput<T>& in, const CgmLossGradient<T>& out,
                          const CgmLossDevice<T>& device, const CgmLossFactors<T>& factors,
                          const CgmLossTail<T>& tail, Memory& memory)
      : in(in),
        out(out),
        device(device),
        factors(factors),
        tail(tail),
        memory(memory),
        r(static_cast<const T*>(in.margin.r.data)),
        g(static_cast<const T*>(in.margin.g.data)),
        noise(static_cast<const T*>(in.noise.data)),
        batch(static_cast<int>(in.margin.rows)),
        k(static_cast<int>(in.margin.k)),
        d(static_cast<int>(in.margin.d)),
        at_once(device.rows),
        places(d) {
    const int blocks = blocks_of_group(), block = static_cast<int>(blockIdx.x);
    group = block < blocks ? kLatents : block < 2 * blocks ? kPriors : kPrototypes;
    first = group == kPrototypes ? block - 2 * blocks : (block - group * blocks) * at_once;
    here = group == kPrototypes ? 1 : batch - first < at_once ? batch - first : at_once;
  }

  __device__ int blocks_of_group() const { return (batch + at_once - 1) / at_once; }

  // The sample of a row.
  __device__ int sample(int row) const {
    return group == kPriors ? tail.order.samples[first + row] : first + row;
  }

  __device__ void load_scales() const {
    MmdCall<T> call{};
    call.in.variance = device.variances;
    call.device.kernel_weights = device.kernel_weights;
#pragma unroll 1
    for (int s = kThreads - 1 - static_cast<int>(threadIdx.x); s < in.scales; s += kThreads) {
      tail.scales[s] = scale_of(call, 0, s);
    }
  }

  // Samples [begin, ...) into the tile; how many there are.
  __device__ int load_samples(int begin) const {
    const int count = batch - begin < Memory::kColumns ? batch - begin : Memory::kColumns;
    copy_rows(memory.tile, begin, count, places, Given<T>{r});
    return count;
  }

  // Calls `use(first, here)` for the prototypes in shared memory, a tile of them after another.
  // Where there is one tile it has been loaded. Barriers.
  template <typename Use>
  __device__ void each_tile_of_prototypes(const Use& use) const {
#pragma unroll 1
    for (int begin = 0; begin < k; begin += Memory::kFew) {
      const int count = k - begin < Memory::kFew ? k - begin : Memory::kFew;
      if (k > Memory::kFew) {
        sync_block();
        copy_rows(memory.prototypes, begin, count, places, Given<T>{g});
        sync_block();
      }
      use(begin, count);
    }
  }

  // Everything that the assignment needs of the first samples, and the block's own rows as they are
  // given. A barrier.
  __device__ void begin() const {
    // Loads of all warps are under way at once where there are few: each does another thing first.
    load_scales();
    const int samples = load_samples(0), few = k < Memory::kFew ? k : Memory::kFew;
    const int after = (samples * d / kWide<T> + kWarp - 1) / kWarp * kWarp;
    copy_rows(memory.prototypes, 0, few, places, Given<T>{g}, after);
    if (group != kPriors) {
      const Given<T> own{group == kLatents ? r : g};
      copy_rows(memory.rows, first, here, places, own, kThreads - 2 * kWarp);
    }
    const int columns = 2 * batch < Memory::kColumns ? 2 * batch : Memory::kColumns;
    clear_padding<kD>(memory.tile, columns, d);
    clear_padding<kD>(memory.prototypes, few, d);
    clear_padding<kD>(memory.rows, kCgmLossRows, d);
    clear_padding<kD>(memory.noisy, kCgmLossRows, d);
    sync_block();
  }

  // tail.own: the prototype assigned to each sample. Some neighbouring lanes share a sample. The
  // first samples have been loaded; the last ones stay. A barrier.
  __device__ void assign() const {
    const int thread = static_cast<int>(threadIdx.x);
    const int64_t* labels = in.margin.labels;
    if (labels) {
#pragma unroll 1
      for (int i = thread; i < batch; i += kThreads) {
        const int64_t label = labels[i];
        tail.own[i] = static_cast<int>(label < 0 ? 0 : label < k ? label : k - 1);
      }
      sync_block();
      return;
    }
#pragma unroll 1
    for (int begin = 0; begin < batch; begin += Memory::kColumns) {
      if (begin > 0) {
        sync_block();
        load_samples(begin);
        sync_block();
      }
      const int count = batch - begin < Memory::kColumns ? batch - begin : Memory::kColumns;
      int lanes = kWarp;
      while (lanes > 1 && kThreads / lanes < count) lanes /= 2;
      const int share = thread % lanes, at = thread / lanes;
      Nearest<T> nearest{static_cast<T>(INFINITY), 0};
      T row[kD], unused[kD];
      read_row(memory.tile[at < count ? at : 0], row);
      each_tile_of_prototypes([&](int of_k, int prototypes) {
        each_column<false>(
            row, memory.prototypes, share, lanes, prototypes,
            [&](int j, T u) {
              nearest.meet(u, of_k + j);
              return T(0);
            },
            unused);
      });
      nearest.share(lanes);
      if (share == 0 && at < count) tail.own[begin + at] = nearest.index;
    }
    sync_block();
  }

  // A pair's share of the margin loss, which it adds, and of the gradient.
  __device__ T weigh_margin(bool is_own, T u, T& loss) const {
    const T margin = static_cast<T>(in.margin.margin);
    const T negative = static_cast<T>(-in.margin.negative_scale);
    if (is_own) {
      loss += u;
      return factors.margin;
    }
    if (u >= margin) return 0;
    loss -= negative * (margin - u);
    return u < margin ? factors.margin * negative
                      : T(0);  // a NaN is neither, and has to reach the loss
  }

  // Of latents: the margin loss with all prototypes.
  __device__ void visit_prototypes(const CgmLossLane& lane, T& loss, T (&sums)[kD]) const {
    T row[kD];
    read_row(memory.rows[lane.row], row);
    const bool there = lane.row < here;
    const int own = there ? tail.own[first + lane.row] : -1;
    const int64_t* labels = in.margin.labels;
    if (labels && there && lane.group == 0 && labels[first + lane.row] != own) {
      loss = from_bits(0x7fc00000);  // checked before, on the CPU
    }
    each_tile_of_prototypes([&](int of_k, int prototypes) {
      each_column<true>(
          row, memory.prototypes, there ? lane.group : prototypes, lane.groups, prototypes,
          [&](int j, T u) { return weigh_margin(of_k + j == own, u, loss); }, sums);
    });
  }

  // Of a prototype: its gradient of the margin loss, from all samples, of which each thread has
  // some.
  __device__ void visit_samples(T (&sums)[kD]) const {
    T row[kD], unused = 0;
    read_row(memory.rows[0], row);
#pragma unroll 1
    for (int begin = 0; begin < batch; begin += Memory::kColumns) {
      int count = batch - begin < Memory::kColumns ? batch - begin : Memory::kColumns;
      if (batch > Memory::kColumns) {
        sync_block();
        count = load_samples(begin);
        sync_block();
      }
      each_column<true>(
          row, memory.tile, static_cast<int>(threadIdx.x), kThreads, count,
          [&](int j, T u) { return weigh_margin(tail.own[begin + j] == first, u, unused); }, sums);
    }
  }

  // Rows of the MMD with all. Barriers. values and nears: of the columns of either group.
  __device__ void visit_pairs(const CgmLossLane& lane, T (&values)[kOfGroups],
                              T (&nears)[kOfGroups], T (&sums)[kD]) const {
    const Noisy<T> noisy{
        r,     g,     noise, tail.own, static_cast<T>(in.sigma), static_cast<T>(in.prior_sigma),
        batch, places};
    const bool there = lane.row < here;
    const int own_column = there ? group * batch + sample(lane.row) : -1;
    const int columns = 2 * batch;
    T z[kD] = {}, near_from = 0, coefficient = 0;
#pragma unroll 1
    for (int begin = 0; begin < columns; begin += Memory::kColumns) {
      const int count = columns - begin < Memory::kColumns ? columns - begin : Memory::kColumns;
      if (begin == 0) {
        load_own(noisy, [&] { copy_rows(memory.tile, begin, count, places, noisy); });
      } else {
        sync_block();  // the tile before has been read
        copy_rows(memory.tile, begin, count, places, noisy);
      }
      sync_block();
      if (begin == 0) {
        read_row(memory.noisy[lane.row], z);
        near_from = near_exponent<T, true>(tail.scales, in.scales);
        coefficient = factors.pair * tail.scales[0].unit;
      }
      each_column<true>(
          z, memory.tile, there ? lane.group : count, lane.groups, count,
          [&](int j, T u) {
            const int column = begin + j;
            const T e[1] = {u * tail.scales[0].unit};
            T value[1], slope[1], near[1];
            kernels_at(e, tail.scales, in.scales, near_from, value, slope, near);
            if (column == own_column) near[0] = 0;
            const bool of_latent = column < batch;
            values[kLatents] += of_latent ? value[0] : T(0);
            values[kPriors] += of_latent ? T(0) : value[0];
            nears[kLatents] += of_latent ? near[0] : T(0);
            nears[kPriors] += of_latent ? T(0) : near[0];
            return slope[0] * (of_latent == (group == kLatents) ? coefficient : -coefficient);
          },
          sums);
    }
  }

  // The block's own rows with their noise, which are z's. Their loads are under way while
  // `meanwhile` runs. A barrier has to follow.
  template <typename Meanwhile>
  __device__ void load_own(const Noisy<T>& noisy, const Meanwhile& meanwhile) const {
    constexpr int kEach = (kCgmLossRows * kD + kThreads - 1) / kThreads;
    T means[kEach] = {}, noises[kEach] = {};
#pragma unroll
    for (int q = 0; q < kEach; ++q) {
      const int at = static_cast<int>(threadIdx.x) + q * kThreads;
      if (at >= here * d) break;
      const int row = places.row(at), f = at - row * d;
      const int place = (group * batch + sample(row)) * d + f;
      means[q] = noisy.mean(place);
      noises[q] = noise[place];
    }
    meanwhile();
#pragma unroll
    for (int q = 0; q < kEach; ++q) {
      const int at = static_cast<int>(threadIdx.x) + q * kThreads;
      if (at >= here * d) break;
      const int row = places.row(at), f = at - row * d;
      const T z = fma(group == kLatents ? noisy.sigma : noisy.prior_sigma, noises[q], means[q]);
      memory.noisy[row][f] = z;
      if (group == kLatents) out.z[first * d + at] = z;
    }
  }

  // The rows whose sums join those of `row`, up to this one: a prototype's samples that follow each
  // other, and all shares of a prototype. None where `row` is not the first.
  __device__ int end_of(int row) const {
    if (group == kLatents) return row + 1;
    if (group == kPrototypes) return row == 0 ? at_once : 0;
    const int of_k = tail.own[sample(row)];
    if (row > 0 && tail.own[sample(row - 1)] == of_k) return 0;
    int end = row + 1;
#pragma unroll 1
    while (end < here && tail.own[sample(end)] == of_k) ++end;
    return end;
  }

  // The block's gradients and parts, from memory.
  __device__ void write(T* gradient) const {
    const int thread = static_cast<int>(threadIdx.x);
    if (gradient) {
#pragma unroll 1
      for (int at = thread; at < here * d; at += kThreads) {
        const int row = places.row(at), f = at - row * d, end = end_of(row);
        if (end == 0) continue;
        double sum = 0;
#pragma unroll 1
        for (int q = row; q < end; ++q) {
#pragma unroll
          for (int warp = 0; warp < kWarps; ++warp) sum += memory.sums[warp][q][f];
        }
        gradient[first * d + at] = static_cast<T>(sum);
      }
    }
    if (const int part = thread - kWarp; part >= 0 && part < kCgmLossParts) {  // by another warp
      double sum = 0;
#pragma unroll
      for (int warp = 0; warp < kWarps; ++warp) sum += memory.parts[warp][part];
      device.partials[blockIdx.x * kCgmLossParts + static_cast<unsigned>(part)] = sum;
    }
    if (group != kLatents) return;
    for (int row = thread; row < here; row += kThreads) {
      const int64_t* labels = in.margin.labels;
      out.assignment[first + row] = labels ? labels[first + row] : int64_t{tail.own[first + row]};
    }
  }
};

}  // namespace cgm_fast::cuda
