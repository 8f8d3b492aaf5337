// What device code calls as well, where it is compiled for a GPU.
#pragma once

#ifdef __CUDACC__
#define CGM_HOST_DEVICE __host__ __device__
#else
#define CGM_HOST_DEVICE
#endif
