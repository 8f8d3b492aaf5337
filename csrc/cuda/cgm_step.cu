// The launch of a CGM step.
#include "cuda/cgm_step.cuh"
#include "cuda/launch.cuh"

namespace cgm_fast {

namespace {

template <int kD, typename T>
void step(const CgmStepInput<T>& in, const CgmStepGradient<T>& out,
          const CgmStepDevice<T>& device) {
  const int64_t batch = in.margin.rows, k = in.margin.k;
  const auto blocks = cgm_step_blocks(batch, k, device.rows, out.grad_g != nullptr);
  const auto row_blocks = cgm_step_blocks(batch, k, device.rows, false);
  cuda::run(
      {"cgm_step_kernel", dim3(static_cast<unsigned>(blocks)), dim3(cuda::kThreads),
       cuda::step_shared_bytes<T, kD>(in.scales, batch), static_cast<cudaStream_t>(device.stream)},
      cuda::cgm_step_kernel<T, kD>, in, out, device, static_cast<unsigned>(row_blocks));
}

}  // namespace

template <typename T>
void cgm_step_fwd_cuda(const CgmStepInput<T>& in, const CgmStepGradient<T>& out,
                       const CgmStepDevice<T>& device) {
  const int64_t d = in.margin.d;
  if constexpr (sizeof(T) == 4) {
    if (d <= 8) return step<8>(in, out, device);
    if (d <= 16) return step<16>(in, out, device);
    if (d <= 32) return step<32>(in, out, device);
    return step<64>(in, out, device);
  } else {
    return step<16>(in, out, device);
  }
}

template void cgm_step_fwd_cuda(const CgmStepInput<float>&, const CgmStepGradient<float>&,
                                const CgmStepDevice<float>&);
template void cgm_step_fwd_cuda(const CgmStepInput<double>&, const CgmStepGradient<double>&,
                                const CgmStepDevice<double>&);

}  // namespace cgm_fast
