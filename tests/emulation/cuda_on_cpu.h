// CUDA kernels on a CPU, for tests: g++ -x c++ -include cuda_on_cpu.h kernel.cu
//
// Every CUDA thread is a fiber. Between two barriers of a block its warps run one after another,
// each as far as it comes, in an order shuffled anew each time, as the lanes of a warp between two
// of its collectives and the blocks of a grid do; so code that leans on an order gives another
// result each time. Threads wait where CUDA's would: at a barrier, in a warp's shuffle or mma. If
// nobody can go on, or some wait elsewhere than others, the launch throws.
//
// Shared memory is a heap block of the launch's size, filled with NaN, so that AddressSanitizer
// sees what lies beyond it. An asynchronous copy arrives when it is waited for, and leaves NaN
// until then.
//
// Numbers that are read, written or copied by one instruction have to lie at a multiple of their
// bytes. Compiled with -fsanitize=thread it also sees races between blocks (races.h).
//
// Not seen: time, bank conflicts, limits of registers.
#pragma once

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <deque>
#include <exception>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

#include "races.h"

#define CUDA_ON_CPU
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  dim3() = default;
  dim3(unsigned x, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
using cudaStream_t = void*;

// Of the run-time what launches need (csrc/cuda/launch.cuh): shared memory beyond 48 KiB has to be
// allowed for a kernel, and an error is kept until it is asked for.
enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1 };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };

namespace cuda_on_cpu {

// Where a fiber, or whoever runs it, goes on. swapcontext would ask the system for its signal mask,
// twice for every barrier of every thread, which is most of the time that kernels take here.
#if defined(__x86_64__)
using Context = void*;  // the stack, on top of it the registers that a call must keep

asm(R"(
.text
.weak cuda_on_cpu_switch
.hidden cuda_on_cpu_switch
cuda_on_cpu_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
)");
extern "C" void cuda_on_cpu_switch(Context* from, Context to);

inline void go(Context& from, Context& to) { cuda_on_cpu_switch(&from, to); }

inline void prepare(Context& context, char* stack, std::size_t size, void (*enter)()) {
  // As a call leaves it: the address to return to, then a place that is 8 beyond a multiple of 16.
  auto top = (reinterpret_cast<std::uintptr_t>(stack) + size) & ~std::uintptr_t{15};
  void** place = reinterpret_cast<void**>(top) - 2;
  *place = reinterpret_cast<void*>(enter);
  context = place - 6;
}
#else
using Context = ucontext_t;

inline void go(Context& from, Context& to) { swapcontext(&from, &to); }

inline void prepare(Context& context, char* stack, std::size_t size, void (*enter)()) {
  getcontext(&context);
  context.uc_stack.ss_sp = stack;
  context.uc_stack.ss_size = size;
  context.uc_link = nullptr;
  makecontext(&context, enter, 0);
}
#endif

constexpr int kWarp = 32;
constexpr std::size_t kStack = 256 << 10;
constexpr std::size_t kSlot = 64;  // bytes that a lane shows the others

enum class State { ready, at_warp, at_block, done };

struct Copy {
  void* to;
  std::vector<unsigned char> bytes;
};

struct Fiber {
  Context context;
  char* stack = nullptr;
  dim3 thread;
  int lane = 0, warp = 0;
  State state = State::ready;
  const char* place = nullptr;  // of the barrier or collective that it waits at
  alignas(16) unsigned char slot[kSlot];
  std::vector<Copy> open;                // copies since the last commit
  std::deque<std::vector<Copy>> groups;  // committed ones, not yet waited for
  bool unwatched = false;                // the emulation, for it, rather than the kernel itself
};

// One block at a time; launches are not nested, and tests launch from one thread.
class Block {
 public:
  static Block& current() { return *running(); }
  static Fiber& fiber() { return *current().active_; }

  dim3 index, threads, blocks;
  unsigned char* shared = nullptr;

  Block(dim3 threads, dim3 blocks, std::size_t shared_bytes, std::mt19937& order)
      : threads(threads), blocks(blocks), bytes_(shared_bytes), order_(order) {
    const unsigned count = threads.x * threads.y * threads.z;
    if (count % kWarp != 0) throw std::runtime_error("a block must be made of whole warps");
    fibers_.resize(count);
    for (unsigned i = 0; i < count; ++i) {
      Fiber& fiber = fibers_[i];
      fiber.stack = stack(i);
      fiber.thread = {i % threads.x, i / threads.x % threads.y, i / (threads.x * threads.y)};
      fiber.lane = static_cast<int>(i % kWarp);
      fiber.warp = static_cast<int>(i / kWarp);
    }
  }

  void run(dim3 at, const std::function<void()>& kernel) {
    index = at;
    kernel_ = &kernel;
    error_ = nullptr;
    // Of the exact size, so that a sanitizer knows its end.
    std::unique_ptr<unsigned char[]> memory(new unsigned char[bytes_]);
    shared = memory.get();
    std::memset(shared, 0xff, bytes_);
    running() = this;
    for (Fiber& fiber : fibers_) start(fiber);
#if defined(__SANITIZE_THREAD__)
    races::watch().begin_block((at.z * blocks.y + at.y) * blocks.x + at.x,
                               static_cast<unsigned>(fibers_.size()), shared, bytes_);
#endif
    std::vector<std::size_t> warps(fibers_.size() / kWarp);
    std::iota(warps.begin(), warps.end(), 0);
    while (!all(State::done, 0, fibers_.size())) {
      std::shuffle(warps.begin(), warps.end(), order_);
      for (std::size_t warp : warps) run_warp(warp * kWarp);
      if (all(State::done, 0, fibers_.size())) break;
      if (!all(State::at_block, 0, fibers_.size())) lost(0, fibers_.size());
      free(0, fibers_.size(), "barrier");
#if defined(__SANITIZE_THREAD__)
      races::watch().barrier();
#endif
    }
    for (const Fiber& fiber : fibers_) {
      if (!fiber.open.empty() || !fiber.groups.empty()) {
        throw std::runtime_error("an asynchronous copy was never waited for");
      }
    }
    running() = nullptr;
  }

  // Called by a fiber: wait until all that have to come are here.
  void park(State state, const char* place) {
    const races::Unwatched unwatched;
    Fiber& self = *active_;
    self.state = state;
    self.place = place;
    leave(self);
  }

  bool any_slot() const {
    return std::any_of(fibers_.begin(), fibers_.end(),
                       [](const Fiber& fiber) { return fiber.slot[0] != 0; });
  }

  Fiber& lane(int warp, int lane) { return fibers_[static_cast<std::size_t>(warp * kWarp + lane)]; }

 private:
  static Block*& running() {
    static Block* block = nullptr;
    return block;
  }

  // Kept from launch to launch: memory fresh from the system costs more than what is run on it.
  static char* stack(unsigned i) {
    static std::vector<std::unique_ptr<char[]>> stacks;
    while (stacks.size() <= i) stacks.push_back(std::unique_ptr<char[]>(new char[kStack]));
    return stacks[i].get();
  }

  static void enter() {
    Block& block = current();
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(nullptr, &block.stack_bottom_, &block.stack_size_);
#endif
    try {
      (*block.kernel_)();
    } catch (...) {
      block.error_ = std::current_exception();
    }
    const races::Unwatched unwatched;
    block.active_->state = State::done;
    block.leave(*block.active_);
  }

  void start(Fiber& fiber) {
    fiber.state = State::ready;
    fiber.open.clear();
    fiber.groups.clear();
    fiber.unwatched = false;
    prepare(fiber.context, fiber.stack, kStack, &Block::enter);
  }

  void resume(Fiber& fiber) {
    active_ = &fiber;
#if defined(__SANITIZE_THREAD__)
    races::watch().begin_thread(static_cast<unsigned>(&fiber - fibers_.data()), fiber.stack,
                                kStack);
    races::unwatched = fiber.unwatched;
#endif
#if defined(__SANITIZE_ADDRESS__)
    void* fake = nullptr;
    __sanitizer_start_switch_fiber(&fake, fiber.stack, kStack);
#endif
    go(scheduler_, fiber.context);
#if defined(__SANITIZE_THREAD__)
    fiber.unwatched = races::unwatched;
    races::unwatched = true;
    if (!error_ && !races::watch().error().empty()) {
      error_ = std::make_exception_ptr(std::runtime_error(races::watch().error()));
    }
#endif
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#endif
  }

  void leave(Fiber& fiber) {
#if defined(__SANITIZE_ADDRESS__)
    void* fake = nullptr;
    __sanitizer_start_switch_fiber(&fake, stack_bottom_, stack_size_);
#endif
    go(fiber.context, scheduler_);
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(fake, &stack_bottom_, &stack_size_);
#endif
  }

  bool all(State state, std::size_t begin, std::size_t end) const {
    return std::all_of(fibers_.begin() + static_cast<std::ptrdiff_t>(begin),
                       fibers_.begin() + static_cast<std::ptrdiff_t>(end),
                       [&](const Fiber& fiber) { return fiber.state == state; });
  }

  // All from `begin` to `end` wait for each other: they must have come to the same place.
  void free(std::size_t begin, std::size_t end, const char* what) {
    for (std::size_t i = begin; i < end; ++i) {
      if (fibers_[i].place != fibers_[begin].place) {
        throw std::runtime_error(std::string("divergent ") + what + ": threads wait at " +
                                 fibers_[begin].place + " and at " + fibers_[i].place);
      }
      fibers_[i].state = State::ready;
    }
  }

  // As far as a warp comes without the others: to a barrier of the block, or its end.
  void run_warp(std::size_t first) {
    std::array<std::size_t, kWarp> lanes;
    std::iota(lanes.begin(), lanes.end(), first);
    while (true) {
      std::shuffle(lanes.begin(), lanes.end(), order_);
      for (std::size_t lane : lanes) {
        if (fibers_[lane].state == State::ready) resume(fibers_[lane]);
        if (error_) std::rethrow_exception(error_);
      }
      if (all(State::at_warp, first, first + kWarp)) {
        free(first, first + kWarp, "warp");
      } else if (std::none_of(lanes.begin(), lanes.end(), [&](std::size_t lane) {
                   return fibers_[lane].state == State::at_warp;
                 })) {
        return;
      } else {
        lost(first, first + kWarp);
      }
    }
  }

  [[noreturn]] void lost(std::size_t begin, std::size_t end) {
    const char* place = "";
    for (std::size_t i = begin; i < end; ++i) {
      if (fibers_[i].state != State::done) place = fibers_[i].place;
    }
    throw std::runtime_error(std::string("divergent barrier: some threads wait at ") + place +
                             ", others never arrive");
  }

  std::size_t bytes_;
  std::mt19937& order_;
  std::vector<Fiber> fibers_;
  Fiber* active_ = nullptr;
  Context scheduler_;
  const std::function<void()>* kernel_ = nullptr;
  std::exception_ptr error_;
  const void* stack_bottom_ = nullptr;  // of the scheduler
  std::size_t stack_size_ = 0;
};

constexpr std::size_t kSharedWithoutAsking = 48 << 10, kMostShared = 227 << 10;

// Host threads may launch at once; kernels then run one after another.
struct Runtime {
  std::mutex mutex;
  std::map<const void*, std::size_t> allowed;
  int times_allowed = 0;
  static Runtime& get() {
    static Runtime runtime;
    return runtime;
  }
  static cudaError_t& last() {
    thread_local cudaError_t error = cudaSuccess;
    return error;
  }
};

template <typename Kernel>
cudaError_t launch(const void* which, const Kernel& kernel, dim3 blocks, dim3 threads,
                   std::size_t shared_bytes) {
  Runtime& runtime = Runtime::get();
  const std::lock_guard<std::mutex> lock(runtime.mutex);
  const auto found = runtime.allowed.find(which);
  if (shared_bytes > (found == runtime.allowed.end() ? kSharedWithoutAsking : found->second)) {
    return Runtime::last() = cudaErrorInvalidValue;
  }
  static std::mt19937 order(1);
#if defined(__SANITIZE_THREAD__)
  races::watch().begin_launch();
#endif
  Block block(threads, blocks, shared_bytes, order);
  const std::function<void()> body = kernel;
  std::vector<std::uint64_t> turn(std::uint64_t{blocks.x} * blocks.y * blocks.z);
  std::iota(turn.begin(), turn.end(), 0);
  std::shuffle(turn.begin(), turn.end(), order);
  for (std::uint64_t i : turn) {
    block.run({static_cast<unsigned>(i % blocks.x), static_cast<unsigned>(i / blocks.x % blocks.y),
               static_cast<unsigned>(i / (std::uint64_t{blocks.x} * blocks.y))},
              body);
  }
  return cudaSuccess;
}

template <typename... Parameters>
cudaError_t start(const char* name, void (*kernel)(Parameters...), dim3 blocks, dim3 threads,
                  std::size_t shared_bytes, cudaStream_t, Parameters... arguments) {
  try {
    return launch(
        reinterpret_cast<const void*>(kernel), [&] { kernel(arguments...); }, blocks, threads,
        shared_bytes);
  } catch (const std::exception& error) {
    throw std::runtime_error(std::string(name) + ": " + error.what());
  }
}

// What every lane of the warp gives, seen by all of them.
template <typename T, typename Read>
auto collective(const T& mine, const char* place, const Read& read) {
  static_assert(sizeof(T) <= kSlot);
  const races::Unwatched unwatched;
  Block& block = Block::current();
  Fiber& self = Block::fiber();
  std::memcpy(self.slot, &mine, sizeof(T));
  block.park(State::at_warp, place);
  const auto of_lane = [&](int lane) {
    T value;
    std::memcpy(&value, block.lane(self.warp, lane).slot, sizeof(T));
    return value;
  };
  auto result = read(of_lane);
  block.park(State::at_warp, place);  // nobody writes before all have read
  return result;
}

inline unsigned ballot(bool mine, const char* place) {
  return collective(mine, place, [](const auto& of_lane) {
    unsigned bits = 0;
    for (int lane = 0; lane < kWarp; ++lane) bits |= static_cast<unsigned>(of_lane(lane)) << lane;
    return bits;
  });
}

inline unsigned match_lanes(int mine, const char* place) {
  return collective(mine, place, [&](const auto& of_lane) {
    unsigned bits = 0;
    for (int lane = 0; lane < kWarp; ++lane) {
      bits |= static_cast<unsigned>(of_lane(lane) == mine) << lane;
    }
    return bits;
  });
}

// The same for a block, of one bool each.
inline bool any_in_block(bool mine, const char* place) {
  const races::Unwatched unwatched;
  Block& block = Block::current();
  Block::fiber().slot[0] = mine;
  block.park(State::at_block, place);
  const bool any = block.any_slot();
  block.park(State::at_block, place);
  return any;
}

// What one block tells another: see races.h.
inline void fence() {
#if defined(__SANITIZE_THREAD__)
  const races::Unwatched unwatched;
  races::watch().fence();
#endif
}

inline unsigned count_up(unsigned* counter, unsigned last) {
  const races::Unwatched unwatched;
#if defined(__SANITIZE_THREAD__)
  races::watch().count(counter);
#endif
  const unsigned before = *counter;
  *counter = before >= last ? 0 : before + 1;
  return before;
}

template <typename T>
T load_fresh(const T* from) {
#if defined(__SANITIZE_THREAD__)
  races::met(from, sizeof(T), races::Access::fresh);
#endif
  const races::Unwatched unwatched;
  return *from;
}

// Of some numbers read, written or copied by one instruction.
inline void check_alignment(const void* at, std::size_t bytes) {
  if (reinterpret_cast<std::uintptr_t>(at) % bytes == 0) return;
  throw std::runtime_error("misaligned address: " + std::to_string(bytes) +
                           " bytes by one instruction, from no multiple of these");
}

}  // namespace cuda_on_cpu

inline const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaSuccess ? "no error" : "invalid argument";
}
inline cudaError_t cudaGetLastError() {
  return std::exchange(cuda_on_cpu::Runtime::last(), cudaSuccess);
}
inline cudaError_t cudaGetDeviceCount(int* count) {
  *count = 1;
  return cudaSuccess;
}
inline cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
inline cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute, int value) {
  cuda_on_cpu::Runtime& runtime = cuda_on_cpu::Runtime::get();
  const std::lock_guard<std::mutex> lock(runtime.mutex);
  if (static_cast<std::size_t>(value) > cuda_on_cpu::kMostShared) {
    return cuda_on_cpu::Runtime::last() = cudaErrorInvalidValue;
  }
  ++runtime.times_allowed;
  runtime.allowed[kernel] = static_cast<std::size_t>(value);
  return cudaSuccess;
}

#define CUDA_ON_CPU_STRING(x) #x
#define CUDA_ON_CPU_LINE(x) CUDA_ON_CPU_STRING(x)
#define CUDA_ON_CPU_HERE __FILE__ ":" CUDA_ON_CPU_LINE(__LINE__)

#define threadIdx (::cuda_on_cpu::Block::fiber().thread)
#define blockIdx (::cuda_on_cpu::Block::current().index)
#define blockDim (::cuda_on_cpu::Block::current().threads)
#define gridDim (::cuda_on_cpu::Block::current().blocks)

#define __syncthreads() \
  ::cuda_on_cpu::Block::current().park(::cuda_on_cpu::State::at_block, CUDA_ON_CPU_HERE)
#define __shfl_xor_sync(mask, value, bit)                                  \
  ::cuda_on_cpu::collective(value, CUDA_ON_CPU_HERE, [&](const auto& of) { \
    return of(::cuda_on_cpu::Block::fiber().lane ^ (bit));                 \
  })

#include "tensor_cores.h"
