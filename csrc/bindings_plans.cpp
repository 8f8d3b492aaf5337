// Plans as Python sees them: made with names alone, which are those of the ops' problems.
#include "bindings.h"

namespace py = pybind11;

namespace cgm_fast::bindings {
namespace {

// Strides of item, row and feature, in elements.
using Strides = std::tuple<int64_t, int64_t, int64_t>;

Samples without_address(int dtype, const Strides& strides) {
  return {nullptr, static_cast<Dtype>(dtype), std::get<0>(strides), std::get<1>(strides),
          std::get<2>(strides)};
}

MmdPlan mmd_plan(int64_t batch, int64_t x_rows, int64_t d, int dtype, const Strides& x_strides,
                 const Strides& y_strides, bool float64, const std::vector<int64_t>& sizes,
                 const std::vector<double>& relations, const std::vector<double>& variances,
                 const std::vector<double>& kernel_weights, const std::string& kernel,
                 int64_t row_begin, int64_t row_end) {
  std::vector<int64_t> begins = {0};
  for (int64_t size : sizes) begins.push_back(begins.back() + size);
  return {batch,
          x_rows,
          d,
          without_address(dtype, x_strides),
          without_address(dtype, y_strides),
          float64,
          begins,
          relations,
          variances,
          kernel_weights,
          kernel_of(kernel),
          row_begin,
          row_end};
}

PrototypeMarginPlan prototype_margin_plan(int64_t rows, int64_t k, int64_t d, int r_dtype,
                                          int g_dtype, const Strides& r_strides,
                                          const Strides& g_strides, bool float64, double margin,
                                          double negative_scale, double scale) {
  return {rows,
          k,
          d,
          without_address(r_dtype, r_strides),
          without_address(g_dtype, g_strides),
          float64,
          margin,
          negative_scale,
          scale};
}

CgmLossPlan cgm_loss_plan(const PrototypeMarginPlan& of_margin, int noise_dtype,
                          const Strides& noise_strides, double sigma, double prior_sigma,
                          double mmd_weight, double margin_weight,
                          const std::vector<double>& variances,
                          const std::vector<double>& kernel_weights, const std::string& kernel,
                          bool detach_prior) {
  return {of_margin,
          without_address(noise_dtype, noise_strides),
          sigma,
          prior_sigma,
          mmd_weight,
          margin_weight,
          variances,
          kernel_weights,
          kernel_of(kernel),
          detach_prior};
}

KernelProductPlan kernel_product_plan(int64_t batch, int64_t rows, int64_t columns, int64_t d,
                                      int64_t values, int dtype, const Strides& x_strides,
                                      const Strides& y_strides, bool float64,
                                      const std::vector<double>& variances,
                                      const std::vector<double>& kernel_weights,
                                      const std::string& kernel) {
  return {batch,
          rows,
          columns,
          d,
          values,
          without_address(dtype, x_strides),
          without_address(dtype, y_strides),
          float64,
          variances,
          kernel_weights,
          kernel_of(kernel)};
}

}  // namespace

py::dict fields_by_op(const std::vector<Fields>& records) {
  py::dict out;
  for (const Fields& of : records) {
    if (!out.contains(of.op)) out[of.op] = py::dict();
    py::list names;
    for (const char* name : of.names) names.append(name);
    out[of.op][of.record] = names;
  }
  return out;
}

void bind_plans(py::module_& module) {
  using py::arg;
  const py::module_local here;  // tests have a second module of kernels, with plans of its own
  py::class_<MmdPlan>(module, "MmdPlan", here)
      .def(py::init(&mmd_plan), py::kw_only(), arg("batch"), arg("x_rows"), arg("d"), arg("dtype"),
           arg("x_strides"), arg("y_strides"), arg("float64"), arg("sizes"), arg("relations"),
           arg("variances"), arg("kernel_weights"), arg("kernel"), arg("row_begin"),
           arg("row_end"));
  py::class_<PrototypeMarginPlan>(module, "PrototypeMarginPlan", here)
      .def(py::init(&prototype_margin_plan), py::kw_only(), arg("rows"), arg("k"), arg("d"),
           arg("r_dtype"), arg("g_dtype"), arg("r_strides"), arg("g_strides"), arg("float64"),
           arg("margin"), arg("negative_scale"), arg("scale"));
  py::class_<CgmLossPlan>(module, "CgmLossPlan", here)
      .def(py::init(&cgm_loss_plan), py::kw_only(), arg("of_margin"), arg("noise_dtype"),
           arg("noise_strides"), arg("sigma"), arg("prior_sigma"), arg("mmd_weight"),
           arg("margin_weight"), arg("variances"), arg("kernel_weights"), arg("kernel"),
           arg("detach_prior"));
  py::class_<KernelProductPlan>(module, "KernelProductPlan", here)
      .def(py::init(&kernel_product_plan), py::kw_only(), arg("batch"), arg("rows"), arg("columns"),
           arg("d"), arg("values"), arg("dtype"), arg("x_strides"), arg("y_strides"),
           arg("float64"), arg("variances"), arg("kernel_weights"), arg("kernel"));
  module.attr("fields") = fields_by_op(fields());
  py::dict kernels;  // by name, whether they vanish and have a kink
  for (const KernelName& known : kKernelNames)
    kernels[known.name] = py::make_tuple(vanishes(known.kernel), has_kink(known.kernel));
  module.attr("kernels") = kernels;
}

}  // namespace cgm_fast::bindings
