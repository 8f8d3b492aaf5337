// MMD² of double numbers.
#include "cuda/mmd_launch.cuh"

namespace cgm_fast {

template void mmd_fwd_cuda(const MmdProblem<double>&, const MmdValue<double>&,
                           const MmdDevice<double>&);
template void mmd_hvp_cuda(const MmdProblem<double>&, const MmdTangent<double>&,
                           const MmdProduct<double>&, const MmdDevice<double>&);

}  // namespace cgm_fast
