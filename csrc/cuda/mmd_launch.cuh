// Launches of MMD² and its Hessian-vector product; instantiated in mmd.cu and mmd_double.cu, and on
// tensor cores in mmd_tensor_*.cu, which are all compiled side by side.
#pragma once

#include <stdexcept>

#include "cuda/launch.cuh"
#include "cuda/mmd_hvp.cuh"
#include "cuda/mmd_rows.cuh"
#include "cuda/mmd_wide.cuh"

namespace cgm_fast {

namespace cuda {

// A block of threads for each block of rows.
template <typename Memory, typename Tail, typename T, typename Out>
void launch(const char* name, const MmdCall<T>& call, const Out& out,
            void (*kernel)(MmdCall<T>, Out)) {
  const unsigned blocks = call.device.blocks * static_cast<unsigned>(call.in.batch);
  run({name, dim3(blocks), dim3(kThreads), shared_bytes<Memory, Tail>(call.in),
       static_cast<cudaStream_t>(call.device.stream)},
      kernel, call, out);
}

// Whether kernels need more than one bandwidth of weight 1 and rows of equal weight.
template <typename T>
bool has_options(const MmdCall<T>& call, const MmdValue<T>& out) {
  return call.in.weights || call.in.scales > 1 || call.device.weighted_kernel || out.weights ||
         out.variance;
}

template <int kD, typename T>
void by_rows(const MmdCall<T>& call, const MmdValue<T>& out) {
  launch<RowsMemory<T, kD>, MmdTail<T>>(
      "mmd_rows_kernel", call, out,
      has_options(call, out) ? mmd_rows_kernel<T, kD, true> : mmd_rows_kernel<T, kD, false>);
}

// mmd.cu
void on_tensor_cores(const MmdCall<float>& call, const MmdValue<float>& out);

}  // namespace cuda

template <typename T>
void mmd_fwd_cuda(const MmdProblem<T>& in, const MmdValue<T>& out, const MmdDevice<T>& device) {
  const cuda::MmdCall<T> call{in, device};
  if (in.kernel != Kernel::gaussian) {
    return cuda::launch<cuda::WideMemory<T>, cuda::MmdTail<T>>("mmd_wide_kernel", call, out,
                                                               cuda::mmd_wide_kernel<T, false>);
  }
  if constexpr (sizeof(T) == 4) {
    if (device.workers > 0) return cuda::on_tensor_cores(call, out);
    if (in.d <= 4) return cuda::by_rows<4>(call, out);
    if (in.d <= 8) return cuda::by_rows<8>(call, out);
    if (in.d <= 10) return cuda::by_rows<10>(call, out);  // the paper's
    if (in.d <= 16) return cuda::by_rows<16>(call, out);
    if (in.d <= 32) return cuda::by_rows<32>(call, out);
    if (in.d <= 64) return cuda::by_rows<64>(call, out);
  } else {
    if (in.d <= 16) return cuda::by_rows<16>(call, out);
  }
  cuda::launch<cuda::WideMemory<T>, cuda::MmdTail<T>>("mmd_wide_kernel", call, out,
                                                      cuda::mmd_wide_kernel<T, true>);
}

template <typename T>
void mmd_hvp_cuda(const MmdProblem<T>& in, const MmdTangent<T>& tangent, const MmdProduct<T>& out,
                  const MmdDevice<T>& device) {
  if (has_kink(in.kernel)) {
    throw std::invalid_argument("this kernel has no second derivative where rows coincide");
  }
  cuda::launch<cuda::HvpMemory<T>, cuda::HvpTail<T>>(
      "mmd_hvp_kernel", cuda::MmdCall<T>{in, device}, cuda::HvpArguments<T>{tangent, out},
      in.kernel == Kernel::gaussian ? cuda::mmd_hvp_kernel<T, true>
                                    : cuda::mmd_hvp_kernel<T, false>);
}

}  // namespace cgm_fast
