// What MMD²'s kernel on tensor cores has in shared memory: a block of rows, and tiles of columns on
// their way to being operands.
//
// Features may be summed in any order, and columns too, as long as both operands agree. So operands
// that a lane needs in registers side by side are made to lie side by side: of the first mma four
// features of a column, of the second two. A swizzle keeps both ways of reading free of bank
// conflicts: chunks of four are permuted within a line of all 32 banks.
#pragma once

#include <type_traits>

#include "cuda/mmd.cuh"
#include "cuda/stream_k.cuh"

namespace cgm_fast::cuda {

constexpr int kTensorRows = 128, kRowsOfMma = 16;

template <int kD, Numbers kOf>
struct TensorMemory {
  static constexpr bool kHalf = kOf == Numbers::bfloat16 || kOf == Numbers::float16;
  static constexpr bool kSplit = kOf == Numbers::tf32x3;
  // Whether columns are kept in two parts. Of 64 features they are split by whoever multiplies
  // them, for what shared memory gives would bound it.
  static constexpr bool kSplitBefore = kSplit && kD < 64;
  static constexpr int kColumns = kD < 64 ? 2048 / kD : 64;      // a block may have 99 KiB
  static constexpr int kTogether = (127 + kColumns) / kColumns;  // tiles that tensor cores add up
  using Word = std::conditional_t<kHalf, unsigned, float>;       // half numbers by twos
  static constexpr int kWords = kHalf ? kD / 2 : kD;             // of a row
  alignas(16) Word ring[2][kColumns * kWords];                   // samples as they are
  alignas(16) float rows[kTensorRows * kD];                      // the same, widened
  // Of a tile, centred and scaled, its high and low parts; or just widened.
  alignas(16) float parts[kSplitBefore ? 2 : 1][kColumns * kD];
  alignas(8) float bias[kColumns];
  float weight[kColumns], row_bias[kTensorRows], slope[kTensorRows];
  alignas(16) float shift[kD];  // the centre, scaled
  float scale, widest;  // of coordinates; of bandwidths the widest exponent over the first's
  // Sums over tiles, a column to a thread: with few features the occupancy is two blocks to a
  // multiprocessor, for which registers are too few. With more, shared memory is.
  static constexpr int kSums = kD / 2 + 2;
  static constexpr bool kSumsInRegisters = kD > 32;
  float kept[kSumsInRegisters ? 1 : kSums][kThreads];
  // The same for all threads, and here to spare registers.
  StreamK stream_k;
  unsigned item, block;
  BlockOfRows own;
  ColumnTile<kColumns> next[2];         // of every other turn
  double sums[kTensorRows * kOfGroup];  // of every row, over the columns of a group
  double scratch[kScratch];
};

// Beside the groups' parts are the rows' shares of the derivatives in weights, half of them.
struct TensorTail : MmdTail<float> {
  double* of_weight;  // [kTensorRows]

  __host__ __device__ TensorTail(SharedLayout& layout, const MmdProblem<float>& in)
      : MmdTail<float>(layout, in.groups, in.scales, kTensorRows),
        of_weight(parts + kOfGroup * in.groups) {}
};

// The tf32 number that tensor cores read, and the nearest one, ties away from zero.
__device__ inline float cut_tf32(float value) { return from_bits(bits_of(value) & ~0x1fff); }
__device__ inline float nearest_tf32(float value) {
  const float rounded = from_bits((bits_of(value) + 0x1000) & ~0x1fff);
  return value == value ? rounded : value;
}

// Where features 4c to 4c + 3 of column j are: the swizzle.
template <int kD>
__device__ int chunk_at(int j, int c) {
  const int line = kD == 16 ? (j & ~1) * kD : j * kD;  // of 16 numbers two columns share one
  return line + 4 * (c ^ (j % 8 & 6) ^ (j % 2 * 4));
}

// A lane's places in a tile's parts, of columns 0 to 7; others are eight columns on. All that both
// products read is at a constant distance from two places each.
struct LanePlaces {
  int first[2], second[2];

  template <int kD>
  __device__ static LanePlaces of(int g, int t) {
    return {
        {chunk_at<kD>(g, t), chunk_at<kD>(g, kD == 16 ? t : 4 + t)},
        {chunk_at<kD>(2 * t, g / 2) + g % 2 * 2,
         (kD == 16 ? chunk_at<kD>(2 * t + 1, g / 2) : chunk_at<kD>(2 * t, 4 + g / 2)) + g % 2 * 2}};
  }

  // Features 16c + 4t to 16c + 4t + 3 of column g.
  template <int kD>
  __device__ int of_first(int c) const {
    return first[c % 2] + c / 2 * 32;
  }
  // Features 16c + 2g and 16c + 2g + 1 of column 2t + odd.
  template <int kD>
  __device__ int of_second(int c, int odd) const {
    return kD == 16 ? second[odd] : second[c % 2 ^ odd] + odd * kD + c / 2 * 32;
  }
};

// Where words 4c to 4c + 3 of column j are in the ring. Tensor cores read half samples from there.
template <int kWords, bool kHalf>
__device__ int ring_at(int j, int c) {
  return j * kWords + 4 * (kHalf && kWords == 32 ? c ^ (j % 2 * 4) : c);
}

// Of two half numbers the first or the second.
template <Numbers kOf>
__device__ float half_of(unsigned word, int which) {
  const unsigned bits = which ? word >> 16 : word & 0xffff;
  return kOf == Numbers::bfloat16 ? of_bfloat16(bits) : of_float16(bits);
}

// Features 4c to 4c + 3 of a column of the ring.
template <int kD, Numbers kOf, typename Word>
__device__ Pack<float, 4> raw_chunk(const Word* ring, int j, int c) {
  using Memory = TensorMemory<kD, kOf>;
  if constexpr (Memory::kHalf) {
    const Pack<unsigned, 2> words =
        read_pack<2>(ring + ring_at<Memory::kWords, true>(j, c / 2) + c % 2 * 2);
    return {{half_of<kOf>(words.of[0], 0), half_of<kOf>(words.of[0], 1),
             half_of<kOf>(words.of[1], 0), half_of<kOf>(words.of[1], 1)}};
  } else {
    return read_pack<4>(ring + ring_at<Memory::kWords, false>(j, c));
  }
}

// The bits of a half number, or 0.
__device__ inline unsigned bits_at(const Samples& of, int row, int f, bool valid) {
  const int64_t at = row * of.row_stride + f * of.feature_stride;
  return valid ? static_cast<const std::uint16_t*>(of.data)[at] : 0;
}

// Begin to copy a tile, the first `here` of these rows, with zeros beyond them and their features,
// kOfCopy words at a time.
template <int kD, Numbers kOf, int kOfCopy, typename Word>
__device__ void fetch_words(const Samples& from, int d, int here, Word* to) {
  using Memory = TensorMemory<kD, kOf>;
  constexpr int kOfWord = Memory::kHalf ? 2 : 1, kNumbers = kOfCopy * kOfWord, kBytes = 4 / kOfWord;
  constexpr int kCopies = Memory::kWords / kOfCopy, kStep = kThreads / kCopies;
  const int thread = opaque(static_cast<int>(threadIdx.x));
  const int first = thread / kCopies, w = thread % kCopies * kOfCopy;
  const int left = d - w * kOfWord,
            bytes = (left < kNumbers ? left < 0 ? 0 : left : kNumbers) * kBytes;
  const unsigned char* source =
      static_cast<const unsigned char*>(from.data) +
      (first * from.row_stride + w * kOfWord * from.feature_stride) * kBytes;
  static_assert(Memory::kColumns % kStep == 0);
#pragma unroll
  for (int turn = 0; turn < Memory::kColumns / kStep; ++turn) {
    const int j = first + turn * kStep;
    copy_async<4 * kOfCopy>(to + ring_at<Memory::kWords, Memory::kHalf>(j, w / 4) + w % 4, source,
                            j < here ? bytes : 0);
    source += kStep * kBytes * from.row_stride;
  }
}

// The same by the widest copies that the samples allow; they are of the type said.
template <int kD, Numbers kOf, typename Word>
__device__ void fetch(const Samples& from, int d, int here, Word* to) {
  using Memory = TensorMemory<kD, kOf>;
  constexpr int kWords = Memory::kWords, kOfWord = Memory::kHalf ? 2 : 1;
  const bool by_words = !Memory::kHalf || (from.feature_stride == 1 && from.row_stride % 2 == 0 &&
                                           reinterpret_cast<std::uintptr_t>(from.data) % 4 == 0);
  if (aligned(from, d, 4 * kOfWord)) {
    fetch_words<kD, kOf, 4>(from, d, here, to);
  } else if (by_words) {
    fetch_words<kD, kOf, 1>(from, d, here, to);
  } else if constexpr (Memory::kHalf) {
    constexpr int kTogether = 4, kStep = kThreads / kWords;
    const int thread = opaque(static_cast<int>(threadIdx.x));
    const int w = thread % kWords, f = w * kOfWord;
#pragma unroll 1
    for (int first = thread / kWords; first < Memory::kColumns; first += kTogether * kStep) {
      unsigned held[kTogether];
#pragma unroll
      for (int q = 0; q < kTogether; ++q) {
        const int j = first + q * kStep;
        held[q] = bits_at(from, j, f, j < here && f < d) |
                  bits_at(from, j, f + 1, j < here && f + 1 < d) << 16;
      }
#pragma unroll
      for (int q = 0; q < kTogether; ++q) {
        to[ring_at<kWords, true>(first + q * kStep, w / 4) + w % 4] = held[q];
      }
    }
  }
  copy_async_commit();
}

// Numbers of a column that lie side by side, as tf32 numbers, and what is left of them.
template <typename Memory, int kCount>
__device__ Pack<float, kCount> read_parts(const float* from, Pack<float, kCount>& low) {
  Pack<float, kCount> high = read_pack<kCount>(from);
  if constexpr (Memory::kSplitBefore) {
    low = read_pack<kCount>(from + sizeof(Memory::parts[0]) / sizeof(float));
  } else if constexpr (Memory::kSplit) {
#pragma unroll
    for (int q = 0; q < kCount; ++q) {
      low.of[q] = high.of[q];
      high.of[q] = cut_tf32(high.of[q]);
      low.of[q] -= high.of[q];
    }
  }
  return high;
}

// A chunk of four features as products want it; returns its share of |z|².
template <Numbers kOf>
__device__ float operand(const Pack<float, 4>& raw, const Pack<float, 4>& shift, float scale,
                         bool there, Pack<float, 4>& high, Pack<float, 4>& low) {
  float square = 0;
#pragma unroll
  for (int q = 0; q < 4; ++q) {
    float z = raw.of[q];
    if constexpr (kOf == Numbers::tf32x3 || kOf == Numbers::tf32) {
      z = there ? fma(z, scale, -shift.of[q]) : 0.f;
      high.of[q] = kOf == Numbers::tf32 ? nearest_tf32(z) : cut_tf32(z);
      low.of[q] = z - high.of[q];
      if (kOf == Numbers::tf32) z = high.of[q];
    } else {
      high.of[q] = z;
    }
    square = fma(z, z, square);
  }
  return square;
}

// Over the lanes that have the chunks of one row of kD features.
template <int kD>
__device__ float sum_of_chunks(float value) {
#pragma unroll
  for (int bit = 1; bit < kD / 4; bit *= 2) value += shuffle_xor(value, bit);
  return value;
}

// The block's rows and the place of their centre; whether one is far from it, or from 0 where half
// samples are multiplied as they are. A barrier.
template <int kD, Numbers kOf>
__device__ bool load_rows(const MmdProblem<float>& in, int64_t item, const BlockOfRows& own,
                          const Scale<float>* scales, TensorMemory<kD, kOf>& memory) {
  constexpr int kChunks = kD / 4, kParts = kThreads / kChunks;  // a thread has chunks of one place
  const int here = own.here;
  const int d = static_cast<int>(in.d), thread = static_cast<int>(threadIdx.x);
  const int c = thread % kChunks;
  const float scale = sqrt(-2 * scales[0].unit);
  float widest = 1;
#pragma unroll 1
  for (int s = 1; s < in.scales; ++s) widest = scales[s].ratio > widest ? scales[s].ratio : widest;
  if (thread == 0) {
    memory.scale = scale;
    memory.widest = widest;
  }
  float sum[4] = {};
  const auto at = [of = rows_of(in, item, own.first)] {
    if constexpr (TensorMemory<kD, kOf>::kHalf) {
      return halves_of(of);
    } else {
      return elements_of<float>(of);
    }
  }();
#pragma unroll 2
  for (int row = thread / kChunks; row < kTensorRows; row += kParts) {
    Pack<float, 4> values;
#pragma unroll
    for (int q = 0; q < 4; ++q) {
      const int f = 4 * c + q;
      const float value = at(row < here ? row : here - 1, f < d ? f : d - 1);
      values.of[q] = row < here && f < d ? value : 0.f;
      sum[q] += values.of[q];
    }
    write_pack(memory.rows + row * kD + 4 * c, values);
  }
  if constexpr (!TensorMemory<kD, kOf>::kHalf) {
    static_assert(kParts * kD <= TensorMemory<kD, kOf>::kColumns * kD);
#pragma unroll
    for (int q = 0; q < 4; ++q) memory.parts[0][thread / kChunks * kD + 4 * c + q] = sum[q];
    sync_block();
    if (thread < kD) {
      float total = 0;
#pragma unroll 1
      for (int part = 0; part < kParts; ++part) total += memory.parts[0][part * kD + thread];
      memory.shift[thread] = total / static_cast<float>(here) * scale;
    }
    sync_block();
  }
  bool far = false;
#pragma unroll 1
  for (int row = thread / kChunks; row < kTensorRows; row += kParts) {
    Pack<float, 4> high, low;
    float square = operand<kOf>(read_pack<4>(memory.rows + row * kD + 4 * c),
                                read_pack<4>(memory.shift + 4 * c), scale, row < here, high, low);
    if (TensorMemory<kD, kOf>::kHalf) square *= scale * scale;
    square = sum_of_chunks<kD>(square);
    far = far || !(square * widest <= kFarSquare);  // or NaN
    if (c == 0) memory.row_bias[row] = square * -0.5f;
  }
  return any_in_block(far);
}

// A tile as products want it; whether some column is far from the centre. A barrier.
template <int kD, Numbers kOf>
__device__ bool prepare(const typename TensorMemory<kD, kOf>::Word* raw, int here,
                        TensorMemory<kD, kOf>& memory) {
  using Memory = TensorMemory<kD, kOf>;
  constexpr int kChunks = kD / 4;
  const float scale = memory.scale, widest = memory.widest;
  static_assert(Memory::kColumns * kChunks % kThreads == 0);
  bool far = false;
#pragma unroll
  for (int turn = 0; turn < Memory::kColumns * kChunks / kThreads; ++turn) {
    const int at = static_cast<int>(threadIdx.x) + turn * kThreads;
    const int j = at / kChunks, c = at % kChunks;
    Pack<float, 4> high, low;
    float square = operand<kOf>(raw_chunk<kD, kOf>(raw, j, c), read_pack<4>(memory.shift + 4 * c),
                                scale, j < here, high, low);
    if constexpr (Memory::kSplitBefore) {
      write_pack(memory.parts[1] + chunk_at<kD>(j, c), low);
    } else if constexpr (Memory::kSplit) {
#pragma unroll
      for (int q = 0; q < 4; ++q) high.of[q] += low.of[q];  // exactly what they are parts of
    }
    write_pack(memory.parts[0] + chunk_at<kD>(j, c), high);
    if (Memory::kHalf) square *= scale * scale;
    square = sum_of_chunks<kD>(square);
    far = far || !(square * widest <= kFarSquare);
    if (c == 0) memory.bias[j] = square * -0.5f;
  }
  return any_in_block(far);
}

}  // namespace cgm_fast::cuda
