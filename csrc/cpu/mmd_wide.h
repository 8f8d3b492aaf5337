// MMD² of samples with many features: an item of the batch. Chosen by mmd_fwd_cpu.
#pragma once

#include "mmd.h"

namespace cgm_fast {

// From how many features on this is the faster way, by measurement (cgm_fast/ops/mmd/README.md).
constexpr int64_t kWideFeatures = 128;

template <typename T>
void mmd_wide_item(const MmdProblem<T>& in, const MmdValue<T>& out, int64_t item, int threads);

// False, and nothing done, where distances have to be plain differences, or the tangent of the
// relation is not symmetric.
template <typename T>
bool mmd_wide_hvp_item(const MmdProblem<T>& in, const MmdTangent<T>& tangent,
                       const MmdProduct<T>& out, int64_t item, int threads);

}  // namespace cgm_fast
