// The module as Python sees it, and the CPU's kernels in it; the GPU's are in bindings_cuda.cpp.
#include "bindings.h"

#include <type_traits>

#include "cgm_loss.h"
#include "cpu/isa.h"
#include "cpu/probe.h"
#include "cpu/threads.h"
#include "mmd.h"
#include "prototype_margin.h"

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

template <typename T, typename... Input>
void mmd_fwd(int64_t row_begin, int64_t row_end, Address loss, Address grad_z, Address grad_a,
             Address grad_p, int threads, const Input&... input) {
  const cf::MmdGradient<T> out{row_begin,     row_end,       at<T>(loss),
                               at<T>(grad_z), at<T>(grad_a), at<T>(grad_p)};
  cf::mmd_fwd_cpu<T>(mmd_input<T>(input...), out, threads);
}

template <typename T, typename... Input>
void mmd_hvp(int64_t row_begin, int64_t row_end, Address z, Address a, Address p, Address out_z,
             Address out_a, Address out_p, int threads, const Input&... input) {
  const cf::MmdTangent<T> tangent{row_begin,      row_end,      at<const T>(z), at<const T>(a),
                                  at<const T>(p), at<T>(out_z), at<T>(out_a),   at<T>(out_p)};
  cf::mmd_hvp_cpu<T>(mmd_input<T>(input...), tangent, threads);
}

template <typename T>
void prototype_margin_fwd(int64_t rows, int64_t k, int64_t d, const PySamples& r,
                          const PySamples& g, Address labels, double margin, double negative_scale,
                          double scale, Address loss, Address assignment, Address grad_r,
                          Address grad_g, int threads) {
  cf::prototype_margin_fwd_cpu<T>(
      {rows, k, d, samples(r), samples(g), at<const int64_t>(labels), margin, negative_scale,
       scale},
      {at<T>(loss), at<int64_t>(assignment), at<T>(grad_r), at<T>(grad_g)}, threads);
}

template <typename T>
void prototype_margin_hvp(int64_t rows, int64_t k, int64_t d, const PySamples& r,
                          const PySamples& g, Address assignment, double margin,
                          double negative_scale, double scale, Address tangent_r, Address tangent_g,
                          Address out_r, Address out_g, int threads) {
  cf::prototype_margin_hvp_cpu<T>(
      {rows, k, d, samples(r), samples(g), nullptr, margin, negative_scale, scale},
      {at<const int64_t>(assignment), at<const T>(tangent_r), at<const T>(tangent_g), at<T>(out_r),
       at<T>(out_g)},
      threads);
}

template <typename T>
void cgm_loss_fwd(int64_t rows, int64_t k, int64_t d, const PySamples& r, const PySamples& g,
                  Address labels, const PySamples& noise, double sigma, double prior_sigma,
                  double mmd_weight, double margin_weight, double margin, double negative_scale,
                  const std::vector<double>& variances, const std::vector<double>& kernel_weights,
                  bool detach_prior, Address loss, Address terms, Address assignment, Address z,
                  Address grad_r, Address grad_g, int threads) {
  const cf::PrototypeMarginInput<T> of_margin{rows,
                                              k,
                                              d,
                                              samples(r),
                                              samples(g),
                                              at<const int64_t>(labels),
                                              margin,
                                              negative_scale,
                                              1.0 / double(rows)};
  cf::cgm_loss_fwd_cpu<T>(
      {of_margin, samples(noise), sigma, prior_sigma, mmd_weight, margin_weight,
       static_cast<int64_t>(variances.size()), variances.data(), kernel_weights.data(),
       detach_prior},
      {at<T>(loss), at<T>(terms), at<int64_t>(assignment), at<T>(z), at<T>(grad_r), at<T>(grad_g)},
      threads);
}

template <typename T, typename... Input>
void bind_mmd(py::module_& module, const char* fwd, const char* hvp,
              cf::MmdInput<T> (*)(Input...)) {
  module.def(fwd, &mmd_fwd<T, std::decay_t<Input>...>, Release());
  module.def(hvp, &mmd_hvp<T, std::decay_t<Input>...>, Release());
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

  bind_mmd(module, "mmd_fwd_float32", "mmd_hvp_float32", &mmd_input<float>);
  bind_mmd(module, "mmd_fwd_float64", "mmd_hvp_float64", &mmd_input<double>);

  module.def("cgm_loss_fwd_float32", &cgm_loss_fwd<float>, Release());
  module.def("cgm_loss_fwd_float64", &cgm_loss_fwd<double>, Release());
  module.def("prototype_margin_fwd_float32", &prototype_margin_fwd<float>, Release());
  module.def("prototype_margin_fwd_float64", &prototype_margin_fwd<double>, Release());
  module.def("prototype_margin_hvp_float32", &prototype_margin_hvp<float>, Release());
  module.def("prototype_margin_hvp_float64", &prototype_margin_hvp<double>, Release());

#ifdef CGM_FAST_CUDA
  cf::bindings::bind_cuda(module);
#endif
}
