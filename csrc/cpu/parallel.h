// Splits rows over the threads of the pool (threads.h).
#pragma once

#include <algorithm>
#include <cstdint>

#include "cpu/threads.h"

namespace cgm_fast {

// Calls body(part, begin, end) for `parts` contiguous ranges of [0, rows). The split depends on
// rows and parts only, so results are reproducible for a given thread count.
template <typename Body>
void split_rows(int64_t rows, int parts, const Body& body) {
  parts = static_cast<int>(std::max<int64_t>(1, std::min<int64_t>(parts, rows)));
  parallel_parts(parts, parts,
                 [&](int part) { body(part, rows * part / parts, rows * (part + 1) / parts); });
}

// Waking a thread takes some microseconds; below this many operations it does not pay.
inline int useful_threads(double operations, int threads) {
  constexpr double kOperationsPerThread = 2e6;
  return std::max(1, std::min(threads, static_cast<int>(operations / kOperationsPerThread)));
}

}  // namespace cgm_fast
