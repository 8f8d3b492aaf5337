// The families of radial kernels, by the names that they have in cgm_fast/ops/mmd/kernels.py. What
// each is stands in cpu/radial.h and cuda/radial.cuh.
#pragma once

#include <stdexcept>
#include <string>

#include "host_device.h"

namespace cgm_fast {

enum class Kernel {
  gaussian,
  laplacian,
  matern32,
  matern52,
  rational_quadratic,
  imq,
  energy,
};

// Whether k has a kink where rows coincide: then these have to be at distance 0, exactly.
CGM_HOST_DEVICE constexpr bool has_kink(Kernel kernel) {
  return kernel == Kernel::laplacian || kernel == Kernel::energy;
}

// Whether phi goes to 0. Of one that does not phi(0) is never added back: all pairs are near.
CGM_HOST_DEVICE constexpr bool vanishes(Kernel kernel) { return kernel != Kernel::energy; }

struct KernelName {
  const char* name;
  Kernel kernel;
};

constexpr KernelName kKernelNames[] = {
    {"gaussian", Kernel::gaussian},
    {"laplacian", Kernel::laplacian},
    {"matern12", Kernel::laplacian},
    {"matern32", Kernel::matern32},
    {"matern52", Kernel::matern52},
    {"rational_quadratic", Kernel::rational_quadratic},
    {"imq", Kernel::imq},
    {"energy", Kernel::energy},
};

inline Kernel kernel_of(const std::string& name) {
  for (const KernelName& known : kKernelNames)
    if (name == known.name) return known.kernel;
  throw std::invalid_argument("no kernel is called " + name);
}

}  // namespace cgm_fast
