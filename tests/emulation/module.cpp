// The CUDA kernels as a Python module of their own, emulated.
#include "bindings.h"

PYBIND11_MODULE(emulated_cuda, module) {
  cgm_fast::bindings::bind_plans(module);
  cgm_fast::bindings::bind_cuda(module);
  module.def("add_aligned", [](bool aligned) { cuda_on_cpu::add_aligned = aligned; });
}
