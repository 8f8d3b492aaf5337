#include "cpu/buffer.h"

#include <cstdlib>
#include <new>

namespace cgm_fast {
namespace {

constexpr int64_t kAlign = 64;
constexpr int64_t kKept = int64_t(32) << 20;  // bytes that a thread keeps, at most

void* fresh(int64_t bytes) {
  void* memory = std::aligned_alloc(kAlign, round_up(std::max<int64_t>(bytes, 1), kAlign));
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}

// One block, handed out from the front until all of it is back. What does not fit comes fresh, and
// the block grows by as much before the next call.
class Workspace {
 public:
  ~Workspace() { std::free(block_); }

  void* allocate(int64_t bytes) {
    bytes = round_up(std::max<int64_t>(bytes, 1), kAlign);
    if (live_ == 0) begin();
    wanted_ += bytes;
    void* memory = wanted_ > size_ ? fresh(bytes) : block_ + wanted_ - bytes;
    ++live_;
    return memory;
  }

  void release(void* memory) {
    char* at = static_cast<char*>(memory);
    if (block_ == nullptr || at < block_ || at >= block_ + size_) std::free(memory);
    --live_;
  }

 private:
  void begin() {
    const int64_t size = std::min(kKept, wanted_);
    wanted_ = 0;
    if (size <= size_) return;
    std::free(block_);
    block_ = nullptr;
    size_ = 0;
    block_ = static_cast<char*>(fresh(size));
    size_ = size;
  }

  char* block_ = nullptr;
  int64_t size_ = 0, wanted_ = 0, live_ = 0;
};

thread_local Workspace workspace;

}  // namespace

// Under AddressSanitizer every buffer is a block of its own, so that it sees where each ends.
#if defined(__SANITIZE_ADDRESS__)
void* allocate(int64_t bytes) { return fresh(bytes); }
void release(void* memory) { std::free(memory); }
#else
void* allocate(int64_t bytes) { return workspace.allocate(bytes); }
void release(void* memory) { workspace.release(memory); }
#endif

}  // namespace cgm_fast
