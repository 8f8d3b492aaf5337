// The one way to launch a kernel: errors of the launch become exceptions that name it.
#pragma once

#include <cstddef>
#include <stdexcept>
#include <string>

#include "cuda/device.cuh"

namespace cgm_fast::cuda {

struct Launch {
  const char* name;
  dim3 blocks, threads;
  std::size_t shared_bytes;
  cudaStream_t stream;
};

#if defined(__CUDACC__)

// What keeps the CUDA run-time from any launch, say a driver older than it; or null.
inline const char* problem() {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

inline void check(cudaError_t error, const Launch& launch) {
  if (error == cudaSuccess) return;
  const auto size = [](dim3 of) {
    return std::to_string(of.x) + "x" + std::to_string(of.y) + "x" + std::to_string(of.z);
  };
  throw std::runtime_error(std::string(launch.name) + " <<<" + size(launch.blocks) + ", " +
                           size(launch.threads) + ", " + std::to_string(launch.shared_bytes) +
                           ">>>: " + cudaGetErrorString(error));
}

template <typename... Parameters, typename... Arguments>
void run(const Launch& launch, void (*kernel)(Parameters...), Arguments... arguments) {
  constexpr std::size_t kWithoutAsking = 48 << 10;
  if (launch.shared_bytes > kWithoutAsking) {
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(launch.shared_bytes)),
          launch);
  }
  kernel<<<launch.blocks, launch.threads, launch.shared_bytes, launch.stream>>>(arguments...);
  check(cudaGetLastError(), launch);
}

#else

inline const char* problem() { return nullptr; }

template <typename... Parameters, typename... Arguments>
void run(const Launch& launch, void (*kernel)(Parameters...), Arguments... arguments) {
  try {
    cuda_on_cpu::launch([&] { kernel(arguments...); }, launch.blocks, launch.threads,
                        launch.shared_bytes);
  } catch (const std::exception& error) {
    throw std::runtime_error(std::string(launch.name) + ": " + error.what());
  }
}

#endif

}  // namespace cgm_fast::cuda
