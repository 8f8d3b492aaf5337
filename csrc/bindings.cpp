// The module as Python sees it, and the CPU's kernels in it; the GPU's are in bindings_cuda.cpp.
#include "bindings.h"

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

using Release = py::call_guard<py::gil_scoped_release, Interruptible>;

void mmd_fwd(const MmdPlan& plan, const Addresses<5>& problem, const Addresses<5>& value,
             int threads) {
  in_dtype(plan.float64, [&](auto number) {
    using T = decltype(number);
    cf::mmd_fwd_cpu<T>(plan.problem<T>(problem), mmd_value<T>(plan, value), threads);
  });
}

void mmd_hvp(const MmdPlan& plan, const Addresses<5>& problem, const Addresses<4>& tangent,
             const Addresses<4>& product, int threads) {
  in_dtype(plan.float64, [&](auto number) {
    using T = decltype(number);
    cf::mmd_hvp_cpu<T>(plan.problem<T>(problem), mmd_tangent<T>(tangent),
                       mmd_product<T>(plan, product), threads);
  });
}

void prototype_margin_fwd(const PrototypeMarginPlan& plan, const Addresses<3>& problem,
                          const Addresses<4>& value, int threads) {
  in_dtype(plan.float64, [&](auto number) {
    using T = decltype(number);
    const auto [r, g, labels] = problem.of;
    cf::prototype_margin_fwd_cpu<T>(plan.input<T>(r, g, labels), prototype_margin_value<T>(value),
                                    threads);
  });
}

// The labels are the assignment.
void prototype_margin_hvp(const PrototypeMarginPlan& plan, const Addresses<3>& problem,
                          const Addresses<2>& tangent, const Addresses<2>& product, int threads) {
  in_dtype(plan.float64, [&](auto number) {
    using T = decltype(number);
    const auto [r, g, labels] = problem.of;
    cf::prototype_margin_hvp_cpu<T>(
        plan.input<T>(r, g, 0),
        {at<const int64_t>(labels), at<const T>(tangent.of[0]), at<const T>(tangent.of[1]),
         at<T>(product.of[0]), at<T>(product.of[1])},
        threads);
  });
}

void cgm_loss_fwd(const CgmLossPlan& plan, const Addresses<4>& problem, const Addresses<6>& value,
                  int threads) {
  in_dtype(plan.of_margin.float64, [&](auto number) {
    using T = decltype(number);
    cf::cgm_loss_fwd_cpu<T>(plan.input<T>(problem), cgm_loss_value<T>(value), threads);
  });
}

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
  module.def("mmd_fwd", &mmd_fwd, Release());
  module.def("mmd_hvp", &mmd_hvp, Release());
  module.def("prototype_margin_fwd", &prototype_margin_fwd, Release());
  module.def("prototype_margin_hvp", &prototype_margin_hvp, Release());
  module.def("cgm_loss_fwd", &cgm_loss_fwd, Release());

#ifdef CGM_FAST_CUDA
  cf::bindings::bind_cuda(module);
#endif
}
