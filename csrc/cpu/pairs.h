// Which thread visits which pair of macro-tiles, and when.
//
// Macro-tiles are numbered round a circle. In round r, the rows of p meet the columns of
// (p + r) mod their number: within a round no two tasks share rows, and none share columns, so each
// adds to its rows' and its columns' sums without a lock. Tasks are dealt out in order, whoever is
// free takes the next, and it waits for the tasks of the round before that share its rows or its
// columns. So every sum is added up in one order, whatever the threads do, and memory is that of
// the rows, however many threads there are.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>

#include "cpu/threads.h"

namespace cgm_fast {

class PairSchedule {
 public:
  // Each unordered pair once, or every ordered pair.
  PairSchedule(int64_t groups, bool unordered)
      : groups_(groups),
        // With an even number the last round meets every pair from both ends: half of it does.
        tasks_(unordered ? groups * (groups + 1) / 2 : groups * groups),
        rows_done_(new std::atomic<int64_t>[groups]),
        columns_done_(new std::atomic<int64_t>[groups]) {
    for (int64_t g = 0; g < groups; ++g) {
      rows_done_[g].store(0, std::memory_order_relaxed);
      columns_done_[g].store(0, std::memory_order_relaxed);
    }
  }

  // Calls visit(p, q) for pairs of groups until none are left; called by every thread that helps.
  // What throws, `visit` or an interruption, ends all of it.
  template <typename Visit>
  void run(const Visit& visit) {
    for (int64_t task; (task = next_.fetch_add(1)) < tasks_;) {
      interruption_point();
      const int64_t round = task / groups_, p = task % groups_, q = (p + round) % groups_;
      wait(rows_done_[p], round);
      wait(columns_done_[q], round);
      visit(p, q);
      rows_done_[p].store(round + 1, std::memory_order_release);
      columns_done_[q].store(round + 1, std::memory_order_release);
    }
  }

 private:
  static void wait(const std::atomic<int64_t>& done, int64_t round) {
    for (int spins = 0; done.load(std::memory_order_acquire) < round; ++spins) {
      if (spins <= 1000) continue;
      interruption_point();  // lest it wait for a thread that has been stopped
      std::this_thread::yield();
    }
  }

  const int64_t groups_, tasks_;
  const std::unique_ptr<std::atomic<int64_t>[]> rows_done_, columns_done_;
  std::atomic<int64_t> next_{0};
};

}  // namespace cgm_fast
