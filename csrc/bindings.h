// How Python hands things over: plans of what does not change from call to call, and then a tuple
// of addresses for each record of tensors, in the order of its fields (kFields; a test compares it
// with Python's). Names would cost a small call 4 µs. Kernels run without the GIL. Callers own
// every buffer and have checked shapes; an address of 0 means "not given". Only bindings* include
// this, and only this includes pybind11.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <tuple>
#include <vector>

#include "cgm_loss.h"
#include "kernel_product.h"
#include "mmd.h"
#include "prototype_margin.h"

namespace cgm_fast::bindings {

using Address = std::uintptr_t;

template <typename T>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

// The addresses of a record's tensors.
template <int kCount>
struct Addresses {
  Address of[kCount];
};

// Which tensors a record has, by name and in order.
struct Fields {
  const char* op;
  const char* record;
  std::vector<const char*> names;
};

inline const std::vector<Fields>& fields() {
  static const std::vector<Fields> kFields = {
      {"mmd", "Problem", {"x", "y", "weights", "relation", "variance"}},
      {"mmd", "Value", {"loss", "z", "weights", "relation", "variance"}},
      {"mmd", "Tangent", {"z", "weights", "relation", "variance"}},
      {"mmd", "Product", {"z", "weights", "relation", "variance"}},
      {"prototype_margin", "Problem", {"r", "g", "labels"}},
      {"prototype_margin", "Value", {"loss", "assignment", "r", "g"}},
      {"prototype_margin", "Tangent", {"r", "g"}},
      {"prototype_margin", "Product", {"r", "g"}},
      {"cgm_loss", "Problem", {"r", "g", "labels", "noise"}},
      {"cgm_loss", "Value", {"loss", "terms", "assignment", "z", "r", "g"}},
      {"kernel_product", "Problem", {"x", "y", "u", "v", "variance"}},
      {"kernel_product", "Value", {"product", "x", "variance"}},
  };
  return kFields;
}

inline Samples with_address(Samples samples, Address address) {
  samples.data = at<const void>(address);
  return samples;
}

// What of an MMD² problem is not a tensor, and the shapes of those.
struct MmdPlan {
  int64_t batch, x_rows, d;
  Samples x, y;                 // without addresses
  bool float64;                 // what is computed in; else float32
  std::vector<int64_t> begins;  // rows before each group, and all
  std::vector<double> relations, variances, kernel_weights;
  Kernel kernel;
  int64_t row_begin, row_end;

  // `begins`, `relations` and `variances` are on the host here.
  template <typename T>
  MmdProblem<T> problem(const Addresses<5>& given) const {
    const auto [of_x, of_y, weights, relation, variance] = given.of;
    MmdProblem<T> in;
    in.batch = batch;
    in.rows = begins.back();
    in.d = d;
    in.groups = static_cast<int64_t>(begins.size()) - 1;
    in.scales = static_cast<int64_t>(kernel_weights.size());
    in.x = with_address(x, of_x);
    in.y = with_address(y, of_y);
    in.x_rows = x_rows;
    in.begins = begins.data();
    in.weights = at<const T>(weights);
    in.relation = relation ? at<const double>(relation) : relations.data();
    in.relation_per_item = relation != 0;
    in.variance = at<const T>(variance);
    in.variances = variances.data();
    in.kernel_weights = kernel_weights.data();
    in.kernel = kernel;
    return in;
  }
};

// The results of an MMD², with the rows of the plan.
template <typename T>
MmdValue<T> mmd_value(const MmdPlan& plan, const Addresses<5>& given) {
  const auto [loss, z, weights, relation, variance] = given.of;
  return {plan.row_begin, plan.row_end,   at<T>(loss),    at<double>(relation),
          at<T>(z),       at<T>(weights), at<T>(variance)};
}

template <typename T>
MmdTangent<T> mmd_tangent(const Addresses<4>& given) {
  const auto [z, weights, relation, variance] = given.of;
  return {at<const T>(z), at<const T>(weights), at<const double>(relation), at<const T>(variance)};
}

template <typename T>
MmdProduct<T> mmd_product(const MmdPlan& plan, const Addresses<4>& given) {
  const auto [z, weights, relation, variance] = given.of;
  return {plan.row_begin, plan.row_end,         at<T>(z),
          at<T>(weights), at<double>(relation), at<T>(variance)};
}

// What of a prototype margin problem is not a tensor, and the shapes of those.
struct PrototypeMarginPlan {
  int64_t rows, k, d;
  Samples r, g;  // without addresses
  bool float64;
  double margin, negative_scale, scale;

  template <typename T>
  PrototypeMarginInput<T> input(Address of_r, Address of_g, Address labels) const {
    return {rows,
            k,
            d,
            with_address(r, of_r),
            with_address(g, of_g),
            at<const int64_t>(labels),
            margin,
            negative_scale,
            scale};
  }
};

template <typename T>
PrototypeMarginGradient<T> prototype_margin_value(const Addresses<4>& given) {
  const auto [loss, assignment, r, g] = given.of;
  return {at<T>(loss), at<int64_t>(assignment), at<T>(r), at<T>(g)};
}

// What of a CGM objective is not a tensor, and the shapes of those.
struct CgmLossPlan {
  PrototypeMarginPlan of_margin;
  Samples noise;  // without an address
  double sigma, prior_sigma, mmd_weight, margin_weight;
  std::vector<double> variances, kernel_weights;
  Kernel kernel;
  bool detach_prior;

  // `variances` and `kernel_weights` are on the host here.
  template <typename T>
  CgmLossInput<T> input(const Addresses<4>& given) const {
    const auto [r, g, labels, of_noise] = given.of;
    return {of_margin.input<T>(r, g, labels),
            with_address(noise, of_noise),
            sigma,
            prior_sigma,
            mmd_weight,
            margin_weight,
            static_cast<int64_t>(variances.size()),
            variances.data(),
            kernel_weights.data(),
            kernel,
            detach_prior};
  }
};

template <typename T>
CgmLossGradient<T> cgm_loss_value(const Addresses<6>& given) {
  const auto [loss, terms, assignment, z, r, g] = given.of;
  return {at<T>(loss), at<T>(terms), at<int64_t>(assignment), at<T>(z), at<T>(r), at<T>(g)};
}

// What of a kernel product is not a tensor, and the shapes of those.
struct KernelProductPlan {
  int64_t batch, rows, columns, d, values;
  Samples x, y;  // without addresses
  bool float64;
  std::vector<double> variances, kernel_weights;
  Kernel kernel;

  // `variances` and `kernel_weights` are on the host here.
  template <typename T>
  KernelProductProblem<T> problem(const Addresses<5>& given) const {
    const auto [of_x, of_y, u, v, variance] = given.of;
    return {batch,
            rows,
            columns,
            d,
            values,
            static_cast<int64_t>(kernel_weights.size()),
            with_address(x, of_x),
            with_address(y, of_y),
            at<const T>(u),
            at<const T>(v),
            at<const T>(variance),
            variances.data(),
            kernel_weights.data(),
            kernel};
  }
};

template <typename T>
KernelProductValue<T> kernel_product_value(const Addresses<3>& given) {
  const auto [product, x, variance] = given.of;
  return {at<T>(product), at<T>(x), at<T>(variance)};
}

// Calls body(T()) for the type that is computed in.
template <typename Body>
void in_dtype(bool float64, const Body& body) {
  float64 ? body(double()) : body(float());
}

// {"mmd": {"Problem": ["x", ...], ...}, ...}
pybind11::dict fields_by_op(const std::vector<Fields>& records);

// Adds the plans.
void bind_plans(pybind11::module_& module);

// Adds the GPU's functions.
void bind_cuda(pybind11::module_& module);

}  // namespace cgm_fast::bindings

// A tuple of as many integers, and nothing else.
template <int kCount>
struct pybind11::detail::type_caster<cgm_fast::bindings::Addresses<kCount>> {
  PYBIND11_TYPE_CASTER(cgm_fast::bindings::Addresses<kCount>, const_name("tuple[int, ...]"));

  bool load(handle source, bool) {
    if (!PyTuple_Check(source.ptr()) || PyTuple_GET_SIZE(source.ptr()) != kCount) return false;
    for (int i = 0; i < kCount; ++i) {
      value.of[i] = PyLong_AsUnsignedLongLong(PyTuple_GET_ITEM(source.ptr(), i));
      if (PyErr_Occurred()) {
        PyErr_Clear();
        return false;
      }
    }
    return true;
  }
};
