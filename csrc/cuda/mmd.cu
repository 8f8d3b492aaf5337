// MMD² of float numbers, and of half ones.
#include "cuda/mmd_launch.cuh"

namespace cgm_fast {

const char* cuda_problem() { return cuda::problem(); }

template void mmd_fwd_cuda(const MmdInput<float>&, const MmdGradient<float>&,
                           const MmdDevice<float>&);
template void mmd_bwd_cuda(const MmdInput<float>&, const MmdTangent<float>&,
                           const MmdDevice<float>&);

}  // namespace cgm_fast
