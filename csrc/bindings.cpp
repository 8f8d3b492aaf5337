// The module as Python sees it, and the CPU's kernels in it; the GPU's are in bindings_cuda.cpp.
#include "bindings_ops.h"
#include "cpu/isa.h"
#include "cpu/probe.h"
#include "cpu/threads.h"

#ifndef CGM_FAST_FLAGS
#define CGM_FAST_FLAGS "unknown"
#endif
#ifndef CGM_FAST_CUDA_COMPILER
#define CGM_FAST_CUDA_COMPILER "none"
#endif
#ifndef CGM_FAST_CUDA_ARCHITECTURES
#define CGM_FAST_CUDA_ARCHITECTURES ""
#endif

namespace py = pybind11;
namespace cf = cgm_fast;

namespace {

using namespace cgm_fast::bindings;

// A call runs without the GIL, and ends early where a signal's handler raises: on Ctrl-C, most
// often.
void raise_for_signals() {
  const py::gil_scoped_acquire gil;
  if (PyErr_CheckSignals() != 0) throw py::error_already_set();
}

struct Interruptible {
  cf::Polled polled{&raise_for_signals};
};

struct OnCpu {
  using Release = py::call_guard<py::gil_scoped_release, Interruptible>;
  using Mmd = int;
  using PrototypeMargin = int;
  using CgmLoss = int;
  using KernelProduct = int;
  static constexpr const char* suffix = "";

  template <typename T>
  static void mmd_fwd(const cf::MmdProblem<T>& in, const cf::MmdValue<T>& value, int threads) {
    cf::mmd_fwd_cpu(in, value, threads);
  }
  template <typename T>
  static void mmd_hvp(const cf::MmdProblem<T>& in, const cf::MmdTangent<T>& tangent,
                      const cf::MmdProduct<T>& product, int threads) {
    cf::mmd_hvp_cpu(in, tangent, product, threads);
  }
  template <typename T>
  static void prototype_margin_fwd(const cf::PrototypeMarginInput<T>& in,
                                   const cf::PrototypeMarginGradient<T>& value, int threads) {
    cf::prototype_margin_fwd_cpu(in, value, threads);
  }
  template <typename T>
  static void prototype_margin_hvp(const cf::PrototypeMarginInput<T>& in,
                                   const cf::PrototypeMarginTangent<T>& tangent, int threads) {
    cf::prototype_margin_hvp_cpu(in, tangent, threads);
  }
  template <typename T>
  static void cgm_loss_fwd(const cf::CgmLossInput<T>& in, const cf::CgmLossGradient<T>& value,
                           int threads) {
    cf::cgm_loss_fwd_cpu(in, value, threads);
  }
  template <typename T>
  static void kernel_product_fwd(const cf::KernelProductProblem<T>& in,
                                 const cf::KernelProductValue<T>& value, int threads) {
    cf::kernel_product_fwd_cpu(in, value, threads);
  }
};

py::dict build_info() {
  py::dict info;
#if defined(__clang__)
  info["compiler"] = "clang " __clang_version__;
#elif defined(__GNUC__)
  info["compiler"] = "gcc " __VERSION__;
#elif defined(_MSC_VER)
  info["compiler"] = "msvc " + std::to_string(_MSC_VER);
#else
  info["compiler"] = "unknown";
#endif
  info["flags"] = CGM_FAST_FLAGS;
  info["instruction_set"] = cf::isa_name(cf::isa());
  info["cuda_compiler"] = CGM_FAST_CUDA_COMPILER;
  info["cuda_architectures"] = CGM_FAST_CUDA_ARCHITECTURES;  // empty: no CUDA kernels
  info["cuda_left_out"] = CGM_FAST_CUDA_PROBLEM;             // why, or empty
  return info;
}

// Multiply-adds and exponentials per second that this processor can do at most.
std::tuple<double, double> probe_float32(int threads) {
  const cf::Limits limits = cf::measure_limits(threads);
  return {limits.multiply_adds, limits.exponentials};
}

}  // namespace

PYBIND11_MODULE(_native, module) {
  module.doc() = "Compiled kernels of cgm_fast. Called through cgm_fast.ops, not directly.";
  module.def("build_info", &build_info);
  module.def("probe_float32", &probe_float32, py::call_guard<py::gil_scoped_release>());

  bind_plans(module);
  bind_ops<OnCpu>(module);

#ifdef CGM_FAST_CUDA
  cf::bindings::bind_cuda(module);
#endif
}
