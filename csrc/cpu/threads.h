// Several threads for one call: those of the OpenMP run-time that torch has loaded, else a small
// pool of our own. The module links no OpenMP: a second run-time would fight torch's for the cores.
#pragma once

namespace cgm_fast {

// Calls body(context, part) once for every part in [0, parts), on up to `threads` threads, the
// caller's among them. What a part does must not depend on which thread does it; then results
// depend on `parts` alone. It may be called by several threads at once, and in a forked child.
void run_parts(int parts, int threads, void (*body)(void*, int), void* context);

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
