// Several threads for one call: those of the OpenMP run-time that torch has loaded, else a small
// pool of our own. The module links no OpenMP: a second run-time would fight torch's for the cores.
#pragma once

namespace cgm_fast {

// Calls body(context, part) once for every part in [0, parts), on up to `threads` threads, the
// caller's among them. What a part does must not depend on which thread does it; then results
// depend on `parts` alone. It may be called by several threads at once, and in a forked child.
void run_parts(int parts, int threads, void (*body)(void*, int), void* context);

// Where a long call may end early: kernels pass here at least every tenth of a second or so. In the
// thread that made the call `poll` is called, seldom enough to cost nothing; what it throws ends
// the call. In the threads that help, Stopped is thrown when the call has ended so.
void interruption_point();

struct Stopped {};

// While one lives, `poll` is called now and then by the thread that made it.
class Polled {
 public:
  explicit Polled(void (*poll)());
  ~Polled();
  Polled(const Polled&) = delete;
  Polled& operator=(const Polled&) = delete;

 private:
  void (*const before_)();
};

template <typename Body>
void parallel_parts(int parts, int threads, const Body& body) {
  if (threads <= 1 || parts <= 1) {
    for (int part = 0; part < parts; ++part) body(part);
    return;
  }
  run_parts(
      parts, threads, [](void* context, int part) { (*static_cast<const Body*>(context))(part); },
      const_cast<Body*>(&body));
}

}  // namespace cgm_fast
