// Launches of MMD² on tensor cores. A source file for each kind of numbers instantiates them, for
// compilers take longest for these kernels.
#pragma once

#include "cuda/mmd_launch.cuh"
#include "cuda/mmd_tensor.cuh"

namespace cgm_fast::cuda {

template <int kD, Numbers kOf>
void launch_tensor(const MmdCall<float>& call, const MmdValue<float>& out) {
  run({"mmd_tensor_kernel", dim3(static_cast<unsigned>(call.device.workers)), dim3(kThreads),
       shared_bytes<TensorMemory<kD, kOf>, TensorTail>(call.in),
       static_cast<cudaStream_t>(call.device.stream)},
      has_options(call, out) ? mmd_tensor_kernel<kD, kOf, true> : mmd_tensor_kernel<kD, kOf, false>,
      call, out);
}

template <Numbers kOf>
void on_tensor_cores_of(const MmdCall<float>& call, const MmdValue<float>& out) {
  if (call.in.d <= 16) return launch_tensor<16, kOf>(call, out);
  if (call.in.d <= 32) return launch_tensor<32, kOf>(call, out);
  return launch_tensor<64, kOf>(call, out);
}

}  // namespace cgm_fast::cuda
