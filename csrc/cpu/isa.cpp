#include "cpu/isa.h"

#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <stdexcept>
#include <string>

namespace cgm_fast {
namespace {

Isa best() {
#if defined(CGM_FAST_X86)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("fma"))
    return Isa::avx512;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return Isa::avx2;
#endif
  return Isa::baseline;
}

Isa choose() {
  const char* wanted = std::getenv("CGM_FAST_ISA");
  if (wanted == nullptr || *wanted == 0) return best_isa();
  for (Isa candidate : {Isa::baseline, Isa::avx2, Isa::avx512}) {
    if (std::strcmp(wanted, isa_name(candidate)) != 0) continue;
    if (candidate <= best_isa()) return candidate;
    throw std::invalid_argument(std::string("CGM_FAST_ISA is '") + wanted +
                                "', but this processor has no more than " + isa_name(best_isa()));
  }
  throw std::invalid_argument(
      std::string("CGM_FAST_ISA must be one of 'baseline', 'avx2', 'avx512', got '") + wanted +
      "'");
}

}  // namespace

Isa best_isa() {
  static const Isa found = best();
  return found;
}

Isa isa() {
  static const Isa chosen = choose();
  return chosen;
}

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::avx512:
      return "avx512";
    case Isa::avx2:
      return "avx2";
    default:
      return "baseline";
  }
}

}  // namespace cgm_fast
