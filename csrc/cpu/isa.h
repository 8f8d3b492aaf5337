// The instruction sets that kernels are compiled for, and the best that this processor has.
#pragma once

namespace cgm_fast {

enum class Isa { baseline, avx2, avx512 };

// The best usable one, or a lesser one that CGM_FAST_ISA in the environment names. Decided once.
Isa isa();
const char* isa_name(Isa isa);

}  // namespace cgm_fast
