// Radial kernels in dual numbers, as functions of t = |a - b|^2 / 2h.
#pragma once

#include "checks.h"
#include "kernels.h"

namespace checks {

using cgm_fast::Kernel;

// phi(t) - phi(0) and -phi'(t), as cgm_fast/ops/mmd/kernels.py has them.
struct Radial {
  Dual less, slope;
};

inline Radial radial(Kernel kernel, Dual t) {
  const auto over = [](Dual p, Dual q) { return q.value == 0 ? Dual{} : p / q; };
  switch (kernel) {
    case Kernel::gaussian:
      return {expm1(-1 * t), exp(-1 * t)};
    case Kernel::laplacian: {
      const Dual s = sqrt(2 * t);
      return {expm1(-1 * s), over(exp(-1 * s), s)};
    }
    case Kernel::matern32: {
      const Dual s = sqrt(6 * t);
      return {expm1(-1 * s) + s * exp(-1 * s), 3 * exp(-1 * s)};
    }
    case Kernel::matern52: {
      const Dual s = sqrt(10 * t), more = s + (1.0 / 3) * (s * s);
      return {expm1(-1 * s) + more * exp(-1 * s), (5.0 / 3) * ((1 + s) * exp(-1 * s))};
    }
    case Kernel::rational_quadratic: {
      const Dual whole = Dual{1, 0} / (1 + t);
      return {-1 * (t * whole), whole * whole};
    }
    case Kernel::imq: {
      const Dual inverse = Dual{1, 0} / (1 + 2 * t), whole = sqrt(inverse);
      return {-2 * (t * inverse) / (1 + whole), whole * inverse};
    }
    case Kernel::energy: {
      const Dual s = sqrt(2 * t);
      return {-1 * s, over(Dual{1, 0}, s)};
    }
  }
  return {};
}

// phi(0).
inline double at_zero(Kernel kernel) { return kernel == Kernel::energy ? 0 : 1; }

}  // namespace checks
