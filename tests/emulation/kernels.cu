// Kernels that the emulation must run right, and kernels with one fault each that it must find.
#include <atomic>
#include <cstdio>
#include <string>
#include <thread>
#include <vector>

#include "cuda/device.cuh"
#include "cuda/launch.cuh"
#include "cuda/reduce.cuh"

using namespace cgm_fast::cuda;

namespace {

enum Fault {
  kNone,
  kNoBarrier,
  kDivergent,
  kOverrun,
  kUnwritten,
  kNoWait,
  kMisaligned,
  kNoFence,
  kNoFenceBehind,
  kEarlyFence,
  kPlainLoad,
  kUncounted,
};

// Sums of 64 numbers per block by a tree in shared memory.
template <int kFault>
__global__ void tree(const float* in, float* out) {
  float* shared = shared_memory<float>();
  const unsigned t = threadIdx.x;
  if (kFault != kUnwritten || t != 5) shared[t] = in[blockIdx.x * 64 + t];
  if (kFault == kOverrun && t == 63) shared[64] = 1.f;
  sync_block();
  for (unsigned half = 32; half > 0; half /= 2) {
    if (t < half) shared[t] += shared[t + half];
    if (kFault == kDivergent) {
      if (t < 32) sync_block();
    } else if (kFault != kNoBarrier) {
      sync_block();
    }
  }
  if (t == 0) out[blockIdx.x] = shared[0];
}

// The same by asynchronous copies and shuffles.
template <int kFault>
__global__ void copied(const float* in, float* out) {
  float* shared = shared_memory<float>();
  if (kFault == kMisaligned) ++in;
  const unsigned t = threadIdx.x;
  if (t < 16) copy_async<16>(shared + 4 * t, in + blockIdx.x * 64 + 4 * t, 16);
  copy_async_commit();
  if (kFault != kNoWait) copy_async_wait<0>();
  sync_block();
  float sum = shared[t % 32] + shared[t % 32 + 32];
  for (int bit = 16; bit > 0; bit /= 2) sum += shuffle_xor(sum, bit);
  if (t == 0) out[blockIdx.x] = sum;
  if (kFault == kNoWait) copy_async_wait<0>();
}

// The same by some numbers at once.
template <int kFault>
__global__ void packed(const float* in, float* out) {
  float sum = 0;
  const float* from = in + blockIdx.x * 64 + (kFault == kMisaligned ? 2 : 0);
  for (unsigned at = 4 * threadIdx.x; at < 64; at += 4 * 32) {
    const Pack<float, 4> pack = read_pack<4>(from + at);
    for (float value : pack.of) sum += value;
  }
  sum = sum_of_warp(sum);
  if (threadIdx.x == 0) out[blockIdx.x] = sum;
}

// A sum over blocks, by the last of them, as reduce.cuh has it.
__global__ void reduced(const float* in, double* partials, unsigned* counter, float* out) {
  double* scratch = shared_memory<double>();
  const double mine = threadIdx.x < 64 ? in[blockIdx.x * 64 + threadIdx.x] : 0.;
  const double sum = sum_of_block(mine, scratch);
  const Partials of{partials, gridDim.x, 1};
  if (!of.leave(&sum, blockIdx.x, counter)) return;
  const double all = of.sum(0, scratch);
  if (threadIdx.x == 0) *out = static_cast<float>(all);
}

// The same, with all that a block owes another in sight: each thread leaves a number.
template <int kFault>
__global__ void left(const float* in, double* partials, unsigned* counter, float* out) {
  const unsigned t = threadIdx.x;
  if (kFault == kEarlyFence) fence();
  partials[blockIdx.x * 64 + t] = in[blockIdx.x * 64 + t];
  if (kFault == kNoBarrier && t == 0) fence();  // of its own write, and of nobody else's
  if (kFault != kNoBarrier) sync_block();
  bool last = false;
  if (t == 0) {
    if (kFault != kNoFence && kFault != kEarlyFence && kFault != kNoBarrier) fence();
    if (kFault == kUncounted) {
      last = blockIdx.x == gridDim.x - 1;
    } else {
      last = count_up(counter, gridDim.x - 1) == gridDim.x - 1;
    }
    if (last && kFault != kNoFenceBehind) fence();
  }
  if (!any_in_block(last)) return;
  double sum = 0;
  for (unsigned b = 0; b < gridDim.x; ++b) {
    const double* from = partials + b * 64 + t;
    sum += kFault == kPlainLoad ? *from : load_fresh(from);
  }
  sum = sum_of_warp(sum);
  double* of_warps = shared_memory<double>();
  if (t % kWarp == 0) of_warps[t / kWarp] = sum;
  sync_block();
  if (t == 0) *out = static_cast<float>(of_warps[0] + of_warps[1]);
}

// One warp: c [16, 8] = a [16, 8] @ b [8, 8].
__global__ void product(const float* a, const float* b, float* c) {
  const int g = static_cast<int>(threadIdx.x) / 4, t = static_cast<int>(threadIdx.x) % 4;
  const float of_a[4] = {a[g * 8 + t], a[(g + 8) * 8 + t], a[g * 8 + t + 4],
                         a[(g + 8) * 8 + t + 4]};
  const float of_b[2] = {b[t * 8 + g], b[(t + 4) * 8 + g]};
  float of_c[4] = {0.f, 0.f, 0.f, 0.f};
  mma_16x8x8_tf32(of_c, of_a, of_b);
  c[g * 8 + 2 * t] = of_c[0];
  c[g * 8 + 2 * t + 1] = of_c[1];
  c[(g + 8) * 8 + 2 * t] = of_c[2];
  c[(g + 8) * 8 + 2 * t + 1] = of_c[3];
}

// The same of half numbers: c [16, 8] = a [16, 16] @ b [16, 8], b by columns, numbers by twos.
template <bool kBfloat16>
__global__ void half_product(const unsigned* a, const unsigned* b, float* c) {
  const int g = static_cast<int>(threadIdx.x) / 4, t = static_cast<int>(threadIdx.x) % 4;
  const unsigned of_a[4] = {a[g * 8 + t], a[(g + 8) * 8 + t], a[g * 8 + t + 4],
                            a[(g + 8) * 8 + t + 4]};
  const unsigned of_b[2] = {b[g * 8 + t], b[g * 8 + t + 4]};
  float of_c[4] = {0.f, 0.f, 0.f, 0.f};
  mma_16x8x16<kBfloat16>(of_c, of_a, of_b);
  for (int at = 0; at < 4; ++at) c[(g + at / 2 * 8) * 8 + 2 * t + at % 2] = of_c[at];
}

// Whether that is what loops come to.
template <bool kBfloat16>
bool half_product_is_right() {
  std::vector<float> a(16 * 16), b(8 * 16), c(16 * 8);
  std::vector<unsigned> of_a(a.size() / 2), of_b(b.size() / 2);
  const auto fill = [](std::vector<float>& to, std::vector<unsigned>& words, int factor) {
    for (std::size_t i = 0; i < to.size(); ++i) {
      // 1 + q/8 or its negative, by bits: an exponent of 0 and three of the mantissa.
      const unsigned q = static_cast<unsigned>(i) * static_cast<unsigned>(factor) % 8, sign = i % 3;
      to[i] = (1.f + static_cast<float>(q) / 8) * (sign ? 1.f : -1.f);
      const unsigned bits =
          (sign ? 0u : 0x8000u) | (kBfloat16 ? 0x3f80u | q << 4 : 0x3c00u | q << 7);
      words[i / 2] |= bits << i % 2 * 16;
    }
  };
  fill(a, of_a, 3);
  fill(b, of_b, 5);
  run({"half_product", dim3(1), dim3(32), 0, nullptr}, half_product<kBfloat16>, of_a.data(),
      of_b.data(), c.data());
  for (int i = 0; i < 16; ++i) {
    for (int j = 0; j < 8; ++j) {
      float sum = 0;
      for (int k = 0; k < 16; ++k) {
        sum += a[static_cast<std::size_t>(i * 16 + k)] * b[static_cast<std::size_t>(j * 16 + k)];
      }
      if (sum != c[static_cast<std::size_t>(i * 8 + j)]) return false;
    }
  }
  return true;
}

__global__ void put(float value, float* out) {
  if (threadIdx.x == 0) *out = value;
}

// Whether a launch with so much shared memory ran.
bool puts_with(std::size_t shared_bytes) {
  float out = 0;
  run({"put", dim3(1), dim3(32), shared_bytes, nullptr}, put, 1.f, &out);
  return out == 1;
}

// A launch that is refused says so, and leaves no error to the next.
bool refused_then_right() {
  for (std::size_t bytes : {300 << 10, 1000 << 10}) {
    try {
      puts_with(bytes);
      return false;
    } catch (const std::runtime_error& error) {
      const std::string expected =
          "put <<<1x1x1, 32x1x1, " + std::to_string(bytes) + ">>>: invalid argument";
      if (error.what() != expected) return false;
    }
    if (cudaGetLastError() != cudaSuccess) return false;
    if (!puts_with(1024)) return false;
  }
  return true;
}

// Someone else's error, still to be asked for, is not this launch's.
bool right_after_anothers_error() {
  cudaFuncSetAttribute(nullptr, cudaFuncAttributeMaxDynamicSharedMemorySize, 1 << 30);
  return puts_with(1024);
}

// What was allowed stays allowed, whoever launches meanwhile.
bool allowed_for_all_threads() {
  std::atomic<bool> right{true};
  const auto launch_often = [&](std::size_t kilobytes) {
    try {
      for (int i = 0; i < 200; ++i) {
        if (!puts_with((kilobytes + static_cast<std::size_t>(i) % 2 * 30) << 10)) right = false;
      }
    } catch (const std::exception&) {
      right = false;
    }
  };
  std::thread other(launch_often, 50);
  launch_often(90);
  other.join();
  return right;
}

}  // namespace

// kernels NAME: runs one of them; prints "right", "wrong", or what the emulation threw.
int main(int, char** arguments) {
  const std::string name = arguments[1];
  std::vector<float> in(64 * 5), out(5), expected(5);
  for (std::size_t i = 0; i < in.size(); ++i) {
    in[i] = static_cast<float>(i % 13) - 3.f;
    expected[i / 64] += in[i];
  }
  const auto sum = [&](auto* kernel, unsigned threads) {
    run({name.c_str(), dim3(5), dim3(threads), 64 * sizeof(float), nullptr}, kernel, in.data(),
        out.data());
    return out == expected;
  };
  const auto sum_over_blocks = [&](auto* kernel, unsigned threads) {
    std::vector<double> partials(64 * 5, NAN);
    unsigned counter = 0;
    float all = 0;
    for (int again = 0; again < 3; ++again) {
      run({name.c_str(), dim3(5), dim3(threads), kScratch * sizeof(double), nullptr}, kernel,
          in.data(), partials.data(), &counter, &all);
    }
    return all == expected[0] + expected[1] + expected[2] + expected[3] + expected[4];
  };
  const auto multiply = [&] {
    std::vector<float> a(128), b(64), c(128), wanted(128);
    for (std::size_t i = 0; i < 128; ++i) a[i] = static_cast<float>(i * 7 % 31) - 15.f;
    for (std::size_t i = 0; i < 64; ++i) b[i] = static_cast<float>(i * 5 % 17) - 8.f;
    for (std::size_t i = 0; i < 128; ++i) {
      for (std::size_t k = 0; k < 8; ++k) wanted[i] += a[i / 8 * 8 + k] * b[k * 8 + i % 8];
    }
    run({name.c_str(), dim3(1), dim3(32), 0, nullptr}, product, a.data(), b.data(), c.data());
    return c == wanted;
  };
  // 1 + seven times 2^-25: cut once, or where addends are aligned, or by four.
  const auto multiply_tiny = [&] {
    std::vector<float> a(128, 0x1p-12f), b(64, 0x1p-13f), c(128);
    for (std::size_t i = 0; i < 16; ++i) a[i * 8] = 1.f;
    for (std::size_t j = 0; j < 8; ++j) b[j] = 1.f;
    run({name.c_str(), dim3(1), dim3(32), 0, nullptr}, product, a.data(), b.data(), c.data());
    return c;
  };
  bool right = false;
  try {
    if (name == "tree") right = sum(tree<kNone>, 64);
    if (name == "no_barrier") right = sum(tree<kNoBarrier>, 64);
    if (name == "divergent") right = sum(tree<kDivergent>, 64);
    if (name == "overrun") right = sum(tree<kOverrun>, 64);
    if (name == "unwritten") right = sum(tree<kUnwritten>, 64);
    if (name == "copied") right = sum(copied<kNone>, 32);
    if (name == "no_wait") right = sum(copied<kNoWait>, 32);
    if (name == "misaligned_copy") right = sum(copied<kMisaligned>, 32);
    if (name == "packed") right = sum(packed<kNone>, 32);
    if (name == "misaligned_pack") right = sum(packed<kMisaligned>, 32);
    if (name == "reduced") right = sum_over_blocks(reduced, kThreads);
    if (name == "left") right = sum_over_blocks(left<kNone>, 64);
    if (name == "no_fence") right = sum_over_blocks(left<kNoFence>, 64);
    if (name == "early_fence") right = sum_over_blocks(left<kEarlyFence>, 64);
    if (name == "fence_without_barrier") right = sum_over_blocks(left<kNoBarrier>, 64);
    if (name == "no_fence_behind") right = sum_over_blocks(left<kNoFenceBehind>, 64);
    if (name == "plain_load") right = sum_over_blocks(left<kPlainLoad>, 64);
    if (name == "uncounted") right = sum_over_blocks(left<kUncounted>, 64);
    if (name == "product") right = multiply();
#if defined(CUDA_ON_CPU)
    if (name == "adders") {
      right = multiply_tiny() == std::vector<float>(128, 1.f + 0x1p-23f);
      cuda_on_cpu::add_aligned = true;
      right = right && multiply_tiny() == std::vector<float>(128, 1.f) && multiply();
    }
#endif
    if (name == "refused") right = refused_then_right();
    if (name == "anothers_error") right = right_after_anothers_error();
    if (name == "threads") right = allowed_for_all_threads();
    if (name == "float16") right = half_product_is_right<false>();
    if (name == "bfloat16") right = half_product_is_right<true>();
  } catch (const std::exception& error) {
    std::puts(error.what());
    return 1;
  }
  std::puts(right ? "right" : "wrong");
  return right ? 0 : 1;
}
