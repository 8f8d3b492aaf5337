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

// Calls body(T()) for the type that is computed in.
template <typename Body>
void in_dtype(bool float64, const Body& body) {
  float64 ? body(double()) : body(float());
}

void mmd_fwd(const MmdPlan& plan, Address x, Address y, Address weights, Address relation,
             Address variance, Address value_loss, Address value_z, Address value_weights,
             Address value_relation, Address value_variance, int threads) {
  in_dtype(plan.float64, [&](auto number) {
    using T = decltype(number);
    cf::mmd_fwd_cpu<T>(plan.problem<T>(x, y, weights, relation, variance),
                       {plan.row_begin, plan.row_end, at<T>(value_loss), at<double>(value_relation),
                        at<T>(value_z), at<T>(value_weights), at<T>(value_variance)},
                       threads);
  });
}

void mmd_hvp(const MmdPlan& plan, Address x, Address y, Address weights, Address relation,
             Address variance, Address tangent_z, Address tangent_weights, Address tangent_relation,
             Address tangent_variance, Address product_z, Address product_weights,
             Address product_relation, Address product_variance, int threads) {
  in_dtype(plan.float64, [&](auto number) {
    using T = decltype(number);
    cf::mmd_hvp_cpu<T>(plan.problem<T>(x, y, weights, relation, variance),
                       {at<const T>(tangent_z), at<const T>(tangent_weights),
                        at<const double>(tangent_relation), at<const T>(tangent_variance)},
                       {plan.row_begin, plan.row_end, at<T>(product_z), at<T>(product_weights),
                        at<double>(product_relation), at<T>(product_variance)},
                       threads);
  });
}

void prototype_margin_fwd(const PrototypeMarginPlan& plan, const PySamples& r, const PySamples& g,
                          Address labels, Address value_loss, Address value_assignment,
                          Address value_r, Address value_g, int threads) {
  in_dtype(plan.float64, [&](auto number) {
    using T = decltype(number);
    cf::prototype_margin_fwd_cpu<T>(
        plan.input<T>(r, g, labels),
        {at<T>(value_loss), at<int64_t>(value_assignment), at<T>(value_r), at<T>(value_g)},
        threads);
  });
}

void prototype_margin_hvp(const PrototypeMarginPlan& plan, const PySamples& r, const PySamples& g,
                          Address labels, Address tangent_r, Address tangent_g, Address product_r,
                          Address product_g, int threads) {
  in_dtype(plan.float64, [&](auto number) {
    using T = decltype(number);
    cf::prototype_margin_hvp_cpu<T>(plan.input<T>(r, g, 0),
                                    {at<const int64_t>(labels), at<const T>(tangent_r),
                                     at<const T>(tangent_g), at<T>(product_r), at<T>(product_g)},
                                    threads);
  });
}

void cgm_loss_fwd(const CgmLossPlan& plan, const PySamples& r, const PySamples& g, Address labels,
                  const PySamples& noise, Address value_loss, Address value_terms,
                  Address value_assignment, Address value_z, Address value_r, Address value_g,
                  int threads) {
  in_dtype(plan.of_margin.float64, [&](auto number) {
    using T = decltype(number);
    cf::cgm_loss_fwd_cpu<T>(plan.input<T>(r, g, labels, noise),
                            {at<T>(value_loss), at<T>(value_terms), at<int64_t>(value_assignment),
                             at<T>(value_z), at<T>(value_r), at<T>(value_g)},
                            threads);
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

  using py::arg;
  bind_plans(module);
  module.def("mmd_fwd", &mmd_fwd, Release(), arg("plan"), py::kw_only(), arg("x"), arg("y"),
             arg("weights"), arg("relation"), arg("variance"), arg("value_loss"), arg("value_z"),
             arg("value_weights"), arg("value_relation"), arg("value_variance"), arg("threads"));
  module.def("mmd_hvp", &mmd_hvp, Release(), arg("plan"), py::kw_only(), arg("x"), arg("y"),
             arg("weights"), arg("relation"), arg("variance"), arg("tangent_z"),
             arg("tangent_weights"), arg("tangent_relation"), arg("tangent_variance"),
             arg("product_z"), arg("product_weights"), arg("product_relation"),
             arg("product_variance"), arg("threads"));
  module.def("prototype_margin_fwd", &prototype_margin_fwd, Release(), arg("plan"), py::kw_only(),
             arg("r"), arg("g"), arg("labels"), arg("value_loss"), arg("value_assignment"),
             arg("value_r"), arg("value_g"), arg("threads"));
  module.def("prototype_margin_hvp", &prototype_margin_hvp, Release(), arg("plan"), py::kw_only(),
             arg("r"), arg("g"), arg("labels"), arg("tangent_r"), arg("tangent_g"),
             arg("product_r"), arg("product_g"), arg("threads"));
  module.def("cgm_loss_fwd", &cgm_loss_fwd, Release(), arg("plan"), py::kw_only(), arg("r"),
             arg("g"), arg("labels"), arg("noise"), arg("value_loss"), arg("value_terms"),
             arg("value_assignment"), arg("value_z"), arg("value_r"), arg("value_g"),
             arg("threads"));

#ifdef CGM_FAST_CUDA
  cf::bindings::bind_cuda(module);
#endif
}
