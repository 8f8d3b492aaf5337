// Splits work over threads (threads.h).
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

// Calls visit(item, threads) for every item of a batch. Many: a thread takes whole ones; few: the
// threads share the work of each.
template <typename Visit>
void for_each_item(int64_t batch, int threads, const Visit& visit) {
  if (batch >= threads && threads > 1) {
    parallel_parts(static_cast<int>(batch), threads, [&](int item) { visit(item, 1); });
  } else {
    for (int64_t item = 0; item < batch; ++item) visit(item, threads);
  }
}

// How many threads are worth waking: that takes tens of microseconds, in which one core does about
// this many operations.
inline int useful_threads(double operations, int threads) {
  return static_cast<int>(std::min(double(threads), 1 + operations / 1.5e7));
}

}  // namespace cgm_fast
