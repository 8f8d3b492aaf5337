// Data races between blocks. With -fsanitize=thread the compiler calls the functions at the end of
// this file at every access to memory; they stand in the place of ThreadSanitizer's own.
//
// What a block wrote is there for another if a fence came between the write and an atomic count (of
// the thread that wrote or counts, or of another behind a barrier of the block), if a thread of the
// other block counted later, on the same counter, and then made a fence too; and if the number is
// read past L1 (load_fresh), which may hold what was there before. Anything else that reads or
// writes what another block of the launch wrote is an error, whatever value it read.
//
// Without that option all of this is empty.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#if defined(__SANITIZE_THREAD__)

namespace cuda_on_cpu::races {

#define CUDA_ON_CPU_UNWATCHED __attribute__((no_sanitize_thread))

// Nobody is watched: this is the emulation, not a kernel's thread.
inline bool unwatched = true;

// Where a thread stands: when, and behind how many barriers of its block.
struct Moment {
  std::uint64_t time = 0;
  unsigned barriers = 0;
};

// Which of a block's writes an atomic count makes known.
struct Release {
  unsigned block = 0, barriers = 0;  // all that came before so many barriers
  std::vector<std::uint64_t> until;  // and of each thread those before this time

  bool covers(unsigned thread, const Moment& written) const {
    return written.barriers < barriers || written.time < until[thread];
  }
};
using Releases = std::vector<std::shared_ptr<const Release>>;

// What a block knows of others: this thread from here on, and all of it behind the next barrier.
struct Acquired {
  Releases releases;
  unsigned thread, barriers;
};

struct Write {
  unsigned launch = 0, block = 0, thread = 0;
  Moment when;
};

constexpr std::uintptr_t kGranule = 4, kPage = 4096;
struct Page {
  Write of[kPage / kGranule];
};

enum class Access { read, fresh, write };

// Of one launch at a time; what was written before it is known.
class Watch {
 public:
  void begin_launch() {
    ++launch_;
    counted_.clear();
    error_.clear();
  }
  void begin_block(unsigned block, unsigned threads, const void* shared, std::size_t bytes) {
    block_ = block;
    barriers_ = 0;
    fences_.assign(threads, {});
    pending_.clear();
    acquired_.clear();
    shared_ = reinterpret_cast<std::uintptr_t>(shared);
    shared_end_ = shared_ + bytes;
  }
  void begin_thread(unsigned thread, const void* stack, std::size_t bytes) {
    thread_ = thread;
    stack_ = reinterpret_cast<std::uintptr_t>(stack);
    stack_end_ = stack_ + bytes;
  }
  void barrier() { ++barriers_; }
  const std::string& error() const { return error_; }

  void fence() {
    fences_[thread_] = {++time_, barriers_};
    const auto counted = pending_.find(thread_);
    if (counted == pending_.end()) return;
    acquired_.push_back({std::move(counted->second), thread_, barriers_});
    pending_.erase(counted);
  }

  void count(const void* counter) {
    auto release = std::make_shared<Release>();
    release->block = block_;
    release->until.resize(fences_.size());
    for (unsigned thread = 0; thread < fences_.size(); ++thread) {
      const Moment& fence = fences_[thread];
      if (fence.time == 0 || !(thread == thread_ || fence.barriers < barriers_)) continue;
      release->barriers = std::max(release->barriers, fence.barriers);
      release->until[thread] = fence.time;
    }
    Releases& all = counted_[counter];
    pending_[thread_] = all;
    all.push_back(std::move(release));
  }

  void access(std::uintptr_t at, std::size_t bytes, Access kind) {
    if ((at >= stack_ && at < stack_end_) || (at >= shared_ && at < shared_end_)) return;
    ++time_;
    for (std::uintptr_t place = at / kGranule; place <= (at + bytes - 1) / kGranule; ++place) {
      Page* page = page_of(place * kGranule / kPage, kind == Access::write);
      if (!page) continue;
      Write& last = page->of[place % (kPage / kGranule)];
      if (last.launch == launch_ && last.block != block_) check(last, kind);
      if (kind == Access::write) last = {launch_, block_, thread_, {time_, barriers_}};
    }
  }

 private:
  Page* page_of(std::uintptr_t number, bool make) {
    if (number == last_number_ && last_page_) return last_page_;
    const auto found = pages_.find(number);
    if (found == pages_.end() && !make) return nullptr;
    auto& page = found == pages_.end() ? pages_[number] : found->second;
    if (!page) page = std::make_unique<Page>();
    last_number_ = number;
    return last_page_ = page.get();
  }

  void check(const Write& last, Access kind) {
    if (!error_.empty()) return;
    const char* what = nullptr;
    if (!known(last)) {
      what = kind == Access::write ? "writes over what is not known to be there: "
                                   : "reads what is not known to be there: ";
    } else if (kind == Access::read) {
      what = "may read an old value from L1: ";
    } else {
      return;
    }
    error_ = "race between blocks: block " + std::to_string(block_) + ", thread " +
             std::to_string(thread_) + " " + what + "block " + std::to_string(last.block) +
             ", thread " + std::to_string(last.thread) + " wrote it";
  }

  bool known(const Write& last) const {
    for (const Acquired& acquired : acquired_) {
      if (acquired.thread != thread_ && acquired.barriers >= barriers_) continue;
      for (const auto& release : acquired.releases) {
        if (release->block == last.block && release->covers(last.thread, last.when)) return true;
      }
    }
    return false;
  }

  unsigned launch_ = 0, block_ = 0, thread_ = 0, barriers_ = 0;
  std::uint64_t time_ = 0;
  std::uintptr_t stack_ = 0, stack_end_ = 0, shared_ = 0, shared_end_ = 0;
  std::vector<Moment> fences_;               // the last of every thread of the block
  std::map<unsigned, Releases> pending_;     // by thread: it counted, and made no fence since
  std::vector<Acquired> acquired_;           // by the block
  std::map<const void*, Releases> counted_;  // by counter
  std::unordered_map<std::uintptr_t, std::unique_ptr<Page>> pages_;
  std::uintptr_t last_number_ = 0;
  Page* last_page_ = nullptr;
  std::string error_;  // the first
};

inline Watch& watch() {
  static Watch watch;
  return watch;
}

// While it lives, what the thread does is the emulation's.
class Unwatched {
 public:
  CUDA_ON_CPU_UNWATCHED Unwatched() : before_(unwatched) { unwatched = true; }
  CUDA_ON_CPU_UNWATCHED ~Unwatched() { unwatched = before_; }
  Unwatched(const Unwatched&) = delete;
  Unwatched& operator=(const Unwatched&) = delete;

 private:
  bool before_;
};

CUDA_ON_CPU_UNWATCHED inline void met(const void* at, std::size_t bytes, Access kind) {
  if (unwatched) return;
  unwatched = true;
  watch().access(reinterpret_cast<std::uintptr_t>(at), bytes, kind);
  unwatched = false;
}

// An asynchronous copy from here; of 16 bytes it goes past L1.
inline void copied(const void* from, int bytes, int of) {
  if (bytes > 0)
    met(from, static_cast<std::size_t>(bytes), of == 16 ? Access::fresh : Access::read);
}

}  // namespace cuda_on_cpu::races

// What the compiler calls. Every object file has them; one is linked.
#define CUDA_ON_CPU_HOOK \
  extern "C" __attribute__((weak, used, visibility("hidden"), no_sanitize_thread))
#define CUDA_ON_CPU_HOOKS(bytes)                                           \
  CUDA_ON_CPU_HOOK void __tsan_read##bytes(void* at) {                     \
    cuda_on_cpu::races::met(at, bytes, cuda_on_cpu::races::Access::read);  \
  }                                                                        \
  CUDA_ON_CPU_HOOK void __tsan_write##bytes(void* at) {                    \
    cuda_on_cpu::races::met(at, bytes, cuda_on_cpu::races::Access::write); \
  }                                                                        \
  CUDA_ON_CPU_HOOK void __tsan_unaligned_read##bytes(void* at) {           \
    cuda_on_cpu::races::met(at, bytes, cuda_on_cpu::races::Access::read);  \
  }                                                                        \
  CUDA_ON_CPU_HOOK void __tsan_unaligned_write##bytes(void* at) {          \
    cuda_on_cpu::races::met(at, bytes, cuda_on_cpu::races::Access::write); \
  }
CUDA_ON_CPU_HOOKS(1)
CUDA_ON_CPU_HOOKS(2)
CUDA_ON_CPU_HOOKS(4)
CUDA_ON_CPU_HOOKS(8)
CUDA_ON_CPU_HOOKS(16)
CUDA_ON_CPU_HOOK void __tsan_read_range(void* at, unsigned long bytes) {
  cuda_on_cpu::races::met(at, bytes, cuda_on_cpu::races::Access::read);
}
CUDA_ON_CPU_HOOK void __tsan_write_range(void* at, unsigned long bytes) {
  cuda_on_cpu::races::met(at, bytes, cuda_on_cpu::races::Access::write);
}
CUDA_ON_CPU_HOOK void __tsan_init() {}
CUDA_ON_CPU_HOOK void __tsan_func_entry(void*) {}
CUDA_ON_CPU_HOOK void __tsan_func_exit() {}
CUDA_ON_CPU_HOOK void __tsan_vptr_read(void**) {}
CUDA_ON_CPU_HOOK void __tsan_vptr_update(void**, void*) {}
// Of the host's: whether a static is initialised, for one.
CUDA_ON_CPU_HOOK char __tsan_atomic8_load(const volatile char* at, int) {
  return __atomic_load_n(at, __ATOMIC_ACQUIRE);
}
CUDA_ON_CPU_HOOK void __tsan_atomic8_store(volatile char* at, char value, int) {
  __atomic_store_n(at, value, __ATOMIC_RELEASE);
}
CUDA_ON_CPU_HOOK int __tsan_atomic32_fetch_add(volatile int* at, int value, int) {
  return __atomic_fetch_add(at, value, __ATOMIC_ACQ_REL);
}

#else

namespace cuda_on_cpu::races {

struct Unwatched {
  Unwatched() {}
};
inline void copied(const void*, int, int) {}

}  // namespace cuda_on_cpu::races

#endif
