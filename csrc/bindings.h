// How Python hands things over: plans of what does not change from call to call, and then addresses
// by name. Kernels run without the GIL. Callers own every buffer and have checked shapes; an
// address of 0 means "not given". Only bindings* include this, and only this includes pybind11.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <tuple>
#include <vector>

#include "cgm_loss.h"
#include "mmd.h"
#include "prototype_margin.h"

namespace cgm_fast::bindings {

using Address = std::uintptr_t;

template <typename T>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

// (address, dtype as its place in Dtype, strides of item, row and feature in elements)
using PySamples = std::tuple<Address, int, int64_t, int64_t, int64_t>;

inline Samples samples(const PySamples& given) {
  return {at<const void>(std::get<0>(given)), static_cast<Dtype>(std::get<1>(given)),
          std::get<2>(given), std::get<3>(given), std::get<4>(given)};
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
  MmdProblem<T> problem(Address of_x, Address of_y, Address weights, Address relation,
                        Address variance) const {
    MmdProblem<T> in;
    in.batch = batch;
    in.rows = begins.back();
    in.d = d;
    in.groups = static_cast<int64_t>(begins.size()) - 1;
    in.scales = static_cast<int64_t>(kernel_weights.size());
    in.x = x;
    in.y = y;
    in.x.data = at<const void>(of_x);
    in.y.data = at<const void>(of_y);
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

// What of a prototype margin problem is not a tensor.
struct PrototypeMarginPlan {
  int64_t rows, k, d;
  bool float64;
  double margin, negative_scale, scale;

  template <typename T>
  PrototypeMarginInput<T> input(const PySamples& r, const PySamples& g, Address labels) const {
    return {rows,           k,    d, samples(r), samples(g), at<const int64_t>(labels), margin,
            negative_scale, scale};
  }
};

// What of a CGM objective is not a tensor.
struct CgmLossPlan {
  PrototypeMarginPlan of_margin;
  double sigma, prior_sigma, mmd_weight, margin_weight;
  std::vector<double> variances, kernel_weights;
  Kernel kernel;
  bool detach_prior;

  // `variances` and `kernel_weights` are on the host here.
  template <typename T>
  CgmLossInput<T> input(const PySamples& r, const PySamples& g, Address labels,
                        const PySamples& noise) const {
    return {of_margin.input<T>(r, g, labels),
            samples(noise),
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

// Adds the plans.
void bind_plans(pybind11::module_& module);

// Adds the GPU's functions.
void bind_cuda(pybind11::module_& module);

}  // namespace cgm_fast::bindings
