// Splits rows over threads. The caller passes torch's thread count; no OpenMP run-time is linked,
// so there is never a second one beside torch's, and a fork between calls leaves nothing behind.
#pragma once

#include <algorithm>
#include <cstdint>
#include <exception>
#include <system_error>
#include <thread>
#include <vector>

namespace cgm_fast {

// Calls body(part, begin, end) for `parts` contiguous ranges of [0, rows). The split depends on
// rows and parts only, so results are reproducible for a given thread count.
template <typename Body>
void split_rows(int64_t rows, int parts, const Body& body) {
  parts = static_cast<int>(std::max<int64_t>(1, std::min<int64_t>(parts, rows)));
  std::vector<std::exception_ptr> errors(parts);
  auto run = [&](int part) {
    try {
      body(part, rows * part / parts, rows * (part + 1) / parts);
    } catch (...) {
      errors[part] = std::current_exception();
    }
  };
  std::vector<std::thread> workers;
  workers.reserve(parts - 1);
  for (int part = 1; part < parts; ++part) {
    try {
      workers.emplace_back(run, part);
    } catch (const std::system_error&) {  // no more threads to be had: do its share here
      run(part);
    }
  }
  run(0);
  for (auto& worker : workers) worker.join();
  for (auto& error : errors)
    if (error) std::rethrow_exception(error);
}

// A thread costs some 20 microseconds to start; below this many operations it does not pay.
inline int useful_threads(double operations, int threads) {
  constexpr double kOperationsPerThread = 2e5;
  return std::max(1, std::min(threads, static_cast<int>(operations / kOperationsPerThread)));
}

}  // namespace cgm_fast
