// MMD² on tensor cores, of float16 samples.
#include "cuda/mmd_tensor_launch.cuh"

template void cgm_fast::cuda::on_tensor_cores_of<cgm_fast::cuda::Numbers::float16>(
    const MmdCall<float>&, const MmdValue<float>&);
