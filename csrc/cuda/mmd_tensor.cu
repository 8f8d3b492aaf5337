// MMD² on tensor cores, of float and half numbers.
#include "cuda/mmd_launch.cuh"
#include "cuda/mmd_tensor.cuh"

namespace cgm_fast::cuda {

namespace {

template <int kD, Numbers kOf>
void launch_tensor(const MmdCall<float>& call, const MmdGradient<float>& out) {
  run({"mmd_tensor_kernel", dim3(static_cast<unsigned>(call.device.workers)), dim3(kThreads),
       tensor_shared_bytes<kD, kOf>(call.in.scales), static_cast<cudaStream_t>(call.device.stream)},
      has_options(call) ? mmd_tensor_kernel<kD, kOf, true> : mmd_tensor_kernel<kD, kOf, false>,
      call, out, row_blocks(call.in, kTensorRows));
}

template <Numbers kOf>
void of_numbers(const MmdCall<float>& call, const MmdGradient<float>& out) {
  if (call.in.d <= 16) return launch_tensor<16, kOf>(call, out);
  if (call.in.d <= 32) return launch_tensor<32, kOf>(call, out);
  return launch_tensor<64, kOf>(call, out);
}

}  // namespace

void on_tensor_cores(const MmdCall<float>& call, const MmdGradient<float>& out) {
  const Dtype of_x = call.in.x.dtype, of_y = call.in.y.dtype;
  if (of_x == of_y && of_x == Dtype::bfloat16) return of_numbers<Numbers::bfloat16>(call, out);
  if (of_x == of_y && of_x == Dtype::float16) return of_numbers<Numbers::float16>(call, out);
  return call.device.tf32 ? of_numbers<Numbers::tf32>(call, out)
                          : of_numbers<Numbers::tf32x3>(call, out);
}

}  // namespace cgm_fast::cuda
