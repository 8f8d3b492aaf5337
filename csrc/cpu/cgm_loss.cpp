// The CGM latent objective on the CPU: the passes of prototype_margin.cpp and mmd.cpp in one call.
#include "cgm_loss.h"

#include <algorithm>
#include <vector>

#include "cpu/buffer.h"
#include "cpu/parallel.h"
#include "cpu/read.h"
#include "mmd.h"

namespace cgm_fast {
namespace {

template <typename T>
constexpr Dtype kDtype = sizeof(T) == 4 ? Dtype::float32 : Dtype::float64;

// The prototype whose latent a sample's is paired with; callers have checked labels.
int64_t paired(const int64_t* assignment, int64_t i, int64_t k) {
  return std::min(std::max<int64_t>(assignment[i], 0), k - 1);
}

// z_i = r_i + sigma e_i and z'_i = g_{k_i} + prior_sigma e'_i, each [rows, d], for some rows.
template <typename T>
void latents(const CgmLossInput<T>& in, const int64_t* assignment, int64_t begin, int64_t end, T* z,
             T* prior) {
  const int64_t d = in.margin.d;
  std::vector<T> noise(d);
  for (int64_t i = begin; i < end; ++i) {
    T *own = z + i * d, *met = prior + i * d;
    read_row(in.margin.r, 0, i, d, own);
    read_row(in.noise, 0, i, d, noise.data());
    for (int64_t f = 0; f < d; ++f) own[f] += T(in.sigma) * noise[f];
    read_row(in.margin.g, 0, paired(assignment, i, in.margin.k), d, met);
    read_row(in.noise, 1, i, d, noise.data());
    for (int64_t f = 0; f < d; ++f) met[f] += T(in.prior_sigma) * noise[f];
  }
}

// values = margin_weight * values, which hold L_D's gradient, + mmd_weight * of_mmd, or null.
template <typename T, typename U>
void combine(const CgmLossInput<T>& in, T* values, const U* of_mmd, int64_t count) {
  for (int64_t i = 0; i < count; ++i)
    values[i] = T(in.margin_weight * double(values[i]) +
                  (of_mmd ? in.mmd_weight * double(of_mmd[i]) : 0.0));
}

}  // namespace

template <typename T>
void cgm_loss_fwd_cpu(const CgmLossInput<T>& in, const CgmLossGradient<T>& out, int threads) {
  const int64_t rows = in.margin.rows, k = in.margin.k, d = in.margin.d;
  T margin_loss, mmd;
  prototype_margin_fwd_cpu(in.margin, {&margin_loss, out.assignment, out.grad_r, out.grad_g},
                           threads);
  const Buffer<T> prior(rows * d);
  const int helping = rows * d > 1 << 15 ? threads : 1;
  split_rows(rows, helping, [&](int, int64_t first, int64_t last) {
    latents(in, out.assignment, first, last, out.z, prior.data);
  });

  const bool of_prior = out.grad_g && !in.detach_prior;
  const int64_t begin = out.grad_r || !of_prior ? 0 : rows;
  const int64_t end = of_prior ? 2 * rows : out.grad_r ? rows : begin;
  const Buffer<T> grad_z((end - begin) * d);
  const int64_t begins[3] = {0, rows, 2 * rows};
  const double pair = 1.0 / (double(rows) * double(rows));
  const double relation[4] = {pair, -pair, -pair, pair};
  double block_sums[4];
  MmdProblem<T> problem = {};
  problem.batch = 1;
  problem.rows = 2 * rows;
  problem.d = d;
  problem.groups = 2;
  problem.scales = in.scales;
  problem.x = {out.z, kDtype<T>, 0, d, 1};
  problem.y = {prior.data, kDtype<T>, 0, d, 1};
  problem.x_rows = rows;
  problem.begins = begins;
  problem.relation = relation;
  problem.variances = in.variances;
  problem.kernel_weights = in.kernel_weights;
  problem.kernel = in.kernel;
  mmd_fwd_cpu(problem, {begin, end, &mmd, block_sums, grad_z.data, nullptr, nullptr}, threads);

  out.terms[0] = mmd;
  out.terms[1] = margin_loss;
  out.loss[0] = T(in.mmd_weight * double(mmd) + in.margin_weight * double(margin_loss));
  if (out.grad_r)
    split_rows(rows, helping, [&](int, int64_t first, int64_t last) {
      combine(in, out.grad_r + first * d, grad_z.data + first * d, (last - first) * d);
    });
  if (!out.grad_g) return;
  std::vector<double> by_prototype(of_prior ? k * d : 0, 0.0);
  if (of_prior) {
    const T* of_row = grad_z.data + (rows - begin) * d;
    for (int64_t i = 0; i < rows; ++i, of_row += d) {
      double* sum = by_prototype.data() + paired(out.assignment, i, k) * d;
      for (int64_t f = 0; f < d; ++f) sum[f] += double(of_row[f]);
    }
  }
  combine(in, out.grad_g, of_prior ? by_prototype.data() : nullptr, k * d);
}

template void cgm_loss_fwd_cpu(const CgmLossInput<float>&, const CgmLossGradient<float>&, int);
template void cgm_loss_fwd_cpu(const CgmLossInput<double>&, const CgmLossGradient<double>&, int);

}  // namespace cgm_fast
