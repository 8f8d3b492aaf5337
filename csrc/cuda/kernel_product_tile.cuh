// A tile of 64 rows and some columns in shared memory, and how a block's threads share what they
// add up of it: parts of kernel_product.cuh.
#pragma once

#include "cuda/read.cuh"
#include "cuda/reduce.cuh"

namespace cgm_fast::cuda {

// Rows of a block; and how threads have them: 4 each, 16 threads.
constexpr int kProductRows = 64, kQuad = 4, kQuads = kProductRows / kQuad;
// Columns that are added up in T, at most.
constexpr int kPlainColumns = 256;

template <typename T>
struct ProductMemory {
  static constexpr int kColumns = sizeof(T) == 4 ? 64 : 32;
  static constexpr int kChunk = kColumns;  // features, or values
  // Padded against bank conflicts of load_transposed.
  T rows[kChunk][kProductRows + 4];
  T columns[kChunk][kColumns + 4];
  // Of a tile's pairs squared distances and <u, v>; and then what values and differences of
  // features are weighed with. A pair's place is its thread's own until there is a barrier; loops
  // over pairs that are not unrolled find it there, where they could not index registers.
  T weights[kColumns][kProductRows], slopes[kColumns][kProductRows];
  double scratch[kScratch];
};

// Numbers that lie side by side, by loads of 16 bytes.
template <typename T, int kCount>
__device__ void read_some(const T* from, T (&to)[kCount]) {
  constexpr int kPack = 16 / sizeof(T);
  static_assert(kCount % kPack == 0);
#pragma unroll
  for (int first = 0; first < kCount; first += kPack) {
    const Pack<T, kPack> pack = read_pack<kPack>(from + first);
#pragma unroll
    for (int q = 0; q < kPack; ++q) to[first + q] = pack.of[q];
  }
}
template <typename T, int kCount>
__device__ void write_some(T* to, const T (&from)[kCount]) {
  constexpr int kPack = 16 / sizeof(T);
#pragma unroll
  for (int first = 0; first < kCount; first += kPack) {
    Pack<T, kPack> pack;
#pragma unroll
    for (int q = 0; q < kPack; ++q) pack.of[q] = from[first + q];
    write_pack(to + first, pack);
  }
}

// Features of kCount rows, a feature's rows side by side; `at(row, feature)` reads an element. Rows
// and features that are not there are zeros, as far as features come in sixteens. A warp takes
// eight features of four rows: sectors of 32 bytes where features are contiguous, and 32 banks.
template <int kCount, typename T, int kChunk, int kStride, typename At>
__device__ void load_transposed(T (&chunk)[kChunk][kStride], int rows, int features, const At& at) {
  constexpr int kEight = 8, kTwice = 2, kStep = kThreads / kEight, kTimes = kCount / kStep;
  static_assert(kCount % kStep == 0 && kChunk % (kTwice * kEight) == 0);
  const int own_f = static_cast<int>(threadIdx.x) % kEight;
  // Opaque: addresses would be kept in registers from tile to tile.
  const int own_row = opaque(static_cast<int>(threadIdx.x) / kEight);
#pragma unroll 1
  for (int begin = own_f; begin - own_f < features; begin += kTwice * kEight) {
    T held[kTwice][kTimes];  // loads that are under way together
#pragma unroll
    for (int g = 0; g < kTwice; ++g) {
#pragma unroll
      for (int q = 0; q < kTimes; ++q) {
        const int row = own_row + kStep * q, f = begin + kEight * g;
        const T value = at(row < rows ? row : rows - 1, f < features ? f : features - 1);
        held[g][q] = row < rows && f < features ? value : T(0);
      }
    }
#pragma unroll
    for (int g = 0; g < kTwice; ++g) {
#pragma unroll
      for (int q = 0; q < kTimes; ++q) chunk[begin + kEight * g][own_row + kStep * q] = held[g][q];
    }
  }
}

// Begin to copy them so where they are numbers of type T: an element from data[row * along +
// feature * across].
template <int kCount, typename T, int kChunk, int kStride>
__device__ void fetch_transposed(T (&chunk)[kChunk][kStride], int rows, int features,
                                 const ElementsOf<T>& from) {
  constexpr int kEight = 8, kBytes = static_cast<int>(sizeof(T)), kStep = kThreads / kEight;
  const int thread = opaque(static_cast<int>(threadIdx.x));
  const int own_f = thread % kEight, own_row = thread / kEight;
  const T* source = from.data + own_row * from.along + own_f * from.across;
  const int padded = (features + 15) / 16 * 16;
#pragma unroll 1
  for (int f = own_f; f < padded; f += kEight) {
#pragma unroll
    for (int q = 0; q < kCount / kStep; ++q) {
      const int row = own_row + kStep * q;
      copy_async<kBytes>(&chunk[f][row], source + q * kStep * from.along,
                         row < rows && f < features ? kBytes : 0);
    }
    source += kEight * from.across;
  }
}

// A sum and what rounding has taken from it.
template <typename T>
struct Compensated {
  T sum, low;

  __device__ void add(T value) {
    const T next = sum + value, of_value = next - sum;
    low += (sum - (next - of_value)) + (value - of_value);
    sum = next;
  }
  // An infinite sum leaves NaN below.
  __device__ double total() const {
    return static_cast<double>(sum) + (low - low == 0 ? static_cast<double>(low) : 0.);
  }
};

// How a block's threads share a chunk of outputs: four rows and four outputs each, and of the
// columns a slice, where outputs are few.
struct Slices {
  int of_slice;  // threads: 16 for each four outputs, a power of two
  int slices;

  __device__ explicit Slices(int outputs) : of_slice(kQuads) {
    while (of_slice / kQuads * kQuad < outputs) of_slice *= 2;
    slices = kThreads / of_slice;
  }
  __device__ static int row() { return static_cast<int>(threadIdx.x) % kQuads * kQuad; }
  __device__ int output() const {
    return static_cast<int>(threadIdx.x) % of_slice / kQuads * kQuad;
  }
  __device__ int slice() const { return static_cast<int>(threadIdx.x) / of_slice; }
  // The thread that has them.
  __device__ int thread(int slice, int row, int output) const {
    return slice * of_slice + output / kQuad * kQuads + row / kQuad;
  }
};

}  // namespace cgm_fast::cuda
