// How Python hands things over: addresses and sizes in, the kernels run without the GIL. Callers
// own every buffer and have checked shapes; an address of 0 means "not given". Only bindings*.cpp
// include this, and only this includes pybind11.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <tuple>
#include <vector>

#include "mmd.h"

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

template <typename T>
MmdInput<T> mmd_input(int64_t batch, int64_t n, int64_t m, int64_t d, const PySamples& x,
                      const PySamples& y, Address x_weights, Address y_weights, double x_scale,
                      double y_scale, Address cross, double cross_scale, Address variance,
                      const std::vector<double>& variances,
                      const std::vector<double>& kernel_weights) {
  MmdInput<T> in;
  in.batch = batch;
  in.n = n;
  in.m = m;
  in.d = d;
  in.scales = static_cast<int64_t>(kernel_weights.size());
  in.x = samples(x);
  in.y = samples(y);
  in.x_weights = at<const T>(x_weights);
  in.y_weights = at<const T>(y_weights);
  in.x_scale = x_scale;
  in.y_scale = y_scale;
  in.cross = at<const T>(cross);
  in.cross_scale = cross_scale;
  in.variance = at<const T>(variance);
  in.variances = variances.data();
  in.kernel_weights = kernel_weights.data();
  return in;
}

// Adds the GPU's functions.
void bind_cuda(pybind11::module_& module);

}  // namespace cgm_fast::bindings
