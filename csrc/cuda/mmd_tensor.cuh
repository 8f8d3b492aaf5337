// MMD² and its gradient in float32 on tensor cores, in one launch, where rows are many: a warp has
// 16 rows, whose fragments and sums stay in its registers, a block 128; columns come by tiles
// through shared memory, double-buffered: the next one is copied while one is worked on. Stream-K
// scheduling gives blocks of threads even shares of all tiles (stream_k.cuh).
//
// Rows and columns are centred on the mean of the block's rows and scaled, so that with b = -|z|²/2
// a pair's exponent is z_i . z_j + b_i + b_j: the first mma. Its accumulator fragment, turned into
// weights w, is reused as the B operand of the second mma, sum_j z_j w_ij, features by rows, and
// never leaves the registers: what a lane has of an accumulator belongs to columns 2t and 2t + 1 of
// eight, where a B fragment has t and t + 4, so columns are counted in that order.
//
// In three products of two tf32 parts each, what is lost is below float32's rounding; where tf32 is
// allowed samples are rounded to it first, so that the first product is exact, and weights are cut
// to it. Half samples are neither centred nor rounded: their first product is exact on half tensor
// cores, and being tf32 numbers as well they are multiplied with two parts of a weight. Tensor
// cores cut their sums: they are given short ones, of 128 columns or so.
#pragma once

#include "cuda/mmd_tensor_visit.cuh"

namespace cgm_fast::cuda {

// Over the four lanes that have a row's accumulators.
__device__ inline float sum_of_four(float value) {
  value += shuffle_xor(value, 1);
  return value + shuffle_xor(value, 2);
}

// The rows' gradient, from sums over all columns. A barrier.
template <int kD, Numbers kOf>
__device__ void write_gradient(const MmdProblem<float>& in, const MmdValue<float>& out,
                               int64_t item, const BlockOfRows& own, float variance,
                               const float (&sums)[TensorMemory<kD, kOf>::kSums],
                               TensorMemory<kD, kOf>& memory) {
  using Memory = TensorMemory<kD, kOf>;
  const int thread = opaque(static_cast<int>(threadIdx.x));
  const int warp = thread / kWarp * kRowsOfMma, g = thread % kWarp / 4, t = thread % 4;
#pragma unroll
  for (int row = 0; row < 2; ++row) {
    const float slope = sum_of_four(sums[kD / 2 + row]);
    if (t == 0) memory.slope[warp + g + 8 * row] = slope;
  }
  sync_block();
  // Cutting takes 0.72 of 2^-11 off a weight on average; see triton_kernels.py.
  const double of_all = -2. / variance / (Memory::kHalf ? 1.f : memory.scale) *
                        (kOf == Numbers::tf32 ? 1 + 0.72 / 2048 : 1.);
#pragma unroll
  for (int p = 0; p < 4; ++p) {
    const int row = warp + p / 2 * 8 + 2 * t + p % 2;
    const int64_t i = own.first + row;
    if (row >= own.here || i < out.row_begin || i >= out.row_end) continue;
    const double factor = of_all * row_weight(in, item, i);
    float* to = gradient_of(in, out, item, i);
#pragma unroll
    for (int at = 0; at < kD / 8; ++at) {
      const int f = 16 * (at / 2) + 2 * g + at % 2;
      if (f >= in.d) continue;
      float z = memory.rows[row * kD + f];
      if (!Memory::kHalf) z = fma(z, memory.scale, -memory.shift[f]);
      if (kOf == Numbers::tf32) z = nearest_tf32(z);
      const float weighted_sum = sums[8 * (at / 2) + 4 * (p / 2) + 2 * (at % 2) + p % 2];
      to[f] = static_cast<float>(factor * fma(memory.slope[row], z, -weighted_sum));
    }
  }
}

// A tile's sums over values and weights join those of the rows in float64.
template <int kD, Numbers kOf, bool kOptions>
__device__ void add_values(const Visit<kD, kOf>& visit, TileSums<kD>& sums,
                           TensorMemory<kD, kOf>& memory) {
#pragma unroll
  for (int row = 0; row < 2; ++row) {
    // Without weights of their own as many pairs are near as k was lessened by 1 for.
    if (!kOptions) sums.nears[row] = rint(sums.slopes[row] - sums.values[row]);
    const float value = sum_of_four(sums.values[row]), near = sum_of_four(sums.nears[row]);
    const float far = kOptions ? sum_of_four(sums.fars[row]) : 0.f;
    if (visit.t == 0) {  // of a row's four lanes the one that keeps its sums
      double* of_row = memory.sums + kOfGroup * visit.rows[row];
      of_row[kValue] += static_cast<double>(value);
      of_row[kNear] += static_cast<double>(near);
      if (kOptions) of_row[kFar] += static_cast<double>(far);
    }
  }
}

// The rows' sums over columns of a group join the block's parts; they begin anew. Barriers.
template <int kD, Numbers kOf>
__device__ void end_group(const MmdProblem<float>& in, int64_t item, const BlockOfRows& own,
                          int group, const TensorTail& tail, TensorMemory<kD, kOf>& memory) {
  const int row = static_cast<int>(threadIdx.x);
  double sums[kOfGroup] = {};
  if (row < kTensorRows) {
    double* of_row = memory.sums + kOfGroup * row;
    if (row < own.here) {
      const double weight = row_weight(in, item, own.first + row);
      const double relation = relation_of(in, item)[own.group * in.groups + group];
      const OfColumns<double> of{of_row[kValue], of_row[kNear], of_row[kFar]};
      tail.of_weight[row] += relation * of.of_weight(tail.scales[0].weight);
#pragma unroll
      for (int q = 0; q < kOfGroup; ++q) sums[q] = weight * of_row[q];
    }
#pragma unroll
    for (int q = 0; q < kOfGroup; ++q) of_row[q] = 0;
  }
  add_to_group(sums, group, tail.parts, memory.scratch);
}

// Sums over tiles that a thread has of its rows: sum_j w z_j as accumulators have it, and sum_j w
// of rows g and g + 8.
template <int kD, Numbers kOf>
struct RowSums {
  using Memory = TensorMemory<kD, kOf>;
  static constexpr int kSums = Memory::kSums, kSlopes = kD / 2;
  Memory& memory;
  float kept[Memory::kSumsInRegisters ? kSums : 1];

  __device__ explicit RowSums(Memory& memory) : memory(memory) {
#pragma unroll
    for (int at = 0; at < kSums; ++at) number(at) = 0;
  }

  __device__ float& number(int at) {
    return Memory::kSumsInRegisters ? kept[at] : memory.kept[at][threadIdx.x];
  }

  __device__ void add(const TileSums<kD>& sums, float relation) {
    const auto add_one = [&](int at, float value) {
      float& sum = number(at);
      sum = fma(relation, value, sum);
    };
#pragma unroll
    for (int row = 0; row < 2; ++row) add_one(kSlopes + row, sums.slopes[row]);
#pragma unroll
    for (int p = 0; p < 4; ++p) {
#pragma unroll
      for (int f = 0; f < kD / 8; ++f) {  // two of every sixteen features
        add_one(8 * (f / 2) + 4 * (p / 2) + 2 * (f % 2) + p % 2,
                sums.weighted_sums[f / 2][p / 2][2 * (f % 2) + p % 2]);
      }
    }
  }

  __device__ void copy_to(float (&numbers)[kSums]) {
#pragma unroll
    for (int at = 0; at < kSums; ++at) numbers[at] = number(at);
  }
};

// Block of rows `of_all` of all items' becomes the one that is visited; its sums are 0. Barriers.
template <bool kOptions, int kD, Numbers kOf>
__device__ void begin_rows(const MmdCall<float>& call, const MmdValue<float>& out, unsigned of_all,
                           const TensorTail& tail, Visit<kD, kOf>& visit,
                           TensorMemory<kD, kOf>& memory) {
  const MmdProblem<float>& in = call.in;
  const int thread = static_cast<int>(threadIdx.x);
  const unsigned block = of_all % call.device.blocks;
  visit.item = of_all / call.device.blocks;
  visit.own = block_of_rows(in, block, kTensorRows);
  if (thread == 0) {
    memory.item = visit.item;
    memory.block = block;
    memory.own = visit.own;
  }
  tail.load(call, visit.item);
  if (thread < kTensorRows) {
    tail.of_weight[thread] = 0;
#pragma unroll
    for (int q = 0; q < kOfGroup; ++q) memory.sums[kOfGroup * thread + q] = 0;
  }
  sync_block();
  visit.unit = tail.scales[0].unit;
  visit.near_from = near_exponent<float, kOptions>(tail.scales, in.scales);
  visit.gradient = visit.own.wanted(out.row_begin, out.row_end);
  visit.far = load_rows<kD, kOf>(in, visit.item, visit.own, tail.scales, memory);
  visit.left.load(memory, visit.rows, visit.t, in, visit.item, visit.own);
  for (int row = 0; row < 2; ++row) visit.row_bias[row] = memory.row_bias[visit.rows[row]];
}

// The rows with a tile, which has arrived in the ring at `raw`. A barrier.
template <bool kOptions, int kD, Numbers kOf, typename Tile, typename Word>
__device__ void visit_tile(const MmdProblem<float>& in, const Visit<kD, kOf>& visit, const Tile& of,
                           const Word* raw, const TensorTail& tail, TensorMemory<kD, kOf>& memory,
                           TileSums<kD>& sums) {
  constexpr int kColumns = TensorMemory<kD, kOf>::kColumns;
  const int thread = static_cast<int>(threadIdx.x);
  const bool weighted = kOptions && in.weights;
  if (weighted && thread < kColumns) {
    memory.weight[thread] = thread < of.here ? row_weight(in, visit.item, of.first + thread) : 0.f;
  }
  const bool far = prepare<kD, kOf>(raw, of.here, memory);
  const bool has_own = visit.own.among(of.first, of.here);
  const bool by_differences = visit.far || far || has_own;
  // The block's first row as a column of this tile; a place that no column has, if far away.
  const int own_column = has_own ? static_cast<int>(visit.own.first - of.first) : kColumns;
  int begin = 0;
  const int plain = by_differences ? 0 : of.here / 8 * 8;
#pragma unroll 1
  for (; begin < plain; begin += 8) {
    visit_columns<true, kD, kOf, kOptions>(visit, sums, memory, raw, begin, false, of.here,
                                           own_column, tail.scales, in.scales, weighted);
  }
#pragma unroll 1
  for (; begin < of.here; begin += 8) {
    visit_columns<false, kD, kOf, kOptions>(visit, sums, memory, raw, begin, by_differences,
                                            of.here, own_column, tail.scales, in.scales, weighted);
  }
}

// What the block of rows in `memory` gives, from sums over all columns. Barriers.
template <int kD, Numbers kOf>
__device__ void write_rows(const MmdCall<float>& call, const MmdValue<float>& out,
                           const TensorTail& tail,
                           const float (&numbers)[TensorMemory<kD, kOf>::kSums],
                           TensorMemory<kD, kOf>& memory) {
  const int thread = static_cast<int>(threadIdx.x);
  const BlockOfRows own = memory.own;
  write_gradient(call.in, out, memory.item, own, tail.scales[0].variance, numbers, memory);
  if (out.weights && thread < own.here) {
    out.weights[memory.item * call.in.rows + own.first + thread] =
        static_cast<float>(2 * tail.of_weight[thread]);
  }
  finish(call, out, memory.item, memory.block, tail, memory.scratch);
}

template <int kD, Numbers kOf, bool kOptions>
__global__ void __launch_bounds__(kThreads, kD > 32 ? 1 : 2)
    mmd_tensor_kernel(const MmdCall<float> call, const MmdValue<float> out) {
  using Memory = TensorMemory<kD, kOf>;
  using Tile = ColumnTile<Memory::kColumns>;
  const MmdProblem<float>& in = call.in;
  SharedLayout layout(shared_memory<unsigned char>());
  Memory& memory = *layout.array<Memory>(1);
  const TensorTail tail(layout, in);
  const int d = static_cast<int>(in.d), thread = static_cast<int>(threadIdx.x);
  Visit<kD, kOf> visit;

  const int tiles = call.device.tiles;
  const unsigned blocks = call.device.blocks;
  const StreamK stream_k{in.batch * blocks * tiles, tiles, gridDim.x};
  if (thread == 0) memory.stream_k = stream_k;
  const int64_t begin = stream_k.begin(blockIdx.x);
  int left = static_cast<int>(stream_k.begin(blockIdx.x + 1) - begin);  // tiles of this worker
  int first_tile = static_cast<int>(begin % tiles);
  unsigned block_of_all = static_cast<unsigned>(begin / tiles);
  int turn = 0;  // of the ring
  const auto begin_copy = [&](const Tile& of, unsigned item, int to) {
    fetch<kD, kOf>(rows_of(in, item, of.first), d, of.here, memory.ring[to]);
  };
  Tile of = Tile::at(in, first_tile);
  begin_copy(of, block_of_all / blocks, 0);

  for (; left > 0; ++block_of_all, first_tile = 0) {
    int tiles_here = left < tiles - first_tile ? left : tiles - first_tile;
    left -= tiles_here;
    begin_rows<kOptions>(call, out, block_of_all, tail, visit, memory);
    RowSums<kD, kOf> row_sums(memory);
    TileSums<kD> sums = {};
    int since = 0;  // tiles whose sums these are
    while (true) {
      const bool rows_end = tiles_here == 1;
      if (!rows_end || left > 0) {
        const Tile next = rows_end ? Tile::at(in, 0) : of.next(in);
        if (thread == 0) memory.next[turn % 2] = next;
        begin_copy(next, rows_end ? (block_of_all + 1) / blocks : visit.item, (turn + 1) % 2);
        copy_async_wait<1>();
      } else {
        copy_async_wait<0>();
      }
      sync_block();
      const auto* raw = memory.ring[turn % 2];
      ++turn;
      visit_tile<kOptions>(in, visit, of, raw, tail, memory, sums);
      if (++since == Memory::kTogether || of.last || rows_end) {
        const float relation =
            static_cast<float>(relation_of(in, visit.item)[visit.own.group * in.groups + of.group]);
        add_values<kD, kOf, kOptions>(visit, sums, memory);
        row_sums.add(sums, relation);
        sums = {};
        since = 0;
      }
      sync_block();  // the tile has been read
      if (of.last || rows_end) end_group(in, visit.item, visit.own, of.group, tail, memory);
      of = memory.next[(turn - 1) % 2];
      if (rows_end) break;
      --tiles_here;
    }

    float numbers[Memory::kSums];
    row_sums.copy_to(numbers);
    sync_block();  // the parts are complete
    if (!stream_k_fixup(memory.stream_k, blockIdx.x, block_of_all, call.device.slots,
                        call.device.counters + in.batch, tail.parts,
                        kOfGroup * static_cast<int>(in.groups) + kTensorRows, numbers)) {
      continue;
    }
    write_rows(call, out, tail, numbers, memory);
  }
}

}  // namespace cgm_fast::cuda
