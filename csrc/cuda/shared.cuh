// How a kernel lays out its shared memory.
#pragma once

#include "cuda/device.cuh"

namespace cgm_fast::cuda {

// One object or array behind another. A struct whose constructor takes a layout describes what a
// kernel has in shared memory once: on the device it says where, and on the host how many bytes the
// launch needs.
class SharedLayout {
 public:
  __host__ __device__ explicit SharedLayout(unsigned char* begin) : begin_(begin) {}

  template <typename U>
  __host__ __device__ U* array(int64_t count) {
    static_assert(alignof(U) <= 16);
    bytes_ = (bytes_ + alignof(U) - 1) & ~(alignof(U) - 1);
    unsigned char* at = begin_ + bytes_;
    bytes_ += static_cast<std::size_t>(count) * sizeof(U);
    return reinterpret_cast<U*>(at);
  }

  __host__ __device__ std::size_t bytes() const { return bytes_; }

 private:
  unsigned char* begin_;
  std::size_t bytes_ = 0;
};

// Bytes of `Memory` and, behind it, a `Tail` made with these arguments.
template <typename Memory, typename Tail, typename... Arguments>
std::size_t shared_bytes(const Arguments&... arguments) {
  SharedLayout layout(reinterpret_cast<unsigned char*>(std::uintptr_t{1} << 16));  // read by nobody
  layout.array<Memory>(1);
  const Tail tail(layout, arguments...);
  return static_cast<void>(tail), layout.bytes();
}

}  // namespace cgm_fast::cuda
