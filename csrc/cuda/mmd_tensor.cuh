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
// cores cut their sums: they are given short ones, a tile's.
#pragma once

#include "cuda/mmd_tensor_tile.cuh"

namespace cgm_fast::cuda {

// The A fragments of the first mma: a warp's rows, what a lane has of them.
template <int kD, Numbers kOf>
struct LeftFactor {
  using Memory = TensorMemory<kD, kOf>;
  float high[kD / 8][4], low[Memory::kSplit ? kD / 8 : 1][4];

  __device__ void load(const Memory& memory, const int (&rows)[2], int t, const MmdProblem<float>&,
                       int64_t, const BlockOfRows&) {
#pragma unroll
    for (int c = 0; c < kD / 16; ++c) {
#pragma unroll
      for (int row = 0; row < 2; ++row) {
        Pack<float, 4> of_high, of_low;
        const int at = 16 * c + 4 * t;
        operand<kOf>(read_pack<4>(memory.rows + rows[row] * kD + at),
                     read_pack<4>(memory.shift + at), memory.scale, true, of_high, of_low);
#pragma unroll
        for (int q = 0; q < 4; ++q) {
          high[2 * c + q / 2][row + q % 2 * 2] = of_high.of[q];
          if (Memory::kSplit) low[2 * c + q / 2][row + q % 2 * 2] = of_low.of[q];
        }
      }
    }
  }

  // e += rows times columns [begin, begin + 8).
  __device__ void multiply(float (&e)[4], const Memory& memory, const float*, int begin,
                           const LanePlaces& at, int, int) const {
    float small[4] = {};
#pragma unroll
    for (int c = 0; c < kD / 16; ++c) {
      const float* from = memory.parts[0] + begin * kD + at.of_first<kD>(c);
      const Pack<float, 4> b_high = read_pack<4>(from);
      Pack<float, 4> b_low;
      if constexpr (Memory::kSplit) b_low = read_pack<4>(from + Memory::kColumns * kD);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float of_high[2] = {b_high.of[2 * half], b_high.of[2 * half + 1]};
        if constexpr (Memory::kSplit) {
          const float of_low[2] = {b_low.of[2 * half], b_low.of[2 * half + 1]};
          mma_16x8x8_tf32(small, low[2 * c + half], of_high);
          mma_16x8x8_tf32(small, high[2 * c + half], of_low);
        }
        mma_16x8x8_tf32(e, high[2 * c + half], of_high);
      }
    }
    if constexpr (Memory::kSplit) {
#pragma unroll
      for (int p = 0; p < 4; ++p) e[p] += small[p];
    }
  }
};

// The same of half numbers, from the ring.
template <int kD, Numbers kOf>
struct HalfLeftFactor {
  using Memory = TensorMemory<kD, kOf>;
  static constexpr int kOnce = kD == 16 ? 1 : 2;  // products whose operands lie side by side
  unsigned words[kD / 16][4];

  __device__ void load(const Memory&, const int (&rows)[2], int t, const MmdProblem<float>& in,
                       int64_t item, const BlockOfRows& own) {
    const Samples of = rows_of(in, item, own.first);
#pragma unroll
    for (int step = 0; step < kD / 16; ++step) {
#pragma unroll
      for (int p = 0; p < 4; ++p) {
        const int row = rows[p % 2];
        const int f = step / kOnce * 16 * kOnce + 4 * kOnce * t + step % kOnce * 4 + p / 2 * 2;
        const bool there = row < own.here;
        words[step][p] = bits_at(of, row, f, there && f < in.d) |
                         bits_at(of, row, f + 1, there && f + 1 < in.d) << 16;
      }
    }
  }

  __device__ void multiply(float (&e)[4], const Memory&, const unsigned* raw, int begin,
                           const LanePlaces&, int g, int t) const {
    constexpr int kWords = kD / 2;
    const unsigned* from = raw + begin * kWords;
#pragma unroll
    for (int c = 0; c < kD / 16 / kOnce; ++c) {
      const Pack<unsigned, 2 * kOnce> b = read_pack<2 * kOnce>(
          kOnce == 1 ? from + g * kWords + 2 * t : from + ring_at<kWords, true>(g, 4 * c + t));
#pragma unroll
      for (int q = 0; q < kOnce; ++q) {
        const unsigned of_b[2] = {b.of[2 * q], b.of[2 * q + 1]};
        mma_16x8x16<kOf == Numbers::bfloat16>(e, words[kOnce * c + q], of_b);
      }
    }
  }
};

// What a warp knows of its rows and of a tile. A lane has rows g and g + 8 of the first product and
// its sums, 2t, 2t + 1, 2t + 8 and 2t + 9 of the second.
template <int kD, Numbers kOf>
struct Visit {
  using Memory = TensorMemory<kD, kOf>;
  using Left = std::conditional_t<Memory::kHalf, HalfLeftFactor<kD, kOf>, LeftFactor<kD, kOf>>;
  int g, t, rows[2];  // rows of the block
  LanePlaces at;
  Left left;
  float row_bias[2], unit;  // of exponents
  float near_from;
  bool gradient;
};

// A tile's sums: over values, what near and far pairs weigh (kOptions) and slopes, and of two
// features of four rows in every sixteen.
template <int kD>
struct TileSums {
  float values[2], nears[2], fars[2], slopes[2], weighted_sums[kD / 16][2][4];
};

// The warp's rows with columns [begin, begin + 8) of a tile. kPlain: distances from products, all
// columns are there, and none is a row.
template <bool kPlain, int kD, Numbers kOf, bool kOptions, typename Word>
__device__ __forceinline__ void visit_columns(const Visit<kD, kOf>& visit, TileSums<kD>& sums,
                                              const TensorMemory<kD, kOf>& memory, const Word* raw,
                                              int begin, bool by_differences, int here,
                                              int own_column, const Scale<float>* scales,
                                              int64_t count, bool weighted) {
  using Memory = TensorMemory<kD, kOf>;
  constexpr bool kTwo = kOf != Numbers::tf32;  // whether weights are two tf32 numbers
  const int column = begin + 2 * visit.t;
  float e[4] = {};
  if (!kPlain && by_differences) {
#pragma unroll 1
    for (int c = 0; c < kD / 4; ++c) {
#pragma unroll
      for (int p = 0; p < 4; ++p) {
        const Pack<float, 4> of_row = read_pack<4>(memory.rows + visit.rows[p / 2] * kD + 4 * c);
        const Pack<float, 4> of_column = raw_chunk<kD, kOf>(raw, column + p % 2, c);
#pragma unroll
        for (int q = 0; q < 4; ++q) {
          const float difference = of_row.of[q] - of_column.of[q];
          e[p] = fma(difference, difference, e[p]);
        }
      }
    }
#pragma unroll
    for (int p = 0; p < 4; ++p) e[p] *= visit.unit;
  } else {
    visit.left.multiply(e, memory, raw, begin, visit.at, visit.g, visit.t);
    const Pack<float, 2> bias = read_pack<2>(memory.bias + column);
#pragma unroll
    for (int p = 0; p < 4; ++p) {
      const float both = visit.row_bias[p / 2] + bias.of[p % 2];
      e[p] = Memory::kHalf ? fma(e[p], -2 * visit.unit, both) : e[p] + both;
    }
  }
  float value[4], w[4], near[4];
  if constexpr (kOptions) kernels_at(e, scales, count, visit.near_from, value, w, near);
#pragma unroll
  for (int p = 0; p < 4; ++p) {
    const int j = column + p % 2;
    // A row is not paired with itself: its rounding would be all there is where others are far. The
    // value stays, which is 0 or not a number.
    const bool beyond = !kPlain && j >= here;
    const bool left_out = beyond || (!kPlain && j == own_column + visit.rows[p / 2]);
    if constexpr (kOptions) {
      const float weight = weighted ? memory.weight[j] : 1.f, of_column = left_out ? 0.f : weight;
      value[p] = beyond ? 0.f : value[p] * weight;
      w[p] *= of_column;
      sums.nears[p / 2] = fma(near[p], of_column, sums.nears[p / 2]);
      sums.fars[p / 2] = fma(static_cast<float>(count) - near[p], of_column, sums.fars[p / 2]);
    } else {
      const Exp2<float> k = exp2_less(e[p], is_near(e[p], visit.near_from));
      value[p] = beyond ? 0.f : k.less;
      w[p] = left_out ? 0.f : k.whole;
    }
  }
  float w_high[2][2], w_low[2][2];  // of rows g and g + 8, as B fragments
#pragma unroll
  for (int p = 0; p < 4; ++p) {
    w_high[p / 2][p % 2] = cut_tf32(w[p]);
    w_low[p / 2][p % 2] = w[p] - w_high[p / 2][p % 2];
    sums.values[p / 2] += value[p];
    sums.slopes[p / 2] += kTwo ? w[p] : w_high[p / 2][p % 2];
  }
  if (!visit.gradient) return;
#pragma unroll
  for (int c = 0; c < kD / 16; ++c) {
    const float* even = memory.parts[0] + begin * kD + visit.at.template of_second<kD>(c, 0);
    const float* odd = memory.parts[0] + begin * kD + visit.at.template of_second<kD>(c, 1);
    const Pack<float, 2> of_even = read_pack<2>(even), of_odd = read_pack<2>(odd);
    const float high[4] = {of_even.of[0], of_even.of[1], of_odd.of[0], of_odd.of[1]};
    float low[4];
    if constexpr (Memory::kSplit) {
      const Pack<float, 2> low_even = read_pack<2>(even + Memory::kColumns * kD);
      const Pack<float, 2> low_odd = read_pack<2>(odd + Memory::kColumns * kD);
      low[0] = low_even.of[0], low[1] = low_even.of[1];
      low[2] = low_odd.of[0], low[3] = low_odd.of[1];
    }
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      if constexpr (kTwo) mma_16x8x8_tf32(sums.weighted_sums[c][row], high, w_low[row]);
      if constexpr (Memory::kSplit) mma_16x8x8_tf32(sums.weighted_sums[c][row], low, w_high[row]);
      mma_16x8x8_tf32(sums.weighted_sums[c][row], high, w_high[row]);
    }
  }
}

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

template <int kD, Numbers kOf, bool kOptions>
__global__ void __launch_bounds__(kThreads, kD > 32 ? 1 : 2)
    mmd_tensor_kernel(const MmdCall<float> call, const MmdValue<float> out) {
  using Memory = TensorMemory<kD, kOf>;
  constexpr int kColumns = Memory::kColumns, kSums = Memory::kSums, kSlopes = kD / 2;
  using Tile = TensorTile<kColumns>;
  const MmdProblem<float>& in = call.in;
  SharedLayout layout(shared_memory<unsigned char>());
  Memory& memory = *layout.array<Memory>(1);
  const TensorTail tail(layout, in);
  const int d = static_cast<int>(in.d), thread = static_cast<int>(threadIdx.x);
  const int warp = thread / kWarp, g = thread % kWarp / 4, t = thread % 4;
  Visit<kD, kOf> visit;
  visit.g = g;
  visit.t = t;
  visit.rows[0] = warp * kRowsOfMma + g;
  visit.rows[1] = visit.rows[0] + 8;
  visit.at = LanePlaces::of<kD>(g, t);

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
    const unsigned item = block_of_all / blocks, block = block_of_all % blocks;
    int tiles_here = left < tiles - first_tile ? left : tiles - first_tile;
    left -= tiles_here;
    const BlockOfRows own = block_of_rows(in, block, kTensorRows);
    if (thread == 0) {
      memory.item = item;
      memory.block = block;
      memory.own = own;
    }
    tail.load(call, item);
    if (thread < kTensorRows) {
      tail.of_weight[thread] = 0;
#pragma unroll
      for (int q = 0; q < kOfGroup; ++q) memory.sums[kOfGroup * thread + q] = 0;
    }
    sync_block();
    visit.unit = tail.scales[0].unit;
    visit.near_from = near_exponent<float, kOptions>(tail.scales, in.scales);
    visit.gradient = own.wanted(out.row_begin, out.row_end);
    const bool far_rows = load_rows<kD, kOf>(in, item, own, tail.scales, memory);
    visit.left.load(memory, visit.rows, t, in, item, own);
    for (int row = 0; row < 2; ++row) visit.row_bias[row] = memory.row_bias[visit.rows[row]];

    // sum_j w z_j as accumulators have it, and sum_j w of rows g and g + 8.
    float kept[Memory::kSumsInRegisters ? kSums : 1];
    const auto keep = [&](int at, bool clear, float factor, float value) {
      float& sum = Memory::kSumsInRegisters ? kept[at] : memory.kept[at][thread];
      sum = clear ? 0 : fma(factor, value, sum);
    };
#pragma unroll
    for (int at = 0; at < kSums; ++at) keep(at, true, 0, 0);
    while (true) {
      const bool rows_end = tiles_here == 1;
      if (!rows_end || left > 0) {
        const Tile next = rows_end ? Tile::at(in, 0) : of.next(in);
        if (thread == 0) memory.next[turn % 2] = next;
        begin_copy(next, rows_end ? (block_of_all + 1) / blocks : item, (turn + 1) % 2);
        copy_async_wait<1>();
      } else {
        copy_async_wait<0>();
      }
      sync_block();
      const auto* raw = memory.ring[turn % 2];
      ++turn;
      const bool weighted = kOptions && in.weights;
      if (weighted && thread < kColumns) {
        memory.weight[thread] = thread < of.here ? row_weight(in, item, of.first + thread) : 0.f;
      }
      const bool far = prepare<kD, kOf>(raw, of.here, memory);
      const bool has_own = own.among(of.first, of.here);
      const bool by_differences = far_rows || far || has_own;
      // The block's first row as a column of this tile; a place that no column has, if far away.
      const int own_column = has_own ? static_cast<int>(own.first - of.first) : kColumns;

      TileSums<kD> sums = {};
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
                                                of.here, own_column, tail.scales, in.scales,
                                                weighted);
      }
      const float relation =
          static_cast<float>(relation_of(in, item)[own.group * in.groups + of.group]);
      add_values<kD, kOf, kOptions>(visit, sums, memory);
#pragma unroll
      for (int row = 0; row < 2; ++row) keep(kSlopes + row, false, relation, sums.slopes[row]);
#pragma unroll
      for (int p = 0; p < 4; ++p) {
#pragma unroll
        for (int f = 0; f < kD / 8; ++f) {  // two of every sixteen features
          keep(8 * (f / 2) + 4 * (p / 2) + 2 * (f % 2) + p % 2, false, relation,
               sums.weighted_sums[f / 2][p / 2][2 * (f % 2) + p % 2]);
        }
      }
      sync_block();  // the tile has been read
      if (of.last || rows_end) end_group(in, item, own, of.group, tail, memory);
      of = memory.next[(turn - 1) % 2];
      if (rows_end) break;
      --tiles_here;
    }

    float numbers[kSums];
#pragma unroll
    for (int at = 0; at < kSums; ++at) {
      numbers[at] = Memory::kSumsInRegisters ? kept[at] : memory.kept[at][thread];
    }
    sync_block();  // the parts are complete
    if (!stream_k_fixup(memory.stream_k, blockIdx.x, block_of_all, call.device.slots,
                        call.device.counters + in.batch, tail.parts,
                        kOfGroup * static_cast<int>(in.groups) + kTensorRows, numbers)) {
      continue;
    }
    const BlockOfRows rows = memory.own;
    write_gradient(in, out, memory.item, rows, tail.scales[0].variance, numbers, memory);
    if (out.weights && thread < rows.here) {
      out.weights[memory.item * in.rows + rows.first + thread] =
          static_cast<float>(2 * tail.of_weight[thread]);
    }
    finish(call, out, memory.item, memory.block, tail, memory.scratch);
  }
}

}  // namespace cgm_fast::cuda
