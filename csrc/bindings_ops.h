// The ops' functions as Python sees them, said once for all kinds of device: a plan, the addresses
// of records, and what else that kind of device is given.
#pragma once

#include <string>

#include "bindings.h"

namespace cgm_fast::bindings {

// `On` says where: `suffix` of the functions' names; `Release`, under which they run; what they are
// given last for each op, as Mmd, PrototypeMargin, CgmLoss and KernelProduct; and what they call,
// which takes structs instead of addresses.
template <typename On>
void bind_ops(pybind11::module_& module) {
  using Release = typename On::Release;
  const auto name = [](const char* op) { return std::string(op) + On::suffix; };

  module.def(
      name("mmd_fwd").c_str(),
      [](const MmdPlan& plan, const Addresses<5>& problem, const Addresses<5>& value,
         const typename On::Mmd& given) {
        in_dtype(plan.float64, [&](auto number) {
          using T = decltype(number);
          On::mmd_fwd(plan.problem<T>(problem), mmd_value<T>(plan, value), given);
        });
      },
      Release());
  module.def(
      name("mmd_hvp").c_str(),
      [](const MmdPlan& plan, const Addresses<5>& problem, const Addresses<4>& tangent,
         const Addresses<4>& product, const typename On::Mmd& given) {
        in_dtype(plan.float64, [&](auto number) {
          using T = decltype(number);
          On::mmd_hvp(plan.problem<T>(problem), mmd_tangent<T>(tangent),
                      mmd_product<T>(plan, product), given);
        });
      },
      Release());
  module.def(
      name("prototype_margin_fwd").c_str(),
      [](const PrototypeMarginPlan& plan, const Addresses<3>& problem, const Addresses<4>& value,
         const typename On::PrototypeMargin& given) {
        in_dtype(plan.float64, [&](auto number) {
          using T = decltype(number);
          const auto [r, g, labels] = problem.of;
          On::prototype_margin_fwd(plan.input<T>(r, g, labels), prototype_margin_value<T>(value),
                                   given);
        });
      },
      Release());
  // The labels are the assignment.
  module.def(
      name("prototype_margin_hvp").c_str(),
      [](const PrototypeMarginPlan& plan, const Addresses<3>& problem, const Addresses<2>& tangent,
         const Addresses<2>& product, const typename On::PrototypeMargin& given) {
        in_dtype(plan.float64, [&](auto number) {
          using T = decltype(number);
          const auto [r, g, labels] = problem.of;
          On::prototype_margin_hvp(
              plan.input<T>(r, g, 0),
              PrototypeMarginTangent<T>{at<const int64_t>(labels), at<const T>(tangent.of[0]),
                                        at<const T>(tangent.of[1]), at<T>(product.of[0]),
                                        at<T>(product.of[1])},
              given);
        });
      },
      Release());
  module.def(
      name("cgm_loss_fwd").c_str(),
      [](const CgmLossPlan& plan, const Addresses<4>& problem, const Addresses<6>& value,
         const typename On::CgmLoss& given) {
        in_dtype(plan.of_margin.float64, [&](auto number) {
          using T = decltype(number);
          On::cgm_loss_fwd(plan.input<T>(problem), cgm_loss_value<T>(value), given);
        });
      },
      Release());
  module.def(
      name("kernel_product_fwd").c_str(),
      [](const KernelProductPlan& plan, const Addresses<5>& problem, const Addresses<3>& value,
         const typename On::KernelProduct& given) {
        in_dtype(plan.float64, [&](auto number) {
          using T = decltype(number);
          On::kernel_product_fwd(plan.problem<T>(problem), kernel_product_value<T>(value), given);
        });
      },
      Release());
}

}  // namespace cgm_fast::bindings
