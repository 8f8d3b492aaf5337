// Aligned storage for kernels.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <new>

namespace cgm_fast {

inline int64_t round_up(int64_t value, int64_t unit) { return (value + unit - 1) / unit * unit; }

// Aligned, uninitialised storage.
template <typename U>
struct Buffer {
  explicit Buffer(int64_t size)
      : size(size),
        data(static_cast<U*>(
            std::aligned_alloc(64, round_up(std::max<int64_t>(size, 1) * sizeof(U), 64)))) {
    if (!data) throw std::bad_alloc();
  }
  ~Buffer() { std::free(data); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  const int64_t size;
  U* const data;
};

}  // namespace cgm_fast
