// The ops' functions as Python sees them, said once for all kinds of device: a plan, then addresses
// by names, which are those of the records in the ops' problem.py with the record's own before them,
// then what else that kind of device is given.
#pragma once

#include "bindings.h"

namespace cgm_fast::bindings {

// Calls body(T()) for the type that is computed in.
template <typename Body>
void in_dtype(bool float64, const Body& body) {
  float64 ? body(double()) : body(float());
}

// `On` says where: `suffix` of the functions' names; `besides`, the name of their last argument, and
// its type for each op, as Mmd; `Release`, under which they run; and the functions they call. Those
// of an op may change its problem to what the device wants.
template <typename On>
void bind_ops(pybind11::module_& module) {
  namespace py = pybind11;
  using py::arg;
  using Release = typename On::Release;
  const auto name = [](const char* op) { return std::string(op) + On::suffix; };

  module.def(
      name("mmd_fwd").c_str(),
      [](const MmdPlan& plan, Address x, Address y, Address weights, Address relation,
         Address variance, Address value_loss, Address value_z, Address value_weights, Address value_relation,
         Address value_variance, const typename On::Mmd& besides) {
        in_dtype(plan.float64, [&](auto number) {
          using T = decltype(number);
          On::mmd_fwd(plan.problem<T>(x, y, weights, relation, variance),
                      MmdValue<T>{plan.row_begin, plan.row_end, at<T>(value_loss),
                                  at<double>(value_relation), at<T>(value_z), at<T>(value_weights),
                                  at<T>(value_variance)},
                      besides);
        });
      },
      Release(), arg("plan"), py::kw_only(), arg("x"), arg("y"), arg("weights"), arg("relation"),
      arg("variance"), arg("value_loss"), arg("value_z"), arg("value_weights"),
      arg("value_relation"), arg("value_variance"), arg(On::besides));

  module.def(
      name("mmd_hvp").c_str(),
      [](const MmdPlan& plan, Address x, Address y, Address weights, Address relation,
         Address variance, Address tangent_z, Address tangent_weights, Address tangent_relation,
         Address tangent_variance, Address product_z, Address product_weights,
         Address product_relation, Address product_variance, const typename On::Mmd& besides) {
        in_dtype(plan.float64, [&](auto number) {
          using T = decltype(number);
          On::mmd_hvp(plan.problem<T>(x, y, weights, relation, variance),
                      MmdTangent<T>{at<const T>(tangent_z), at<const T>(tangent_weights),
                                    at<const double>(tangent_relation),
                                    at<const T>(tangent_variance)},
                      MmdProduct<T>{plan.row_begin, plan.row_end, at<T>(product_z),
                                    at<T>(product_weights), at<double>(product_relation),
                                    at<T>(product_variance)},
                      besides);
        });
      },
      Release(), arg("plan"), py::kw_only(), arg("x"), arg("y"), arg("weights"), arg("relation"),
      arg("variance"), arg("tangent_z"), arg("tangent_weights"), arg("tangent_relation"),
      arg("tangent_variance"), arg("product_z"), arg("product_weights"), arg("product_relation"),
      arg("product_variance"), arg(On::besides));

  module.def(
      name("prototype_margin_fwd").c_str(),
      [](const PrototypeMarginPlan& plan, const PySamples& r, const PySamples& g, Address labels,
         Address value_loss, Address value_assignment, Address value_r, Address value_g,
         const typename On::PrototypeMargin& besides) {
        in_dtype(plan.float64, [&](auto number) {
          using T = decltype(number);
          On::prototype_margin_fwd(
              plan.input<T>(r, g, labels),
              PrototypeMarginGradient<T>{at<T>(value_loss), at<int64_t>(value_assignment),
                                         at<T>(value_r), at<T>(value_g)},
              besides);
        });
      },
      Release(), arg("plan"), py::kw_only(), arg("r"), arg("g"), arg("labels"), arg("value_loss"),
      arg("value_assignment"), arg("value_r"), arg("value_g"), arg(On::besides));

  module.def(
      name("prototype_margin_hvp").c_str(),
      [](const PrototypeMarginPlan& plan, const PySamples& r, const PySamples& g, Address labels,
         Address tangent_r, Address tangent_g, Address product_r, Address product_g,
         const typename On::PrototypeMargin& besides) {
        in_dtype(plan.float64, [&](auto number) {
          using T = decltype(number);
          On::prototype_margin_hvp(
              plan.input<T>(r, g, 0),
              PrototypeMarginTangent<T>{at<const int64_t>(labels), at<const T>(tangent_r),
                                        at<const T>(tangent_g), at<T>(product_r),
                                        at<T>(product_g)},
              besides);
        });
      },
      Release(), arg("plan"), py::kw_only(), arg("r"), arg("g"), arg("labels"), arg("tangent_r"),
      arg("tangent_g"), arg("product_r"), arg("product_g"), arg(On::besides));

  module.def(
      name("cgm_loss_fwd").c_str(),
      [](const CgmLossPlan& plan, const PySamples& r, const PySamples& g, Address labels,
         const PySamples& noise, Address value_loss, Address value_terms, Address value_assignment,
         Address value_z, Address value_r, Address value_g, const typename On::CgmLoss& besides) {
        in_dtype(plan.of_margin.float64, [&](auto number) {
          using T = decltype(number);
          On::cgm_loss_fwd(
              plan.input<T>(r, g, labels, noise),
              CgmLossGradient<T>{at<T>(value_loss), at<T>(value_terms),
                                 at<int64_t>(value_assignment), at<T>(value_z), at<T>(value_r),
                                 at<T>(value_g)},
              besides);
        });
      },
      Release(), arg("plan"), py::kw_only(), arg("r"), arg("g"), arg("labels"), arg("noise"),
      arg("value_loss"), arg("value_terms"), arg("value_assignment"), arg("value_z"),
      arg("value_r"), arg("value_g"), arg(On::besides));
}

}  // namespace cgm_fast::bindings
