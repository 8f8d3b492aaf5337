// MMD² of float numbers, and of half ones; on tensor cores: mmd_tensor_*.cu.
#include "cuda/mmd_launch.cuh"

namespace cgm_fast {

namespace cuda {

// Each in a source file of its own.
template <Numbers kOf>
void on_tensor_cores_of(const MmdCall<float>& call, const MmdValue<float>& out);

void on_tensor_cores(const MmdCall<float>& call, const MmdValue<float>& out) {
  const Dtype dtype = call.in.x.dtype;
  if (dtype == Dtype::bfloat16) return on_tensor_cores_of<Numbers::bfloat16>(call, out);
  if (dtype == Dtype::float16) return on_tensor_cores_of<Numbers::float16>(call, out);
  return call.device.tf32 ? on_tensor_cores_of<Numbers::tf32>(call, out)
                          : on_tensor_cores_of<Numbers::tf32x3>(call, out);
}

}  // namespace cuda

const char* cuda_problem() { return cuda::problem(); }

template void mmd_fwd_cuda(const MmdProblem<float>&, const MmdValue<float>&,
                           const MmdDevice<float>&);
template void mmd_hvp_cuda(const MmdProblem<float>&, const MmdTangent<float>&,
                           const MmdProduct<float>&, const MmdDevice<float>&);

}  // namespace cgm_fast
