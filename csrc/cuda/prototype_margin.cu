// Launches of the prototype margin loss and its Hessian-vector product.
#include "cuda/launch.cuh"
#include "cuda/prototype_margin.cuh"

namespace cgm_fast {

namespace {

template <typename T>
cuda::Launch launch(const char* name, int64_t blocks, void* stream) {
  return {name, dim3(static_cast<unsigned>(blocks)), dim3(cuda::kThreads),
          sizeof(cuda::PrototypeMemory<T>), static_cast<cudaStream_t>(stream)};
}

int64_t blocks_of(int64_t rows) { return (rows + cuda::kRows - 1) / cuda::kRows; }

template <typename T>
Samples tangents(const T* data, int64_t d) {
  return {data, sizeof(T) == 4 ? Dtype::float32 : Dtype::float64, 0, d, 1};
}

}  // namespace

template <typename T>
void prototype_margin_fwd_cuda(const PrototypeMarginInput<T>& in,
                               const PrototypeMarginGradient<T>& out,
                               const PrototypeMarginDevice<T>& device) {
  cuda::run(launch<T>("prototype_rows_kernel", device.blocks, device.stream),
            cuda::prototype_rows_kernel<T>, in, out, device);
  if (!out.grad_g || device.partial_g) return;
  cuda::run(launch<T>("prototype_differences_kernel", blocks_of(in.k), device.stream),
            cuda::prototype_differences_kernel<T, true>,
            cuda::PrototypeDifferences<T>{in, nullptr, device.own, in.r, in.g, out.grad_g});
}

template <typename T>
void prototype_margin_hvp_cuda(const PrototypeMarginInput<T>& in,
                               const PrototypeMarginTangent<T>& tangent, void* stream) {
  cuda::PrototypeDifferences<T> given{in,
                                      tangent.assignment,
                                      nullptr,
                                      tangents(tangent.r, in.d),
                                      tangents(tangent.g, in.d),
                                      tangent.out_r};
  cuda::run(launch<T>("prototype_differences_kernel", blocks_of(in.rows), stream),
            cuda::prototype_differences_kernel<T, false>, given);
  given.out = tangent.out_g;
  cuda::run(launch<T>("prototype_differences_kernel", blocks_of(in.k), stream),
            cuda::prototype_differences_kernel<T, true>, given);
}

template void prototype_margin_fwd_cuda(const PrototypeMarginInput<float>&,
                                        const PrototypeMarginGradient<float>&,
                                        const PrototypeMarginDevice<float>&);
template void prototype_margin_fwd_cuda(const PrototypeMarginInput<double>&,
                                        const PrototypeMarginGradient<double>&,
                                        const PrototypeMarginDevice<double>&);
template void prototype_margin_hvp_cuda(const PrototypeMarginInput<float>&,
                                        const PrototypeMarginTangent<float>&, void*);
template void prototype_margin_hvp_cuda(const PrototypeMarginInput<double>&,
                                        const PrototypeMarginTangent<double>&, void*);

}  // namespace cgm_fast
