// The GPU's kernels, by addresses on the device. Also compiled with their emulation, for tests.
#include "bindings_ops.h"

namespace py = pybind11;

namespace cgm_fast::bindings {
namespace {

// What launches are given besides a plan and the tensors, as in mmd.h and beside it: addresses, of
// workspaces and of what a plan has on the host.
struct PyMmdDevice {
  Address begins, relations, variances, kernel_weights;
  bool weighted_kernel;
  int rows;
  unsigned blocks;
  int workers, tiles;
  bool tf32;
  Address slots, partials, counters, stream;
};

struct PyPrototypeMarginDevice {
  unsigned blocks;
  Address partials, partial_g, own, counter, stream;
};

struct PyCgmLossDevice {
  Address variances, kernel_weights;
  int rows;
  Address partials, prior, counter, stream;
};

struct OnCuda {
  using Release = py::call_guard<py::gil_scoped_release>;
  using Mmd = PyMmdDevice;
  using PrototypeMargin = PyPrototypeMarginDevice;
  using CgmLoss = PyCgmLossDevice;
  static constexpr const char* suffix = "_cuda";
  static constexpr const char* besides = "device";

  // The problem with all of it on the device.
  template <typename T>
  static MmdProblem<T> there(MmdProblem<T> in, const Mmd& given) {
    in.begins = at<const int64_t>(given.begins);
    if (!in.relation_per_item) in.relation = at<const double>(given.relations);
    if (!in.variance) in.variance = at<const T>(given.variances);
    in.variances = in.kernel_weights = nullptr;
    return in;
  }

  template <typename T>
  static MmdDevice<T> device(const MmdProblem<T>& in, const Mmd& given) {
    return {at<const T>(given.kernel_weights),
            given.weighted_kernel,
            in.variance ? in.scales : 0,
            given.rows,
            given.blocks,
            given.workers,
            given.tiles,
            given.tf32,
            at<double>(given.slots),
            at<double>(given.partials),
            at<unsigned>(given.counters),
            at<void>(given.stream)};
  }

  template <typename T>
  static void mmd_fwd(const MmdProblem<T>& in, const MmdValue<T>& value, const Mmd& given) {
    mmd_fwd_cuda(there(in, given), value, device(in, given));
  }

  template <typename T>
  static void mmd_hvp(const MmdProblem<T>& in, const MmdTangent<T>& tangent,
                      const MmdProduct<T>& product, const Mmd& given) {
    mmd_hvp_cuda(there(in, given), tangent, product, device(in, given));
  }

  template <typename T>
  static void prototype_margin_fwd(const PrototypeMarginInput<T>& in,
                                   const PrototypeMarginGradient<T>& value,
                                   const PrototypeMargin& given) {
    prototype_margin_fwd_cuda(
        in, value,
        PrototypeMarginDevice<T>{given.blocks, at<double>(given.partials), at<T>(given.partial_g),
                                 at<std::int32_t>(given.own), at<unsigned>(given.counter),
                                 at<void>(given.stream)});
  }

  template <typename T>
  static void prototype_margin_hvp(const PrototypeMarginInput<T>& in,
                                   const PrototypeMarginTangent<T>& tangent,
                                   const PrototypeMargin& given) {
    prototype_margin_hvp_cuda(in, tangent, at<void>(given.stream));
  }

  template <typename T>
  static void cgm_loss_fwd(const CgmLossInput<T>& in, const CgmLossGradient<T>& value,
                           const CgmLoss& given) {
    cgm_loss_fwd_cuda(in, value,
                      CgmLossDevice<T>{at<const T>(given.variances),
                                       at<const T>(given.kernel_weights), given.rows,
                                       at<double>(given.partials), at<T>(given.prior),
                                       at<unsigned>(given.counter), at<void>(given.stream)});
  }
};

void bind_devices(py::module_& module) {
  using py::arg;
  const py::module_local here;
  py::class_<PyMmdDevice>(module, "MmdDevice", here)
      .def(py::init([](Address begins, Address relations, Address variances, Address kernel_weights,
                       bool weighted_kernel, int rows, unsigned blocks, int workers, int tiles,
                       bool tf32, Address slots, Address partials, Address counters,
                       Address stream) {
             return PyMmdDevice{begins, relations, variances, kernel_weights, weighted_kernel,
                                rows,   blocks,    workers,   tiles,          tf32,
                                slots,  partials,  counters,  stream};
           }),
           py::kw_only(), arg("begins"), arg("relations"), arg("variances"), arg("kernel_weights"),
           arg("weighted_kernel"), arg("rows"), arg("blocks"), arg("workers"), arg("tiles"),
           arg("tf32"), arg("slots"), arg("partials"), arg("counters"), arg("stream"));
  py::class_<PyPrototypeMarginDevice>(module, "PrototypeMarginDevice", here)
      .def(py::init([](Address stream, unsigned blocks, Address partials, Address partial_g,
                       Address own, Address counter) {
             return PyPrototypeMarginDevice{blocks, partials, partial_g, own, counter, stream};
           }),
           py::kw_only(), arg("stream"), arg("blocks") = 0, arg("partials") = 0,
           arg("partial_g") = 0, arg("own") = 0, arg("counter") = 0);
  py::class_<PyCgmLossDevice>(module, "CgmLossDevice", here)
      .def(py::init([](Address variances, Address kernel_weights, int rows, Address partials,
                       Address prior, Address counter, Address stream) {
             return PyCgmLossDevice{variances, kernel_weights, rows,  partials,
                                    prior,     counter,        stream};
           }),
           py::kw_only(), arg("variances"), arg("kernel_weights"), arg("rows"), arg("partials"),
           arg("prior"), arg("counter"), arg("stream"));
}

}  // namespace

void bind_cuda(py::module_& module) {
  module.def("cuda_problem", &cgm_fast::cuda_problem);
  bind_devices(module);
  bind_ops<OnCuda>(module);
}

}  // namespace cgm_fast::bindings
