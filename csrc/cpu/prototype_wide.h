// The margin loss for many features and prototypes. Chosen by prototype_margin_fwd_cpu.
#pragma once

#include "prototype_margin.h"

namespace cgm_fast {

// Whether this is likely to be the faster way, by measurement (cgm_fast/ops/prototype_margin/
// README.md): a product has half the operations of differences, and prototypes are laid out for
// either.
template <typename T>
bool is_wide(const PrototypeMarginInput<T>& in) {
  return in.d >= 64 && in.k >= 64 && (in.rows <= 4 * in.k || in.k * in.d >= 50000);
}

// False, and nothing done, if too many of the distances decide something: then they are all wanted
// as differences, and prototype_margin.cpp is the faster way.
template <typename T>
bool prototype_margin_wide(const PrototypeMarginInput<T>& in, const PrototypeMarginGradient<T>& out,
                           int threads);

}  // namespace cgm_fast
