// Launches of MMD² and its Hessian-vector product; instantiated in mmd.cu and mmd_double.cu, and on
// tensor cores in mmd_tensor_*.cu, which are all compiled side by side.
#pragma once

#include "cuda/launch.cuh"
#include "cuda/mmd_hvp.cuh"
#include "cuda/mmd_rows.cuh"
#include "cuda/mmd_wide.cuh"

namespace cgm_fast {

namespace cuda {

template <typename T>
unsigned row_blocks(const MmdInput<T>& in, int rows) {
  return static_cast<unsigned>((in.n + in.m + rows - 1) / rows);
}

template <typename T, typename Out>
void launch(const char* name, const MmdCall<T>& call, const Out& out, int rows,
            std::size_t shared_bytes, void (*kernel)(MmdCall<T>, Out, unsigned)) {
  const unsigned blocks = row_blocks(call.in, rows);
  run({name, dim3(blocks * static_cast<unsigned>(call.in.batch)), dim3(kThreads), shared_bytes,
       static_cast<cudaStream_t>(call.device.stream)},
      kernel, call, out, blocks);
}

// Whether kernels need more than one bandwidth of weight 1 and rows of equal weight.
template <typename T>
bool has_options(const MmdCall<T>& call) {
  const MmdInput<T>& in = call.in;
  return in.x_weights || in.y_weights || in.scales > 1 || call.device.weighted_kernel;
}

template <int kD, typename T>
void by_rows(const MmdCall<T>& call, const MmdGradient<T>& out) {
  launch("mmd_rows_kernel", call, out, call.device.rows, rows_shared_bytes<T, kD>(call.in.scales),
         has_options(call) || out.grad_p ? mmd_rows_kernel<T, kD, true>
                                         : mmd_rows_kernel<T, kD, false>);
}

// mmd.cu
void on_tensor_cores(const MmdCall<float>& call, const MmdGradient<float>& out);

}  // namespace cuda

template <typename T>
void mmd_fwd_cuda(const MmdInput<T>& in, const MmdGradient<T>& out, const MmdDevice<T>& device) {
  const cuda::MmdCall<T> call{in, device};
  if constexpr (sizeof(T) == 4) {
    if (device.workers > 0) return cuda::on_tensor_cores(call, out);
    if (in.d <= 4) return cuda::by_rows<4>(call, out);
    if (in.d <= 8) return cuda::by_rows<8>(call, out);
    if (in.d <= 12) return cuda::by_rows<12>(call, out);  // the paper's 10
    if (in.d <= 16) return cuda::by_rows<16>(call, out);
    if (in.d <= 32) return cuda::by_rows<32>(call, out);
    if (in.d <= 64) return cuda::by_rows<64>(call, out);
  } else {
    if (in.d <= 16) return cuda::by_rows<16>(call, out);
  }
  cuda::launch("mmd_wide_kernel", call, out, cuda::kRows, cuda::wide_shared_bytes<T>(in.scales),
               cuda::mmd_wide_kernel<T>);
}

template <typename T>
void mmd_hvp_cuda(const MmdInput<T>& in, const MmdTangent<T>& tangent, const MmdDevice<T>& device) {
  cuda::launch("mmd_hvp_kernel", cuda::MmdCall<T>{in, device}, tangent, cuda::kRows,
               cuda::hvp_shared_bytes<T>(in.scales), cuda::mmd_hvp_kernel<T>);
}

}  // namespace cgm_fast
