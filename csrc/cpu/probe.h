// What this processor can do at most.
#pragma once

namespace cgm_fast {

struct Limits {
  double multiply_adds, exponentials;  // per second, all threads together
};

// Measured, in about a tenth of a second: the best of several runs, in float32.
Limits measure_limits(int threads);

}  // namespace cgm_fast
