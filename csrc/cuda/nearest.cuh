// The nearest of some prototypes.
#pragma once

#include "cuda/device.cuh"

namespace cgm_fast::cuda {

// Of those that a lane has met.
template <typename T>
struct Nearest {
  T distance;
  int index;

  __device__ void meet(T u, int k) {
    if (u < distance) {
      distance = u;
      index = k;
    }
  }

  // Of all lanes, or of `lanes` neighbours; ties to the lowest index.
  __device__ void share(int lanes = kWarp) {
    for (int bit = lanes / 2; bit > 0; bit /= 2) {
      const T theirs = shuffle_xor(distance, bit);
      const int at = shuffle_xor(index, bit);
      if (theirs < distance || (theirs == distance && at < index)) {
        distance = theirs;
        index = at;
      }
    }
  }
};

}  // namespace cgm_fast::cuda
