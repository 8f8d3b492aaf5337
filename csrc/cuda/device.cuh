// What the kernels use of a CUDA device, by name: everything that is PTX, or that the emulation
// (tests/emulation) has to do in its own way. Kernels use nothing else.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)
#include <cuda_fp16.h>
#else
#include "cpu/read.h"
#endif

namespace cgm_fast::cuda {

constexpr int kWarp = 32;

#if defined(__CUDACC__)

// Shared memory of the launch's size.
template <typename T>
__device__ T* shared_memory() {
  extern __shared__ uint4 memory[];
  return reinterpret_cast<T*>(memory);
}

__device__ inline void sync_block() { __syncthreads(); }

template <typename T>
__device__ T shuffle_xor(T value, int bit) {
  return __shfl_xor_sync(0xffffffffu, value, bit);
}

// The lanes of the warp for which it is true, a bit each.
__device__ inline unsigned ballot(bool value) { return __ballot_sync(0xffffffffu, value); }

// The lanes of the warp that have the same value, a bit each.
__device__ inline unsigned match_lanes(int value) { return __match_any_sync(0xffffffffu, value); }

__device__ inline void sync_warp() { __syncwarp(); }

__device__ inline int count_bits(unsigned bits) { return __popc(bits); }

// Whether it is true for any thread of the block; a barrier.
__device__ inline bool any_in_block(bool value) { return __syncthreads_or(value) != 0; }

// A memory fence of the device: what this thread wrote is seen by whoever sees what it writes next.
__device__ inline void fence() { __threadfence(); }

// The number before; after `last` comes 0, as a call that ends leaves it for the next.
__device__ inline unsigned count_up(unsigned* counter, unsigned last) {
  return atomicInc(counter, last);
}

// A load that bypasses L1 (ld.cg): of a number that another block may just have written.
template <typename T>
__device__ T load_fresh(const T* from) {
  return __ldcg(from);
}

// A compiler barrier: no load moves across it. A long unrolled loop would begin all of its loads at
// once and hold them in registers.
__device__ inline void compiler_barrier() { asm volatile("" ::: "memory"); }

// The emulation's errors.
__device__ inline void check_alignment(const void*, std::size_t) {}

// The same number, opaque to the compiler, against loop-invariant code motion: what is computed
// from it inside a loop would be computed before and kept in a register that the loop is short of.
__device__ inline int opaque(int value) {
  asm volatile("" : "+r"(value));
  return value;
}

__device__ inline float max_or_nan(float a, float b) {
  float larger;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(larger) : "f"(a), "f"(b));
  return larger;
}

// 2^e of the hardware: off by 2^-22 at most, relatively, and 0 below 2^-126. A NaN stays one.
__device__ inline float exp2_approx(float e) {
  float power;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(e));
  return power;
}

__device__ inline int bits_of(float value) { return __float_as_int(value); }
__device__ inline float from_bits(int bits) { return __int_as_float(bits); }
__device__ inline long long bits_of(double value) { return __double_as_longlong(value); }
__device__ inline double from_bits(long long bits) { return __longlong_as_double(bits); }

// Copy kBytes, 4, 8 or 16, to shared memory while the thread goes on: the first `bytes` of them,
// then zeros; of 0 bytes the address is not read. Both addresses are multiples of kBytes.
template <int kBytes>
__device__ void copy_async(void* to, const void* from, int bytes) {
  const auto address = static_cast<unsigned>(__cvta_generic_to_shared(to));
  if constexpr (kBytes == 16) {  // past L1
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(from),
                 "r"(bytes)
                 : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(address), "l"(from),
                 "n"(kBytes), "r"(bytes)
                 : "memory");
  }
}
__device__ inline void copy_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Wait until at most kLeft of this thread's groups are under way; others' need a barrier besides.
template <int kLeft>
__device__ void copy_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kLeft) : "memory");
}

// c [16, 8] += a [16, 8] @ b [8, 8] by a warp; tf32 operands, float32 accumulators. Fragments: with
// g = lane / 4 and t = lane % 4 a lane has a (g, t), (g + 8, t), (g, t + 4), (g + 8, t + 4); b (t,
// g), (t + 4, g); c (g, 2t), (g, 2t + 1), (g + 8, 2t), (g + 8, 2t + 1).
__device__ inline void mma_16x8x8_tf32(float (&c)[4], const float (&a)[4], const float (&b)[2]) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(__float_as_uint(a[0])), "r"(__float_as_uint(a[1])), "r"(__float_as_uint(a[2])),
        "r"(__float_as_uint(a[3])), "r"(__float_as_uint(b[0])), "r"(__float_as_uint(b[1])));
}

// The same of half numbers, two to a word, with sixteen of each row of a and column of b: a (g,
// 2t..), (g + 8, 2t..), (g, 2t + 8..), (g + 8, 2t + 8..); b (2t.., g), (2t + 8.., g).
template <bool kBfloat16>
__device__ void mma_16x8x16(float (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
  if constexpr (kBfloat16) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  } else {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  }
}

__device__ inline float of_float16(unsigned bits) {
  return __half2float(__ushort_as_half(static_cast<unsigned short>(bits)));
}

#else  // the emulation

// As in CUDA, one name for float and double; without these it would be double's for both.
using std::fma;
using std::sqrt;

template <typename T>
T* shared_memory() {
  return reinterpret_cast<T*>(cuda_on_cpu::Block::current().shared);
}

#define sync_block() __syncthreads()
#define shuffle_xor(value, bit) __shfl_xor_sync(0xffffffffu, value, bit)

#define sync_warp() \
  cuda_on_cpu::Block::current().park(cuda_on_cpu::State::at_warp, CUDA_ON_CPU_HERE)
#define ballot(value) cuda_on_cpu::ballot(value, CUDA_ON_CPU_HERE)
#define match_lanes(value) cuda_on_cpu::match_lanes(value, CUDA_ON_CPU_HERE)
#define any_in_block(value) cuda_on_cpu::any_in_block(value, CUDA_ON_CPU_HERE)

using cuda_on_cpu::check_alignment;
using cuda_on_cpu::count_up;
using cuda_on_cpu::fence;
using cuda_on_cpu::load_fresh;
inline int count_bits(unsigned bits) { return __builtin_popcount(bits); }
inline void compiler_barrier() {}
inline int opaque(int value) { return value; }

inline float max_or_nan(float a, float b) { return a > b || a != a ? a : b; }

template <typename To, typename From>
To same_bits(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}
inline int bits_of(float value) { return same_bits<int>(value); }
inline float from_bits(int bits) { return same_bits<float>(bits); }
// As wrong as the hardware's may be: by 2^-22, up or down as the bits of e have it.
inline float exp2_approx(float e) {
  const unsigned hash = static_cast<unsigned>(bits_of(e)) * 2654435761u;
  const double error = (static_cast<double>(hash) * 0x1p-31 - 1) * 0x1p-22;
  const float power = static_cast<float>(std::exp2(static_cast<double>(e)) * (1 + error));
  return power < 0x1p-126f ? 0.f : power;
}

inline long long bits_of(double value) { return same_bits<long long>(value); }
inline double from_bits(long long bits) { return same_bits<double>(bits); }

template <int kBytes>
void copy_async(void* to, const void* from, int bytes) {
  static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16);
  if (bytes < 0 || bytes > kBytes) throw std::runtime_error("an asynchronous copy of too much");
  check_alignment(to, kBytes);
  if (bytes > 0) check_alignment(from, kBytes);
  cuda_on_cpu::races::copied(from, bytes, kBytes);
  const cuda_on_cpu::races::Unwatched unwatched;
  cuda_on_cpu::Copy copy{to, std::vector<unsigned char>(kBytes, 0)};
  if (bytes > 0) std::memcpy(copy.bytes.data(), from, static_cast<std::size_t>(bytes));
  std::memset(to, 0xff, kBytes);
  cuda_on_cpu::Block::fiber().open.push_back(std::move(copy));
}
inline void copy_async_commit() {
  const cuda_on_cpu::races::Unwatched unwatched;
  cuda_on_cpu::Fiber& fiber = cuda_on_cpu::Block::fiber();
  fiber.groups.push_back(std::move(fiber.open));
  fiber.open.clear();
}
template <int kLeft>
void copy_async_wait() {
  const cuda_on_cpu::races::Unwatched unwatched;
  cuda_on_cpu::Fiber& fiber = cuda_on_cpu::Block::fiber();
  while (fiber.groups.size() > kLeft) {
    for (const cuda_on_cpu::Copy& copy : fiber.groups.front()) {
      std::memcpy(copy.to, copy.bytes.data(), copy.bytes.size());
    }
    fiber.groups.pop_front();
  }
}

inline void mma_16x8x8_tf32(float (&c)[4], const float (&a)[4], const float (&b)[2]) {
  cuda_on_cpu::mma<8>(c, a, b, CUDA_ON_CPU_HERE,
                      [](float word, int) -> double { return cuda_on_cpu::as_tf32(word); });
}
template <bool kBfloat16>
void mma_16x8x16(float (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
  cuda_on_cpu::mma<16>(c, a, b, CUDA_ON_CPU_HERE, [](unsigned word, int k) -> double {
    const auto bits = static_cast<std::uint16_t>(word >> 16 * k);
    return kBfloat16 ? bfloat16_to_float(bits) : half_to_float(bits);
  });
}
inline float of_float16(unsigned bits) { return half_to_float(static_cast<std::uint16_t>(bits)); }

#endif

__device__ inline float of_bfloat16(unsigned bits) {
  return from_bits(static_cast<int>(bits << 16));
}

// Vectorised access: some numbers read or written by one instruction.
template <typename T, int kCount>
struct alignas(kCount * sizeof(T)) Pack {
  T of[kCount];
};
template <int kCount, typename T>
__device__ Pack<T, kCount> read_pack(const T* from) {
  check_alignment(from, sizeof(Pack<T, kCount>));
  return *reinterpret_cast<const Pack<T, kCount>*>(from);
}
template <typename T, int kCount>
__device__ void write_pack(T* to, const Pack<T, kCount>& pack) {
  check_alignment(to, sizeof(pack));
  *reinterpret_cast<Pack<T, kCount>*>(to) = pack;
}

__device__ inline double max_or_nan(double a, double b) { return a > b || a != a ? a : b; }

// In a fixed order, the same from run to run.
template <typename T>
__device__ T sum_of_warp(T value) {
#pragma unroll 1
  for (int bit = kWarp / 2; bit > 0; bit /= 2) value += shuffle_xor(value, bit);
  return value;
}

}  // namespace cgm_fast::cuda
