// What a warp of MMD²'s kernel on tensor cores does with its 16 rows and eight columns: a pair's
// exponent from the first mma, its weight, and the second mma. mmd_tensor.cuh says how they fit.
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
      Pack<float, 4> b_low;
      const Pack<float, 4> b_high = read_parts<Memory>(from, b_low);
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

// What a warp knows of its rows. A lane has rows g and g + 8 of the first product and its sums, 2t,
// 2t + 1, 2t + 8 and 2t + 9 of the second.
template <int kD, Numbers kOf>
struct Visit {
  using Memory = TensorMemory<kD, kOf>;
  using Left = std::conditional_t<Memory::kHalf, HalfLeftFactor<kD, kOf>, LeftFactor<kD, kOf>>;
  int g, t, rows[2];  // rows of the block
  LanePlaces at;
  // Of a block of rows:
  unsigned item;
  BlockOfRows own;
  Left left;
  float row_bias[2], unit;  // of exponents
  float near_from;
  bool gradient, far;  // whether a row wants one, and some row is far from the centre

  __device__ Visit() {
    const int thread = static_cast<int>(threadIdx.x);
    g = thread % kWarp / 4;
    t = thread % 4;
    rows[0] = thread / kWarp * kRowsOfMma + g;
    rows[1] = rows[0] + 8;
    at = LanePlaces::of<kD>(g, t);
  }
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
      const Exp2<float> k = exp2_near(e[p], 0.f);
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
    Pack<float, 2> low_even, low_odd;
    const Pack<float, 2> of_even = read_parts<Memory>(even, low_even);
    const Pack<float, 2> of_odd = read_parts<Memory>(odd, low_odd);
    const float high[4] = {of_even.of[0], of_even.of[1], of_odd.of[0], of_odd.of[1]};
    float low[4];
    if constexpr (Memory::kSplit) {
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

}  // namespace cgm_fast::cuda
