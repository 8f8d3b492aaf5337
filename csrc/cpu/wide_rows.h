// Passes over single rows with many features: to and from the panels of wide.h. Included by kernels
// that are compiled once per instruction set.
#pragma once

#include "cpu/simd.h"
#include "cpu/wide.h"

namespace cgm_fast {
namespace {

// sum[f] += row[f].
template <typename T>
void add_row(const T* row, int64_t d, double* sum) {
  int64_t f = 0;
  for (; f + kWideLanes <= d; f += kWideLanes)
    *reinterpret_cast<UnalignedWide*>(sum + f) += widen(row + f);
  for (; f < d; ++f) sum[f] += double(row[f]);
}

// z = row - middle, in panels; returns |z|^2.
template <typename T>
double centre_row(const T* row, const T* middle, int64_t d, const WideRow<T>& z) {
  Wide squares[2] = {};
  double rest = 0;
  T* panel = z.data;
  for (int64_t begin = 0; begin < d; begin += kPanel<T>, panel += z.step) {
    const int64_t count = d - begin < kPanel<T> ? d - begin : kPanel<T>;
    for (int64_t k = 0; k < count; ++k) panel[k] = row[begin + k] - middle[begin + k];
    int64_t k = 0;
    for (; k + 2 * kWideLanes <= count; k += 2 * kWideLanes)
      CGM_UNROLL for (int half = 0; half < 2; ++half) {
        const Wide value = widen(panel + k + half * kWideLanes);
        squares[half] += value * value;
      }
    for (; k < count; ++k) rest += double(panel[k]) * double(panel[k]);
  }
  return sum_of_lanes(squares[0] + squares[1]) + rest;
}

// z *= scale; sum[f] += weight z[f]. Returns |z|^2.
template <typename T>
double scale_row(const WideRow<T>& z, int64_t d, double scale, double weight, double* sum) {
  Wide squares[2] = {};
  double rest = 0;
  T* panel = z.data;
  for (int64_t begin = 0; begin < d; begin += kPanel<T>, panel += z.step, sum += kPanel<T>) {
    const int64_t count = d - begin < kPanel<T> ? d - begin : kPanel<T>;
    int64_t k = 0;
    for (; k + 2 * kWideLanes <= count; k += 2 * kWideLanes)
      CGM_UNROLL for (int half = 0; half < 2; ++half) {
        T* at = panel + k + half * kWideLanes;
        narrow(widen(at) * scale, at);
        const Wide value = widen(at);
        *reinterpret_cast<UnalignedWide*>(sum + k + half * kWideLanes) += weight * value;
        squares[half] += value * value;
      }
    for (; k < count; ++k) {
      panel[k] = T(double(panel[k]) * scale);
      sum[k] += weight * double(panel[k]);
      rest += double(panel[k]) * double(panel[k]);
    }
  }
  return sum_of_lanes(squares[0] + squares[1]) + rest;
}

// out = factor (s z - out - weight of_all); `of_all` [d] may be null.
template <typename T>
void finish_row(const WideRow<T>& z, int64_t d, double factor, double s, double weight,
                const double* of_all, T* out) {
  const T* panel = z.data;
  for (int64_t begin = 0; begin < d; begin += kPanel<T>, panel += z.step) {
    const int64_t count = d - begin < kPanel<T> ? d - begin : kPanel<T>;
    int64_t k = 0;
    for (; k + kWideLanes <= count; k += kWideLanes) {
      T* to = out + begin + k;
      Wide value = s * widen(panel + k) - widen(to);
      if (of_all) value -= weight * *reinterpret_cast<const UnalignedWide*>(of_all + begin + k);
      narrow(factor * value, to);
    }
    for (; k < count; ++k) {
      T& to = out[begin + k];
      const double all = of_all ? weight * of_all[begin + k] : 0;
      to = T(factor * (s * double(panel[k]) - double(to) - all));
    }
  }
}

}  // namespace
}  // namespace cgm_fast
