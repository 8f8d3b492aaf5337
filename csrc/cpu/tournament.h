// Which thread visits which pair of tiles, and when, where a tile has one array of sums for the
// pairs in which it is the row and for those in which it is the column.
//
// Tiles meet as the players of a round-robin tournament do: in every round each meets one other, so
// that nobody shares a tile within a round. A tile's first task is itself. Tasks are dealt out in
// order, and one waits for those of the rounds before that have its tiles. So every sum is added up
// in one order, whatever the threads do.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>

#include "cpu/threads.h"

namespace cgm_fast {

class Tournament {
 public:
  explicit Tournament(int64_t tiles)
      : tiles_(tiles), even_(tiles + tiles % 2), done_(new std::atomic<int64_t>[tiles]) {
    for (int64_t t = 0; t < tiles; ++t) done_[t].store(0, std::memory_order_relaxed);
  }

  // Calls visit(p, q) for every unordered pair, p == q among them, until none are left; called by
  // every thread that helps. What throws, `visit` or an interruption, ends all of it.
  template <typename Visit>
  void run(const Visit& visit) {
    const int64_t half = even_ / 2, tasks = tiles_ + (even_ - 1) * half;
    for (int64_t task; (task = next_.fetch_add(1)) < tasks;) {
      interruption_point();
      if (task < tiles_) {
        visit(task, task);
        finished(task, 1);
        continue;
      }
      const int64_t round = (task - tiles_) / half, place = (task - tiles_) % half;
      // One player keeps the first place, the others go round a circle.
      const int64_t circle = even_ - 1;
      const int64_t p = place == 0 ? circle : (round + place) % circle;
      const int64_t q = (round + circle - place) % circle;
      const bool bye = p >= tiles_;  // of an odd number one has none to meet
      if (!bye) wait(p, round + 1);
      wait(q, round + 1);
      if (!bye) visit(p < q ? p : q, p < q ? q : p);
      if (!bye) finished(p, round + 2);
      finished(q, round + 2);
    }
  }

 private:
  void finished(int64_t tile, int64_t count) {
    done_[tile].store(count, std::memory_order_release);
  }

  void wait(int64_t tile, int64_t count) const {
    for (int spins = 0; done_[tile].load(std::memory_order_acquire) < count; ++spins) {
      if (spins <= 1000) continue;
      interruption_point();  // lest it wait for a thread that has been stopped
      std::this_thread::yield();
    }
  }

  const int64_t tiles_, even_;
  const std::unique_ptr<std::atomic<int64_t>[]> done_;
  std::atomic<int64_t> next_{0};
};

}  // namespace cgm_fast
