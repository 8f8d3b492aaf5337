// The GPU's kernels, by addresses on the device. Also compiled with their emulation, for tests.
#include "bindings_ops.h"

namespace py = pybind11;

namespace cgm_fast::bindings {
namespace {

// What each op's launches are given: numbers and addresses, in the order of `Launch` in the op's
// cuda.py (a test compares). What they are is said in mmd.h and beside it; begins, relations,
// variances and kernel_weights are a plan's lists on the device.
const std::vector<Fields>& launches() {
  static const std::vector<Fields> kLaunches = {
      {"mmd",
       "Launch",
       {"begins", "relations", "variances", "kernel_weights", "weighted_kernel", "rows", "blocks",
        "workers", "tiles", "tf32", "slots", "partials", "counters", "stream"}},
      {"prototype_margin",
       "Launch",
       {"splits", "row_splits", "sample_splits", "shares", "partials", "partial_g", "sums", "own",
        "counters", "stream"}},
      {"cgm_loss",
       "Launch",
       {"variances", "kernel_weights", "rows", "partials", "prior", "counter", "stream"}},
      {"kernel_product",
       "Launch",
       {"variances", "kernel_weights", "splits", "blocks", "sums", "partials", "parts", "counters",
        "stream"}},
  };
  return kLaunches;
}

struct OnCuda {
  using Release = py::call_guard<py::gil_scoped_release>;
  using Mmd = Addresses<14>;
  using PrototypeMargin = Addresses<10>;
  using CgmLoss = Addresses<7>;
  using KernelProduct = Addresses<9>;
  static constexpr const char* suffix = "_cuda";

  // Puts on the device what a problem has on the host.
  template <typename T>
  static MmdDevice<T> device(MmdProblem<T>& in, const Mmd& given) {
    const auto [begins, relations, variances, kernel_weights, weighted_kernel, rows, blocks,
                workers, tiles, tf32, slots, partials, counters, stream] = given.of;
    const int64_t variance_item = in.variance ? in.scales : 0;
    in.begins = at<const int64_t>(begins);
    if (!in.relation_per_item) in.relation = at<const double>(relations);
    if (!in.variance) in.variance = at<const T>(variances);
    in.variances = in.kernel_weights = nullptr;
    return {at<const T>(kernel_weights),
            weighted_kernel != 0,
            variance_item,
            static_cast<int>(rows),
            static_cast<unsigned>(blocks),
            static_cast<int>(workers),
            static_cast<int>(tiles),
            tf32 != 0,
            at<double>(slots),
            at<double>(partials),
            at<unsigned>(counters),
            at<void>(stream)};
  }

  template <typename T>
  static void mmd_fwd(MmdProblem<T> in, const MmdValue<T>& value, const Mmd& given) {
    const MmdDevice<T> on = device(in, given);
    mmd_fwd_cuda(in, value, on);
  }

  template <typename T>
  static void mmd_hvp(MmdProblem<T> in, const MmdTangent<T>& tangent, const MmdProduct<T>& product,
                      const Mmd& given) {
    const MmdDevice<T> on = device(in, given);
    mmd_hvp_cuda(in, tangent, product, on);
  }

  template <typename T>
  static PrototypeMarginDevice<T> device(const PrototypeMargin& given) {
    const auto [splits, row_splits, sample_splits, shares, partials, partial_g, sums, own, counters,
                stream] = given.of;
    return {static_cast<int>(splits),
            static_cast<int>(row_splits),
            static_cast<int>(sample_splits),
            at<PrototypeShare>(shares),
            at<double>(partials),
            at<T>(partial_g),
            at<T>(sums),
            at<std::int32_t>(own),
            at<unsigned>(counters),
            at<void>(stream)};
  }

  template <typename T>
  static void prototype_margin_fwd(const PrototypeMarginInput<T>& in,
                                   const PrototypeMarginGradient<T>& value,
                                   const PrototypeMargin& given) {
    prototype_margin_fwd_cuda(in, value, device<T>(given));
  }

  template <typename T>
  static void prototype_margin_hvp(const PrototypeMarginInput<T>& in,
                                   const PrototypeMarginTangent<T>& tangent,
                                   const PrototypeMargin& given) {
    prototype_margin_hvp_cuda(in, tangent, device<T>(given));
  }

  template <typename T>
  static void cgm_loss_fwd(const CgmLossInput<T>& in, const CgmLossGradient<T>& value,
                           const CgmLoss& given) {
    const auto [variances, kernel_weights, rows, partials, prior, counter, stream] = given.of;
    cgm_loss_fwd_cuda(in, value,
                      CgmLossDevice<T>{at<const T>(variances), at<const T>(kernel_weights),
                                       static_cast<int>(rows), at<double>(partials), at<T>(prior),
                                       at<unsigned>(counter), at<void>(stream)});
  }

  template <typename T>
  static void kernel_product_fwd(KernelProductProblem<T> in, const KernelProductValue<T>& value,
                                 const KernelProduct& given) {
    const auto [variances, kernel_weights, splits, blocks, sums, partials, parts, counters,
                stream] = given.of;
    const int64_t variance_item = in.variance ? in.scales : 0;
    if (!in.variance) in.variance = at<const T>(variances);
    in.variances = in.kernel_weights = nullptr;
    kernel_product_fwd_cuda(
        in, value,
        KernelProductDevice<T>{at<const T>(kernel_weights), variance_item, static_cast<int>(splits),
                               static_cast<unsigned>(blocks), at<T>(sums), at<double>(partials),
                               at<double>(parts), at<unsigned>(counters), at<void>(stream)});
  }
};

}  // namespace

void bind_cuda(py::module_& module) {
  module.def("cuda_problem", &cgm_fast::cuda_problem);
  bind_ops<OnCuda>(module);
  module.attr("launches") = fields_by_op(launches());
}

}  // namespace cgm_fast::bindings
