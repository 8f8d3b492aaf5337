// In the place of csrc/cuda/device.cuh: a CUDA run-time whose calls fail on command. What
// csrc/cuda/launch.cuh makes of a failure is the host's affair alone.
#pragma once

#include <cstddef>
#include <map>
#include <string>
#include <utility>
#include <vector>

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  dim3(unsigned x, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
using cudaStream_t = void*;
enum cudaError_t { cudaSuccess, cudaErrorInvalidValue, cudaErrorNoDevice, cudaErrorLaunchFailure };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };

namespace failing {

// What calls fail, with which error, and what was called; in a line, as "cudaGetDevice".
struct Runtime {
  std::map<std::string, cudaError_t> failures;
  std::vector<std::string> calls;
  cudaError_t last = cudaSuccess;  // kept until it is asked for
  int device = 0;
  std::vector<void*> arguments;  // of the last launch

  cudaError_t call(const std::string& name, const std::string& given = "") {
    calls.push_back(name + given);
    const auto found = failures.find(name);
    if (found == failures.end()) return cudaSuccess;
    return last = found->second;
  }
};

inline Runtime& runtime() {
  static Runtime runtime;
  return runtime;
}

}  // namespace failing

inline const char* cudaGetErrorString(cudaError_t error) {
  constexpr const char* kNames[] = {"no error", "invalid argument", "no device", "launch failure"};
  return kNames[error];
}
inline cudaError_t cudaGetLastError() {
  return std::exchange(failing::runtime().last, cudaSuccess);
}
inline cudaError_t cudaGetDeviceCount(int* count) {
  const cudaError_t error = failing::runtime().call("cudaGetDeviceCount");
  if (error == cudaSuccess) *count = 1;
  return error;
}
inline cudaError_t cudaGetDevice(int* device) {
  const cudaError_t error = failing::runtime().call("cudaGetDevice");
  if (error == cudaSuccess) *device = failing::runtime().device;
  return error;
}
inline cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute, int value) {
  return failing::runtime().call("cudaFuncSetAttribute", " " + std::to_string(value));
}
inline cudaError_t cudaLaunchKernel(const void*, dim3 blocks, dim3 threads, void** arguments,
                                    std::size_t shared_bytes, cudaStream_t stream) {
  failing::Runtime& runtime = failing::runtime();
  runtime.arguments.assign(arguments, arguments + 2);
  return runtime.call("cudaLaunchKernel",
                      " " + std::to_string(blocks.x) + " " + std::to_string(threads.x) + " " +
                          std::to_string(shared_bytes) + " " + std::to_string(stream != nullptr));
}
