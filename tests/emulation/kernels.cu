// Kernels that the emulation must run right, and kernels with one fault each that it must find.
#include <cstdio>
#include <string>
#include <vector>

#include "cuda/device.cuh"
#include "cuda/launch.cuh"

using namespace cgm_fast::cuda;

namespace {

enum Fault { kNone, kNoBarrier, kDivergent, kOverrun, kUnwritten, kNoWait };

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
  const unsigned t = threadIdx.x;
  if (t < 16) copy_async_16(shared + 4 * t, in + blockIdx.x * 64 + 4 * t, true);
  copy_async_commit();
  if (kFault != kNoWait) copy_async_wait<0>();
  sync_block();
  float sum = shared[t % 32] + shared[t % 32 + 32];
  for (int bit = 16; bit > 0; bit /= 2) sum += shuffle_xor(sum, bit);
  if (t == 0) out[blockIdx.x] = sum;
  if (kFault == kNoWait) copy_async_wait<0>();
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
  bool right = false;
  try {
    if (name == "tree") right = sum(tree<kNone>, 64);
    if (name == "no_barrier") right = sum(tree<kNoBarrier>, 64);
    if (name == "divergent") right = sum(tree<kDivergent>, 64);
    if (name == "overrun") right = sum(tree<kOverrun>, 64);
    if (name == "unwritten") right = sum(tree<kUnwritten>, 64);
    if (name == "copied") right = sum(copied<kNone>, 32);
    if (name == "no_wait") right = sum(copied<kNoWait>, 32);
    if (name == "product") right = multiply();
  } catch (const std::exception& error) {
    std::puts(error.what());
    return 1;
  }
  std::puts(right ? "right" : "wrong");
  return right ? 0 : 1;
}
