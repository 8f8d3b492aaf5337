// Launches of the prototype margin loss and its Hessian-vector product.
#include "cuda/launch.cuh"
#include "cuda/prototype_differences.cuh"
#include "cuda/prototype_margin.cuh"

namespace cgm_fast {

namespace {

template <typename T, int kColumns = cuda::kPrototypeColumns<T>>
cuda::Launch launch(const char* name, int64_t blocks, void* stream) {
  return {name, dim3(static_cast<unsigned>(blocks)), dim3(cuda::kThreads),
          sizeof(cuda::PrototypeMemory<T, kColumns>), static_cast<cudaStream_t>(stream)};
}

template <typename T>
Samples tangents(const T* data, int64_t d) {
  return {data, sizeof(T) == 4 ? Dtype::float32 : Dtype::float64, 0, d, 1};
}

template <typename T>
void differences(cuda::PrototypeDifferences<T> given, const PrototypeMarginDevice<T>& device) {
  given.row_splits = device.row_splits;
  given.sample_splits = device.sample_splits;
  given.counters = device.counters;
  given.sums_r = device.sums;
  given.sums_g = device.sums;
  if (device.row_splits > 1) given.sums_g += device.row_splits * given.in.rows * given.in.d;
  if (given.blocks() == 0) return;
  cuda::run(launch<T>("prototype_differences_kernel", given.blocks(), device.stream),
            cuda::prototype_differences_kernel<T>, given);
}

}  // namespace

template <typename T>
void prototype_margin_fwd_cuda(const PrototypeMarginInput<T>& in,
                               const PrototypeMarginGradient<T>& out,
                               const PrototypeMarginDevice<T>& device) {
  const int64_t blocks = (in.rows + cuda::kChunkRows - 1) / cuda::kChunkRows * device.splits;
  if (!device.own) {
    return cuda::run(
        launch<T, cuda::kFewPrototypes>("prototype_rows_kernel", blocks, device.stream),
        cuda::prototype_rows_kernel<T, true>, in, out, device);
  }
  cuda::run(launch<T>("prototype_rows_kernel", blocks, device.stream),
            cuda::prototype_rows_kernel<T, false>, in, out, device);
  differences<T>({in, nullptr, device.own, in.r, in.g, out.grad_r, out.grad_g, nullptr, nullptr,
                  nullptr, 1, 1},
                 device);
}

template <typename T>
void prototype_margin_hvp_cuda(const PrototypeMarginInput<T>& in,
                               const PrototypeMarginTangent<T>& tangent,
                               const PrototypeMarginDevice<T>& device) {
  differences<T>(
      {in, tangent.assignment, nullptr, tangents(tangent.r, in.d), tangents(tangent.g, in.d),
       tangent.out_r, tangent.out_g, nullptr, nullptr, nullptr, 1, 1},
      device);
}

template void prototype_margin_fwd_cuda(const PrototypeMarginInput<float>&,
                                        const PrototypeMarginGradient<float>&,
                                        const PrototypeMarginDevice<float>&);
template void prototype_margin_fwd_cuda(const PrototypeMarginInput<double>&,
                                        const PrototypeMarginGradient<double>&,
                                        const PrototypeMarginDevice<double>&);
template void prototype_margin_hvp_cuda(const PrototypeMarginInput<float>&,
                                        const PrototypeMarginTangent<float>&,
                                        const PrototypeMarginDevice<float>&);
template void prototype_margin_hvp_cuda(const PrototypeMarginInput<double>&,
                                        const PrototypeMarginTangent<double>&,
                                        const PrototypeMarginDevice<double>&);

}  // namespace cgm_fast
