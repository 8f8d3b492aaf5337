// The Hessian-vector product of MMD², in one launch; any number of features and any kernel that has
// one. Formulas are those of the op's README.
#pragma once

#include "cuda/chunks.cuh"
#include "cuda/mmd.cuh"
#include "cuda/radial.cuh"

namespace cgm_fast::cuda {

template <typename T>
struct HvpMemory {
  static constexpr int kColumns = 32;
  struct {
    Chunk2d<T, kChunkRows> rows, row_tangents;
    Chunk2d<T, kColumns> columns, column_tangents;
  } stages[2];
  // Of a tile's pairs squared distances and half their derivatives, and then what differences of
  // tangents and of rows are weighed with; see WideMemory.
  PairsOfTile<T, kColumns> pairs, pairs_dot;
  double of_weight[kChunkRows];
  double scratch[kScratch];
};

template <typename T>
struct HvpTail : MmdTail<T> {
  T* scales_dot;  // [scales]

  __host__ __device__ HvpTail(SharedLayout& layout, const MmdProblem<T>& in)
      : MmdTail<T>(layout, in), scales_dot(layout.array<T>(in.scales)) {}
};

// One bandwidth's share at squared distance u with derivative 2 dot along the direction.
template <typename T>
struct HvpOf {
  T value, value_dot;  // k - k(0)
  T slope, slope_dot;  // -2 h_0 dk/du
  T by_h, by_h_dot;    // h_s dk/dh_s

  template <bool kGaussian>
  __device__ static HvpOf at(Kernel kernel, T u, T dot, const Scale<T>& scale, T variance_dot) {
    const T t = scaled(u, scale.variance);
    // Where k is an exact zero everything else is left out: products would overflow.
    const bool vanishes = kGaussian ? t > T(760) : t >= (sizeof(T) == 4 ? T(1e30) : T(1e300));
    const T stretch = vanishes ? T(0) : variance_dot / scale.variance;
    const T t_dot = vanishes ? T(0) : dot / scale.variance - t * stretch;
    const Radial<T> k = radial<kGaussian>(kernel, t);
    const T first = scale.weight * k.first, second = scale.weight * k.second;
    return {scale.weight * k.less,
            first * t_dot,
            -scale.ratio * first,
            -scale.ratio * (second * t_dot - first * stretch),
            -first * t,
            -((second * t + first) * t_dot - first * t * stretch)};
  }
};

// A block's rows, with a tile of columns after another.
template <typename T, bool kGaussian>
struct HvpPass {
  using Memory = HvpMemory<T>;
  static constexpr int kColumns = Memory::kColumns;
  static_assert(kColumns == kWarp);  // a lane has one of them
  const MmdProblem<T>& in;
  const MmdTangent<T>& along;
  const MmdProduct<T>& out;
  int64_t item;
  BlockOfRows own;
  const HvpTail<T>& tail;
  Memory& memory;
  using Tile = ColumnTile<kColumns>;

  // What the columns' group is to the rows'.
  struct Relation {
    T value, dot;
  };

  __device__ HvpPass(const MmdProblem<T>& in, const MmdTangent<T>& along, const MmdProduct<T>& out,
                     int64_t item, const BlockOfRows& own, const HvpTail<T>& tail, Memory& memory)
      : in(in), along(along), out(out), item(item), own(own), tail(tail), memory(memory) {}

  __device__ Relation relation(int group) const {
    const int64_t entry = own.group * in.groups + group;
    const double* dot = along.relation;
    if (dot) dot += item * in.groups * in.groups;
    return {static_cast<T>(relation_of(in, item)[entry]), dot ? static_cast<T>(dot[entry]) : T(0)};
  }
  __device__ T weight(int64_t i, bool there) const {
    return there ? row_weight(in, item, i) : T(0);
  }
  __device__ T weight_dot(int64_t i, bool there) const {
    return there && along.weights ? along.weights[item * in.rows + i] : T(0);
  }
  // Rows of the tangent from `first` on.
  __device__ Samples tangent(int64_t first) const {
    return {along.z + (item * in.rows + first) * in.d,
            sizeof(T) == 4 ? Dtype::float32 : Dtype::float64, 0, in.d, 1};
  }
  __device__ static int lane() { return lane_of_thread(); }
  __device__ static int first_of_warp() { return first_row_of_warp(); }

  __device__ void fetch(const Tile& of, int chunk, int stage) const {
    const int d = static_cast<int>(in.d), begin = chunk * kChunkFeatures;
    auto& to = memory.stages[stage];
    fetch_chunk(rows_of(in, item, own.first), own.here, begin, d, to.rows);
    fetch_chunk(rows_of(in, item, of.first), of.here, begin, d, to.columns);
    // Of a tangent that is zero there are no rows.
    fetch_chunk(tangent(own.first), along.z ? own.here : 0, begin, d, to.row_tangents);
    fetch_chunk(tangent(of.first), along.z ? of.here : 0, begin, d, to.column_tangents);
  }

  // Adds to the tile's pairs squared distances and half their derivatives of a chunk of features,
  // of which zeros are beyond the last.
  __device__ void add_distances(int stage, T (&u)[kChunkRowsOfWarp],
                                T (&dot)[kChunkRowsOfWarp]) const {
    constexpr int kPack = Chunk2d<T, kColumns>::kPack;
    const auto& from = memory.stages[stage];
    const int own_row = first_of_warp();
#pragma unroll 2
    for (int f = 0; f < kChunkFeatures; f += kPack) {
      const Pack<T, kPack> of_column = read_pack<kPack>(&from.columns.of[lane()][f]);
      const Pack<T, kPack> its_tangent = read_pack<kPack>(&from.column_tangents.of[lane()][f]);
#pragma unroll
      for (int q = 0; q < kChunkRowsOfWarp; ++q) {
        const Pack<T, kPack> of_row = read_pack<kPack>(&from.rows.of[own_row + q][f]);
        const Pack<T, kPack> own_tangent = read_pack<kPack>(&from.row_tangents.of[own_row + q][f]);
#pragma unroll
        for (int p = 0; p < kPack; ++p) {
          const T difference = of_row.of[p] - of_column.of[p];
          u[q] = fma(difference, difference, u[q]);
          dot[q] = fma(difference, own_tangent.of[p] - its_tangent.of[p], dot[q]);
        }
      }
    }
  }

  // Calls `visit(relation, first, here)` for every tile of columns, when its pairs are in their
  // places, `end(group)` after a group's last, and, if the `product` is wanted, adds to it.
  template <typename Visit, typename End>
  __device__ void each_tile(bool product, const Visit& visit, const End& end_of_group) {
    const int d = static_cast<int>(in.d), chunks = (d + kChunkFeatures - 1) / kChunkFeatures;
    T u[kChunkRowsOfWarp] = {}, dot[kChunkRowsOfWarp] = {};
    each_chunk<kColumns>(
        in, chunks, product,
        [&](const Tile& of, int, int chunk, int stage) { fetch(of, chunk, stage); },
        [&](const Tile& of, int, int chunk, int step, int stage) {
          if (step < chunks) add_distances(stage, u, dot);
          if (step == chunks - 1) {
#pragma unroll
            for (int q = 0; q < kChunkRowsOfWarp; ++q) {
              memory.pairs.of[first_of_warp() + q][lane()] = u[q];
              memory.pairs_dot.of[first_of_warp() + q][lane()] = dot[q];
              u[q] = dot[q] = 0;
            }
            visit(relation(of.group), of.first, of.here);
            if (of.last) end_of_group(of.group);
            if (product) sync_block();
          }
          if (product && step >= chunks - 1) add_product(of, chunk * kChunkFeatures, stage);
        });
  }

  // What a pair of rows weighs, without the relation, and its derivative along the direction.
  struct Pair {
    T row, row_dot, column, column_dot;
    __device__ T value() const { return row * column; }
    __device__ T dot() const { return row_dot * column + row * column_dot; }
  };
  __device__ Pair pair_of(int row, int64_t first, int here) const {
    const int64_t i = own.first + row, j = first + lane();
    const bool there = row < own.here && lane() < here;
    return {weight(i, there), weight_dot(i, there), weight(j, there), weight_dot(j, there)};
  }

  // A tile's pairs; adds to the lane's share of the group's block sum along the direction.
  __device__ void visit_pairs(const Relation& relation, int64_t first, int here, double& block) {
#pragma unroll 1
    for (int row = first_of_warp(); row < first_of_warp() + kChunkRowsOfWarp; ++row) {
      HvpOf<T> sum = {};
#pragma unroll 1
      for (int s = 0; s < in.scales; ++s) {
        const HvpOf<T> of = HvpOf<T>::template at<kGaussian>(
            in.kernel, memory.pairs.of[row][lane()], memory.pairs_dot.of[row][lane()],
            tail.scales[s], tail.scales_dot[s]);
        sum.value += of.value;
        sum.value_dot += of.value_dot;
        sum.slope += of.slope;
        sum.slope_dot += of.slope_dot;
      }
      const Pair pair = pair_of(row, first, here);
      const T c = relation.value * pair.value();
      const T c_dot = relation.value * pair.dot() + relation.dot * pair.value();
      memory.pairs.of[row][lane()] = c * sum.slope;
      memory.pairs_dot.of[row][lane()] = c_dot * sum.slope + c * sum.slope_dot;
      if (row >= own.here) continue;
      block += pair.dot() * sum.value + pair.value() * sum.value_dot;
      if (!out.weights) continue;
      const T of_column = relation.dot * pair.column + relation.value * pair.column_dot;
      const double share = sum_of_warp(static_cast<double>(
          of_column * sum.value + relation.value * pair.column * sum.value_dot));
      if (lane() == 0) memory.of_weight[row] += share;
    }
  }

  // A tile's share of the product in z, in a chunk of features.
  __device__ void add_product(const Tile& of, int begin, int stage) const {
    const auto& from = memory.stages[stage];
    const int d = static_cast<int>(in.d);
    const bool begun = of.first > 0, last = of.first + of.here == in.rows;
    const double factor = -2.0 / tail.scales[0].variance;
    WeightedDifferences<T> differences;
    differences.add(memory.pairs_dot, from.rows, from.columns, of.here);
    differences.add(memory.pairs, from.row_tangents, from.column_tangents, of.here);
    differences.each([&](int row, int f, T sum) {
      const int64_t i = own.first + row;
      if (row >= own.here || begin + f >= d || i < out.row_begin || i >= out.row_end) return;
      T& to = out.z[(item * (out.row_end - out.row_begin) + i - out.row_begin) * in.d + begin + f];
      if (begun) sum += to;
      to = last ? static_cast<T>(factor * sum) : sum;
    });
  }

  // A thread's share of the product in one bandwidth, times the variance, from a tile's pairs.
  __device__ double visit_bandwidth(int s, const Relation& relation, int64_t first,
                                    int here) const {
    double sum = 0;
#pragma unroll 1
    for (int row = first_of_warp(); row < first_of_warp() + kChunkRowsOfWarp; ++row) {
      const HvpOf<T> of = HvpOf<T>::template at<kGaussian>(in.kernel, memory.pairs.of[row][lane()],
                                                           memory.pairs_dot.of[row][lane()],
                                                           tail.scales[s], tail.scales_dot[s]);
      const Pair pair = pair_of(row, first, here);
      if (row >= own.here) continue;
      sum += (relation.value * pair.dot() + relation.dot * pair.value()) * of.by_h +
             relation.value * pair.value() * of.by_h_dot;
    }
    return sum;
  }
};

// The end of a call: the products in the relation and in the variances, from all blocks' parts.
template <typename T>
__device__ void finish_hvp(const MmdCall<T>& call, const MmdProduct<T>& out, int64_t item,
                           unsigned block, const MmdTail<T>& tail, double* scratch) {
  const MmdProblem<T>& in = call.in;
  const int groups = static_cast<int>(in.groups), count = groups + static_cast<int>(in.scales);
  const unsigned blocks = call.device.blocks;
  const Partials partials{call.device.partials + item * blocks * count, blocks, count};
  sync_block();
  if (!partials.leave(tail.parts, block, call.device.counters + item)) return;
  if (out.relation) {
    double* sums_out = out.relation + item * groups * groups;
    count_blocks(in, kChunkRows, tail.first_block);
    each_pair_of_groups<1>(groups, tail.first_block, partials,
                           [&](int g, int h, const double (&sums)[1]) {
                             sums_out[g * groups + h] = sums_out[h * groups + g] = sums[0];
                           });
  }
#pragma unroll 1
  for (int s = 0; out.variance && s < in.scales; ++s) {
    const double sum = partials.sum(groups + s, scratch);
    if (threadIdx.x == 0) out.variance[item * in.scales + s] = static_cast<T>(sum);
  }
}

// What a Hessian-vector product is given and gives.
template <typename T>
struct HvpArguments {
  MmdTangent<T> along;
  MmdProduct<T> out;
};

template <typename T, bool kGaussian>
__global__ void __launch_bounds__(kThreads, 1)
    mmd_hvp_kernel(const MmdCall<T> call, const HvpArguments<T> given) {
  const MmdProblem<T>& in = call.in;
  const MmdProduct<T>& out = given.out;
  SharedLayout layout(shared_memory<unsigned char>());
  HvpMemory<T>& memory = *layout.array<HvpMemory<T>>(1);
  const HvpTail<T> tail(layout, in);
  const int64_t item = blockIdx.x / call.device.blocks;
  const unsigned block = blockIdx.x % call.device.blocks;
  HvpPass<T, kGaussian> pass(in, given.along, out, item, block_of_rows(in, block, kChunkRows), tail,
                             memory);
  const int row = static_cast<int>(threadIdx.x);
  if (row < kChunkRows) memory.of_weight[row] = 0;
  tail.load(call, item);
#pragma unroll 1
  for (int s = row; s < in.scales; s += kThreads) {
    tail.scales_dot[s] = given.along.variance ? given.along.variance[item * in.scales + s] : T(0);
  }
  sync_block();

  const bool of_rows = pass.own.wanted(out.row_begin, out.row_end);
  // The first time for rows; then for each bandwidth whose product is wanted.
#pragma unroll 1
  for (int s = -1; s < (out.variance ? in.scales : 0); ++s) {
    double sum = 0;  // of a group's columns, or of a bandwidth
    pass.each_tile(
        s < 0 && of_rows,
        [&](const auto& relation, int64_t first, int here) {
          if (s >= 0) {
            sum += pass.visit_bandwidth(s, relation, first, here);
          } else {
            pass.visit_pairs(relation, first, here, sum);
          }
        },
        [&](int group) {
          if (s >= 0) return;
          sum = sum_of_block(sum, memory.scratch);
          if (threadIdx.x == 0) tail.parts[group] = sum;
          sum = 0;
        });
    sum = sum_of_block(sum, memory.scratch);  // all chunks have been read
    if (s >= 0 && threadIdx.x == 0) tail.parts[in.groups + s] = sum / tail.scales[s].variance;
  }
  if (out.weights && row < pass.own.here) {  // complete since the barriers of the last group
    out.weights[item * in.rows + pass.own.first + row] = static_cast<T>(2 * memory.of_weight[row]);
  }
  if (out.relation || out.variance) finish_hvp(call, out, item, block, tail, memory.scratch);
}

}  // namespace cgm_fast::cuda
