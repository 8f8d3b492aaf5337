// Launches of MMD² and its second derivative.
#include "cuda/launch.cuh"
#include "cuda/mmd_rows.cuh"
#include "cuda/mmd_second.cuh"
#include "cuda/mmd_wide.cuh"

namespace cgm_fast {

namespace {

template <typename T>
unsigned row_blocks(const MmdInput<T>& in, int rows) {
  return static_cast<unsigned>((in.n + in.m + rows - 1) / rows);
}

template <typename T, typename Out>
void launch(const char* name, const cuda::MmdCall<T>& call, const Out& out, int rows,
            std::size_t shared_bytes, void (*kernel)(cuda::MmdCall<T>, Out, unsigned)) {
  const unsigned blocks = row_blocks(call.in, rows);
  cuda::run({name, dim3(blocks * static_cast<unsigned>(call.in.batch)), dim3(cuda::kThreads),
             shared_bytes, static_cast<cudaStream_t>(call.device.stream)},
            kernel, call, out, blocks);
}

template <int kD, typename T>
void by_rows(const cuda::MmdCall<T>& call, const MmdGradient<T>& out) {
  const MmdInput<T>& in = call.in;
  const bool options =
      in.x_weights || in.y_weights || in.scales > 1 || out.grad_p || call.device.weighted_kernel;
  launch("mmd_rows_kernel", call, out, call.device.rows, cuda::rows_shared_bytes<T, kD>(in.scales),
         options ? cuda::mmd_rows_kernel<T, kD, true> : cuda::mmd_rows_kernel<T, kD, false>);
}

}  // namespace

template <typename T>
void mmd_fwd_cuda(const MmdInput<T>& in, const MmdGradient<T>& out, const MmdDevice<T>& device) {
  const cuda::MmdCall<T> call{in, device};
  if (in.d <= 4) return by_rows<4>(call, out);
  if (in.d <= 8) return by_rows<8>(call, out);
  if (in.d <= 16) return by_rows<16>(call, out);
  if constexpr (sizeof(T) == 4) {
    if (in.d <= 32) return by_rows<32>(call, out);
    if (in.d <= 64) return by_rows<64>(call, out);
  }
  launch("mmd_wide_kernel", call, out, cuda::kRows, cuda::wide_shared_bytes<T>(in.scales),
         cuda::mmd_wide_kernel<T>);
}

template <typename T>
void mmd_bwd_cuda(const MmdInput<T>& in, const MmdTangent<T>& tangent, const MmdDevice<T>& device) {
  launch("mmd_second_kernel", cuda::MmdCall<T>{in, device}, tangent, cuda::kRows,
         cuda::second_shared_bytes<T>(in.scales), cuda::mmd_second_kernel<T>);
}

template void mmd_fwd_cuda(const MmdInput<float>&, const MmdGradient<float>&,
                           const MmdDevice<float>&);
template void mmd_fwd_cuda(const MmdInput<double>&, const MmdGradient<double>&,
                           const MmdDevice<double>&);
template void mmd_bwd_cuda(const MmdInput<float>&, const MmdTangent<float>&,
                           const MmdDevice<float>&);
template void mmd_bwd_cuda(const MmdInput<double>&, const MmdTangent<double>&,
                           const MmdDevice<double>&);

}  // namespace cgm_fast
