// Placeholder on this branch only, for helpers to build: main has the kernels.
#include "kernel_product.h"

#include <stdexcept>

namespace cgm_fast {
template <typename T>
void kernel_product_fwd_cpu(const KernelProductProblem<T>&, const KernelProductValue<T>&, int) {
  throw std::runtime_error("not on this branch");
}
template void kernel_product_fwd_cpu(const KernelProductProblem<float>&,
                                     const KernelProductValue<float>&, int);
template void kernel_product_fwd_cpu(const KernelProductProblem<double>&,
                                     const KernelProductValue<double>&, int);
}  // namespace cgm_fast
