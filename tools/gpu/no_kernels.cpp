// The CUDA C++ kernels' functions, each of which does nothing: what is left of a call is the host's
// share (host.py).
#include "bindings.h"

namespace cgm_fast {

const char* cuda_problem() { return nullptr; }

template <typename T>
void mmd_fwd_cuda(const MmdProblem<T>&, const MmdValue<T>&, const MmdDevice<T>&) {}
template <typename T>
void mmd_hvp_cuda(const MmdProblem<T>&, const MmdTangent<T>&, const MmdProduct<T>&,
                  const MmdDevice<T>&) {}
template <typename T>
void prototype_margin_fwd_cuda(const PrototypeMarginInput<T>&, const PrototypeMarginGradient<T>&,
                               const PrototypeMarginDevice<T>&) {}
template <typename T>
void prototype_margin_hvp_cuda(const PrototypeMarginInput<T>&, const PrototypeMarginTangent<T>&,
                               const PrototypeMarginDevice<T>&) {}
template <typename T>
void cgm_loss_fwd_cuda(const CgmLossInput<T>&, const CgmLossGradient<T>&, const CgmLossDevice<T>&) {
}
template <typename T>
void kernel_product_fwd_cuda(const KernelProductProblem<T>&, const KernelProductValue<T>&,
                             const KernelProductDevice<T>&) {}

template <typename T>
struct Kept {  // functions of one dtype, so that they are compiled
  decltype(&mmd_fwd_cuda<T>) mmd_fwd = &mmd_fwd_cuda<T>;
  decltype(&mmd_hvp_cuda<T>) mmd_hvp = &mmd_hvp_cuda<T>;
  decltype(&prototype_margin_fwd_cuda<T>) margin_fwd = &prototype_margin_fwd_cuda<T>;
  decltype(&prototype_margin_hvp_cuda<T>) margin_hvp = &prototype_margin_hvp_cuda<T>;
  decltype(&cgm_loss_fwd_cuda<T>) cgm_loss_fwd = &cgm_loss_fwd_cuda<T>;
  decltype(&kernel_product_fwd_cuda<T>) product_fwd = &kernel_product_fwd_cuda<T>;
};
__attribute__((used)) Kept<float> kept_float;
__attribute__((used)) Kept<double> kept_double;

}  // namespace cgm_fast

PYBIND11_MODULE(emulated_cuda, module) {
  cgm_fast::bindings::bind_plans(module);
  cgm_fast::bindings::bind_cuda(module);
}
