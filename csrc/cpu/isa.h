// The instruction sets that kernels are compiled for, and the best that this processor has.
#pragma once

namespace cgm_fast {

enum class Isa { baseline, avx2, avx512 };

// The best that the processor has.
Isa best_isa();

// That, or a lesser one that CGM_FAST_ISA in the environment names. Decided once. Throws
// std::invalid_argument if that is none, or more than the processor has.
Isa isa();
const char* isa_name(Isa isa);

}  // namespace cgm_fast

#define CGM_FAST_DECLARE(isa, Table, table)  \
  namespace isa {                            \
  extern const Table<float> table##_float;   \
  extern const Table<double> table##_double; \
  }

#ifdef CGM_FAST_X86
#define CGM_FAST_SELECT(Table, table, type)                 \
  template <>                                               \
  const Table<type>& table<type>() {                        \
    return isa() == Isa::avx512 ? avx512::table##_##type    \
           : isa() == Isa::avx2 ? avx2::table##_##type      \
                                : baseline::table##_##type; \
  }
#define CGM_FAST_DECLARE_ALL(Table, table) \
  CGM_FAST_DECLARE(baseline, Table, table) \
  CGM_FAST_DECLARE(avx2, Table, table)     \
  CGM_FAST_DECLARE(avx512, Table, table)
#else
#define CGM_FAST_SELECT(Table, table, type) \
  template <>                               \
  const Table<type>& table<type>() {        \
    return baseline::table##_##type;        \
  }
#define CGM_FAST_DECLARE_ALL(Table, table) CGM_FAST_DECLARE(baseline, Table, table)
#endif

// Defines table<float>() and table<double>(): one of the tables that a kernel file, compiled once
// per instruction set, defines as <set>::table_float and <set>::table_double.
#define CGM_FAST_KERNELS(Table, table) \
  CGM_FAST_DECLARE_ALL(Table, table)   \
  CGM_FAST_SELECT(Table, table, float) \
  CGM_FAST_SELECT(Table, table, double)
