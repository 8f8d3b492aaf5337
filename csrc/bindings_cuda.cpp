// The GPU's kernels, by addresses on the device. Also compiled with their emulation, for tests.
#include "bindings.h"

#include <type_traits>

#include "cgm_step.h"
#include "mmd.h"
#include "prototype_margin.h"

namespace py = pybind11;
namespace cf = cgm_fast;

namespace {

using namespace cgm_fast::bindings;

// (kernel weights on the device, from one item's variances to the next, rows of a block, partials,
// counters, stream)
using PyMmdDevice = std::tuple<Address, int64_t, int, Address, Address, Address>;

template <typename T>
cf::MmdDevice<T> mmd_device(const PyMmdDevice& given, const cf::MmdInput<T>& in) {
  cf::MmdDevice<T> device;
  device.kernel_weights = at<const T>(std::get<0>(given));
  device.weighted_kernel = in.kernel_weights[0] != 1;
  device.variance_item = std::get<1>(given);
  device.rows = std::get<2>(given);
  device.partials = at<double>(std::get<3>(given));
  device.counters = at<unsigned>(std::get<4>(given));
  device.stream = at<void>(std::get<5>(given));
  return device;
}

template <typename T, typename... Input>
void mmd_fwd(int64_t row_begin, int64_t row_end, Address loss, Address grad_z, Address grad_a,
             Address grad_p, const PyMmdDevice& device, const Input&... input) {
  const cf::MmdInput<T> in = mmd_input<T>(input...);
  cf::mmd_fwd_cuda<T>(in,
                      {row_begin, row_end, at<T>(loss), at<T>(grad_z), at<T>(grad_a),
                       at<T>(grad_p)},
                      mmd_device(device, in));
}

template <typename T, typename... Input>
void mmd_bwd(int64_t row_begin, int64_t row_end, Address z, Address a, Address p, Address out_z,
             Address out_a, Address out_p, const PyMmdDevice& device, const Input&... input) {
  const cf::MmdInput<T> in = mmd_input<T>(input...);
  cf::mmd_bwd_cuda<T>(in,
                      {row_begin, row_end, at<const T>(z), at<const T>(a), at<const T>(p),
                       at<T>(out_z), at<T>(out_a), at<T>(out_p)},
                      mmd_device(device, in));
}

template <typename T, typename... Input>
void bind_mmd(py::module_& module, const char* fwd, const char* bwd,
              cf::MmdInput<T> (*)(Input...)) {
  using Release = py::call_guard<py::gil_scoped_release>;
  module.def(fwd, &mmd_fwd<T, std::decay_t<Input>...>, Release());
  module.def(bwd, &mmd_bwd<T, std::decay_t<Input>...>, Release());
}

}  // namespace

void cgm_fast::bindings::bind_cuda(py::module_& module) {
  bind_mmd(module, "mmd_fwd_cuda_float32", "mmd_bwd_cuda_float32", &mmd_input<float>);
  bind_mmd(module, "mmd_fwd_cuda_float64", "mmd_bwd_cuda_float64", &mmd_input<double>);
}
