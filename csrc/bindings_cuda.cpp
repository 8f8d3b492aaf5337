// The GPU's kernels, by addresses on the device. Also compiled with their emulation, for tests.
#include <type_traits>

#include "bindings.h"
#include "cgm_loss.h"
#include "mmd.h"
#include "prototype_margin.h"

namespace py = pybind11;
namespace cf = cgm_fast;

namespace {

using namespace cgm_fast::bindings;

// (kernel weights on the device, from one item's variances to the next, rows of a block, workers,
// whether tf32 is allowed, slots, partials, counters, stream)
using PyMmdDevice =
    std::tuple<Address, int64_t, int, int, bool, Address, Address, Address, Address>;

template <typename T>
cf::MmdDevice<T> mmd_device(const PyMmdDevice& given, const cf::MmdInput<T>& in) {
  cf::MmdDevice<T> device;
  device.kernel_weights = at<const T>(std::get<0>(given));
  device.weighted_kernel = in.kernel_weights[0] != 1;
  device.variance_item = std::get<1>(given);
  device.rows = std::get<2>(given);
  device.workers = std::get<3>(given);
  device.tf32 = std::get<4>(given);
  device.slots = at<double>(std::get<5>(given));
  device.partials = at<double>(std::get<6>(given));
  device.counters = at<unsigned>(std::get<7>(given));
  device.stream = at<void>(std::get<8>(given));
  return device;
}

template <typename T, typename... Input>
void mmd_fwd(int64_t row_begin, int64_t row_end, Address loss, Address grad_z, Address grad_a,
             Address grad_p, const PyMmdDevice& device, const Input&... input) {
  const cf::MmdInput<T> in = mmd_input<T>(input...);
  cf::mmd_fwd_cuda<T>(
      in, {row_begin, row_end, at<T>(loss), at<T>(grad_z), at<T>(grad_a), at<T>(grad_p)},
      mmd_device(device, in));
}

template <typename T, typename... Input>
void mmd_hvp(int64_t row_begin, int64_t row_end, Address z, Address a, Address p, Address out_z,
             Address out_a, Address out_p, const PyMmdDevice& device, const Input&... input) {
  const cf::MmdInput<T> in = mmd_input<T>(input...);
  cf::mmd_hvp_cuda<T>(in,
                      {row_begin, row_end, at<const T>(z), at<const T>(a), at<const T>(p),
                       at<T>(out_z), at<T>(out_a), at<T>(out_p)},
                      mmd_device(device, in));
}

template <typename T, typename... Input>
void bind_mmd(py::module_& module, const char* fwd, const char* hvp,
              cf::MmdInput<T> (*)(Input...)) {
  using Release = py::call_guard<py::gil_scoped_release>;
  module.def(fwd, &mmd_fwd<T, std::decay_t<Input>...>, Release());
  module.def(hvp, &mmd_hvp<T, std::decay_t<Input>...>, Release());
}

template <typename T>
void prototype_margin_fwd(int64_t rows, int64_t k, int64_t d, const PySamples& r,
                          const PySamples& g, Address labels, double margin, double negative_scale,
                          double scale, Address loss, Address assignment, Address grad_r,
                          Address grad_g, unsigned blocks, Address partials, Address partial_g,
                          Address own, Address counter, Address stream) {
  cf::prototype_margin_fwd_cuda<T>(
      {rows, k, d, samples(r), samples(g), at<const int64_t>(labels), margin, negative_scale,
       scale},
      {at<T>(loss), at<int64_t>(assignment), at<T>(grad_r), at<T>(grad_g)},
      {blocks, at<double>(partials), at<T>(partial_g), at<std::int32_t>(own), at<unsigned>(counter),
       at<void>(stream)});
}

template <typename T>
void prototype_margin_hvp(int64_t rows, int64_t k, int64_t d, const PySamples& r,
                          const PySamples& g, Address assignment, double margin,
                          double negative_scale, double scale, Address tangent_r, Address tangent_g,
                          Address out_r, Address out_g, Address stream) {
  cf::prototype_margin_hvp_cuda<T>(
      {rows, k, d, samples(r), samples(g), nullptr, margin, negative_scale, scale},
      {at<const int64_t>(assignment), at<const T>(tangent_r), at<const T>(tangent_g), at<T>(out_r),
       at<T>(out_g)},
      at<void>(stream));
}

template <typename T>
void cgm_loss_fwd(int64_t rows, int64_t k, int64_t d, const PySamples& r, const PySamples& g,
                  Address labels, const PySamples& noise, double sigma, double prior_sigma,
                  double mmd_weight, double margin_weight, double margin, double negative_scale,
                  int64_t scales, Address variances, Address kernel_weights, bool detach_prior,
                  Address loss, Address terms, Address assignment, Address z, Address grad_r,
                  Address grad_g, int rows_of_block, Address partials, Address prior,
                  Address counter, Address stream) {
  const cf::PrototypeMarginInput<T> of_margin{rows,
                                              k,
                                              d,
                                              samples(r),
                                              samples(g),
                                              at<const int64_t>(labels),
                                              margin,
                                              negative_scale,
                                              1.0 / static_cast<double>(rows)};
  cf::cgm_loss_fwd_cuda<T>(
      {of_margin, samples(noise), sigma, prior_sigma, mmd_weight, margin_weight, scales, nullptr,
       nullptr, detach_prior},
      {at<T>(loss), at<T>(terms), at<int64_t>(assignment), at<T>(z), at<T>(grad_r), at<T>(grad_g)},
      {at<const T>(variances), at<const T>(kernel_weights), rows_of_block, at<double>(partials),
       at<T>(prior), at<unsigned>(counter), at<void>(stream)});
}

}  // namespace

void cgm_fast::bindings::bind_cuda(py::module_& module) {
  module.def("cuda_problem", &cgm_fast::cuda_problem);
  bind_mmd(module, "mmd_fwd_cuda_float32", "mmd_hvp_cuda_float32", &mmd_input<float>);
  bind_mmd(module, "mmd_fwd_cuda_float64", "mmd_hvp_cuda_float64", &mmd_input<double>);

  using Release = py::call_guard<py::gil_scoped_release>;
  module.def("prototype_margin_fwd_cuda_float32", &prototype_margin_fwd<float>, Release());
  module.def("prototype_margin_fwd_cuda_float64", &prototype_margin_fwd<double>, Release());
  module.def("prototype_margin_hvp_cuda_float32", &prototype_margin_hvp<float>, Release());
  module.def("prototype_margin_hvp_cuda_float64", &prototype_margin_hvp<double>, Release());
  module.def("cgm_loss_fwd_cuda_float32", &cgm_loss_fwd<float>, Release());
  module.def("cgm_loss_fwd_cuda_float64", &cgm_loss_fwd<double>, Release());
}
