// The launch of cgm_loss.
#include "cuda/cgm_loss.cuh"
#include "cuda/launch.cuh"

namespace cgm_fast {

namespace {

template <int kD, typename T>
void launch(const CgmLossInput<T>& in, const CgmLossGradient<T>& out,
            const CgmLossDevice<T>& device) {
  const int64_t batch = in.margin.rows, k = in.margin.k;
  const auto blocks = cgm_loss_blocks(batch, k, device.rows, out.grad_g != nullptr);
  cuda::run({"cgm_loss_kernel", dim3(static_cast<unsigned>(blocks)), dim3(cuda::kThreads),
             cuda::shared_bytes<cuda::CgmLossMemory<T, kD>, cuda::CgmLossTail<T>>(in, device.rows),
             static_cast<cudaStream_t>(device.stream)},
            cuda::cgm_loss_kernel<T, kD>, in, out, device, cuda::CgmLossFactors<T>(in));
}

}  // namespace

template <typename T>
void cgm_loss_fwd_cuda(const CgmLossInput<T>& in, const CgmLossGradient<T>& out,
                       const CgmLossDevice<T>& device) {
  const int64_t d = in.margin.d;
  if constexpr (sizeof(T) == 4) {
    if (d <= 8) return launch<8>(in, out, device);
    if (d <= 16) return launch<16>(in, out, device);
    if (d <= 32) return launch<32>(in, out, device);
    return launch<64>(in, out, device);
  } else {
    return launch<16>(in, out, device);
  }
}

template void cgm_loss_fwd_cuda(const CgmLossInput<float>&, const CgmLossGradient<float>&,
                                const CgmLossDevice<float>&);
template void cgm_loss_fwd_cuda(const CgmLossInput<double>&, const CgmLossGradient<double>&,
                                const CgmLossDevice<double>&);

}  // namespace cgm_fast
