// Aligned storage for kernels.
#pragma once

#include <algorithm>
#include <cstdint>

namespace cgm_fast {

inline int64_t round_up(int64_t value, int64_t unit) { return (value + unit - 1) / unit * unit; }

// Memory of one call, 64-byte aligned. A thread keeps up to some megabytes between its calls: fresh
// pages cost more than the arithmetic of a thousand rows. `release` is called by the same thread.
void* allocate(int64_t bytes);
void release(void* memory);

// Uninitialised, for one thread's use of its own memory or while that thread waits.
template <typename U>
struct Buffer {
  explicit Buffer(int64_t size)
      : size(size), data(static_cast<U*>(allocate(size * int64_t(sizeof(U))))) {}
  Buffer(int64_t size, U value) : Buffer(size) { std::fill_n(data, size, value); }
  ~Buffer() { release(data); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  bool empty() const { return size == 0; }
  U& operator[](int64_t i) const { return data[i]; }

  const int64_t size;
  U* const data;
};

}  // namespace cgm_fast
