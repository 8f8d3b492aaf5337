#include "cpu/threads.h"

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstring>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>

#ifndef _WIN32
#include <dlfcn.h>
#include <pthread.h>
#endif

namespace cgm_fast {
namespace {

using Clock = std::chrono::steady_clock;
constexpr std::chrono::milliseconds kBetweenPolls(50);

thread_local void (*poll_of_caller)() = nullptr;
thread_local Clock::time_point next_poll;
thread_local const std::atomic<bool>* job_stopped = nullptr;  // of the job that this thread helps

struct Job {
  void (*body)(void*, int);
  void* context;
  int parts;
  std::atomic<int> next{0};
  std::atomic<bool> stopped{false};  // by an exception; parts that have not begun never do
  std::exception_ptr error;          // the first
  std::mutex error_mutex;

  void work() {
    const std::atomic<bool>* outer = job_stopped;
    job_stopped = &stopped;
    for (int part; !stopped.load() && (part = next.fetch_add(1)) < parts;) {
      try {
        body(context, part);
      } catch (...) {
        std::lock_guard<std::mutex> lock(error_mutex);
        if (!error) error = std::current_exception();
        stopped.store(true);
      }
    }
    job_stopped = outer;
  }
};

// Workers live as long as the process. A pool is never destroyed: at exit its threads may still be
// waiting, and in a forked child they do not exist, so the child begins another pool.
class Pool {
 public:
  void run(Job& job, int threads) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      while (workers_ < threads - 1) {
        try {
          std::thread(&Pool::serve, this).detach();
        } catch (const std::system_error&) {
          break;  // no more threads to be had: fewer do the work
        }
        ++workers_;
      }
      job_ = &job;
      wanted_ = threads - 1;
      ++generation_;
    }
    wake_.notify_all();
    job.work();
    std::unique_lock<std::mutex> lock(mutex_);
    job_ = nullptr;  // a worker that wakes late finds nothing
    idle_.wait(lock, [&] { return busy_ == 0; });
  }

  std::mutex callers;  // one job at a time

 private:
  void serve() {
    std::unique_lock<std::mutex> lock(mutex_);
    unsigned seen = generation_ - 1;
    for (;;) {
      wake_.wait(lock, [&] { return generation_ != seen; });
      seen = generation_;
      if (job_ == nullptr || wanted_ == 0) continue;
      --wanted_;
      ++busy_;
      Job* job = job_;
      lock.unlock();
      job->work();
      lock.lock();
      if (--busy_ == 0) idle_.notify_all();
    }
  }

  std::mutex mutex_;
  std::condition_variable wake_, idle_;
  Job* job_ = nullptr;
  int workers_ = 0, wanted_ = 0, busy_ = 0;
  unsigned generation_ = 0;
};

std::atomic<Pool*> pool{nullptr};
std::atomic<bool> forked{false};  // this process, from one whose threads did not come along

#ifndef _WIN32
// Whether the process was forked before this module was loaded, and has not called exec since. Only
// Linux says: the ninth field of stat are flags, of which 0x40 is PF_FORKNOEXEC.
bool forked_before() {
  std::FILE* stat = std::fopen("/proc/self/stat", "r");
  if (stat == nullptr) return false;
  char text[512];
  const size_t size = std::fread(text, 1, sizeof text - 1, stat);
  std::fclose(stat);
  text[size] = 0;
  const char* name_end = std::strrchr(text, ')');  // the second field, which may hold anything
  unsigned flags = 0;
  return name_end && std::sscanf(name_end + 1, " %*c %*d %*d %*d %*d %*d %u", &flags) == 1 &&
         (flags & 0x40) != 0;
}

// When the module is loaded, not at the first call: that may be a child's.
[[maybe_unused]] const int registered = [] {
  forked.store(forked_before());
  return pthread_atfork(nullptr, nullptr, [] {
    forked.store(true);
    pool.store(nullptr);
  });
}();
#endif

Pool& current_pool() {
  Pool* found = pool.load();
  if (found) return *found;
  Pool* fresh = new Pool;
  if (pool.compare_exchange_strong(found, fresh)) return *fresh;
  delete fresh;
  return *found;
}

// GOMP_parallel(function, its argument, threads, flags), of GNU's run-time and those that stand in
// for it.
using OpenMp = void (*)(void (*)(void*), void*, unsigned, unsigned);

// The OpenMP run-time that the process has loaded, torch's, or null. Its idle threads wait by
// spinning, so a pool of our own beside it would get half a core. Not in a forked child, where the
// run-time waits for threads that did not come along.
OpenMp loaded_openmp() {
#ifdef _WIN32
  return nullptr;
#else
  static const OpenMp found = reinterpret_cast<OpenMp>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
  return forked.load() ? nullptr : found;
#endif
}

}  // namespace

Polled::Polled(void (*poll)()) : before_(poll_of_caller) {
  poll_of_caller = poll;
  next_poll = Clock::now() + kBetweenPolls;
}

Polled::~Polled() { poll_of_caller = before_; }

void interruption_point() {
  if (job_stopped && job_stopped->load(std::memory_order_relaxed)) throw Stopped();
  if (!poll_of_caller || Clock::now() < next_poll) return;
  poll_of_caller();
  next_poll = Clock::now() + kBetweenPolls;
}

void run_parts(int parts, int threads, void (*body)(void*, int), void* context) {
  Job job;
  job.body = body;
  job.context = context;
  job.parts = parts;
  threads = threads < parts ? threads : parts;
  if (OpenMp parallel = loaded_openmp()) {
    parallel([](void* given) { static_cast<Job*>(given)->work(); }, &job, unsigned(threads), 0);
  } else {
    Pool& workers = current_pool();
    std::unique_lock<std::mutex> alone(workers.callers, std::try_to_lock);
    if (alone.owns_lock())
      workers.run(job, threads);
    else
      job.work();  // another call has the pool; the parts, and so the result, are the same
  }
  if (job.error) std::rethrow_exception(job.error);
}

}  // namespace cgm_fast
