// The launch of a kernel product.
#include "cuda/kernel_product.cuh"
#include "cuda/launch.cuh"

namespace cgm_fast {

template <typename T>
void kernel_product_fwd_cuda(const KernelProductProblem<T>& in, const KernelProductValue<T>& out,
                             const KernelProductDevice<T>& device) {
  const cuda::ProductCall<T> call{in, out, device};
  cuda::run({"kernel_product_kernel", dim3(device.blocks), dim3(cuda::kThreads),
             cuda::shared_bytes<cuda::ProductMemory<T>, cuda::ProductTail<T>>(in),
             static_cast<cudaStream_t>(device.stream)},
            in.kernel == Kernel::gaussian ? cuda::kernel_product_kernel<T, true>
                                          : cuda::kernel_product_kernel<T, false>,
            call);
}

template void kernel_product_fwd_cuda(const KernelProductProblem<float>&,
                                      const KernelProductValue<float>&,
                                      const KernelProductDevice<float>&);
template void kernel_product_fwd_cuda(const KernelProductProblem<double>&,
                                      const KernelProductValue<double>&,
                                      const KernelProductDevice<double>&);

}  // namespace cgm_fast
