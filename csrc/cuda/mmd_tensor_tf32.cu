// MMD² on tensor cores, of float32 samples rounded to tf32.
#include "cuda/mmd_tensor_launch.cuh"

template void cgm_fast::cuda::on_tensor_cores_of<cgm_fast::cuda::Numbers::tf32>(
    const MmdCall<float>&, const MmdValue<float>&);
