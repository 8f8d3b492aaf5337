// The one way to launch a kernel: errors of the launch become exceptions that name it.
#pragma once

#include <cstddef>
#include <map>
#include <mutex>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>

#include "cuda/device.cuh"

namespace cgm_fast::cuda {

struct Launch {
  const char* name;
  dim3 blocks, threads;
  std::size_t shared_bytes;
  cudaStream_t stream;
};

// What keeps the CUDA run-time from any launch, say a driver older than it; or null.
inline const char* problem() {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error == cudaSuccess) return nullptr;
  cudaGetLastError();
  return cudaGetErrorString(error);
}

#if defined(CUDA_ON_CPU)
using cuda_on_cpu::start;
#else
// What is wrong with this launch, rather than with any before it.
template <typename... Parameters>
cudaError_t start(const char*, void (*kernel)(Parameters...), dim3 blocks, dim3 threads,
                  std::size_t shared_bytes, cudaStream_t stream, Parameters... arguments) {
  void* addresses[] = {&arguments...};
  return cudaLaunchKernel(reinterpret_cast<const void*>(kernel), blocks, threads, addresses,
                          shared_bytes, stream);
}
#endif

inline void check(cudaError_t error, const Launch& launch) {
  if (error == cudaSuccess) return;
  // The run-time keeps an error until it is asked for; whoever calls it next would take it for his.
  cudaGetLastError();
  const auto size = [](dim3 of) {
    return std::to_string(of.x) + "x" + std::to_string(of.y) + "x" + std::to_string(of.z);
  };
  throw std::runtime_error(std::string(launch.name) + " <<<" + size(launch.blocks) + ", " +
                           size(launch.threads) + ", " + std::to_string(launch.shared_bytes) +
                           ">>>: " + cudaGetErrorString(error));
}

// Shared memory beyond what every kernel may have has to be allowed, kernel by kernel and device by
// device. It is never taken back: a thread may be about to launch with what it was allowed.
inline void allow_shared_memory(const void* kernel, const Launch& launch) {
  constexpr std::size_t kWithoutAsking = 48 << 10;
  if (launch.shared_bytes <= kWithoutAsking) return;
  static std::mutex mutex;
  static std::map<std::pair<const void*, int>, std::size_t> allowed;
  int device = 0;
  check(cudaGetDevice(&device), launch);
  const std::lock_guard<std::mutex> lock(mutex);
  std::size_t& most = allowed[{kernel, device}];
  if (launch.shared_bytes <= most) return;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             static_cast<int>(launch.shared_bytes)),
        launch);
  most = launch.shared_bytes;
}

template <typename... Parameters>
void run(const Launch& launch, void (*kernel)(Parameters...),
         std::common_type_t<Parameters>... arguments) {
  allow_shared_memory(reinterpret_cast<const void*>(kernel), launch);
  check(start(launch.name, kernel, launch.blocks, launch.threads, launch.shared_bytes,
              launch.stream, arguments...),
        launch);
}

}  // namespace cgm_fast::cuda
