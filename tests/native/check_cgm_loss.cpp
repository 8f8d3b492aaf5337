// cgm_loss against its formula in double, gradients by central differences. See driver.cpp.
#include <cmath>
#include <cstdio>
#include <vector>

#include "cgm_loss.h"

namespace {

using namespace cgm_fast;

constexpr int64_t kRows = 37, kPrototypes = 5, kFeatures = 4;
constexpr double kSigma = 0.3, kPriorSigma = 0.2, kMmdWeight = 100, kMarginWeight = 0.7;
constexpr double kMargin = 1.5, kNegativeScale = 0.5, kVariance = 4;

double square(const double* a, const double* b) {
  double sum = 0;
  for (int64_t f = 0; f < kFeatures; ++f) sum += (a[f] - b[f]) * (a[f] - b[f]);
  return sum;
}

// The loss for a given assignment; r and g row by row.
double loss(const std::vector<double>& r, const std::vector<double>& g,
            const std::vector<float>& noise, const std::vector<int64_t>& assignment, bool detached,
            const std::vector<double>& prior_g) {
  const int64_t d = kFeatures;
  std::vector<double> z(r), prior(r.size());
  const std::vector<double>& centres = detached ? prior_g : g;
  double margin = 0;
  for (int64_t i = 0; i < kRows; ++i) {
    for (int64_t f = 0; f < d; ++f) {
      z[i * d + f] += kSigma * noise[i * d + f];
      prior[i * d + f] = centres[assignment[i] * d + f] + kPriorSigma * noise[(kRows + i) * d + f];
    }
    for (int64_t k = 0; k < kPrototypes; ++k) {
      const double u = square(&r[i * d], &g[k * d]);
      margin += k == assignment[i] ? u : kNegativeScale * std::fmax(0.0, kMargin - u);
    }
  }
  double mmd = 0;
  for (int64_t i = 0; i < kRows; ++i)
    for (int64_t j = 0; j < kRows; ++j)
      mmd += std::exp(-square(&z[i * d], &z[j * d]) / (2 * kVariance)) -
             2 * std::exp(-square(&z[i * d], &prior[j * d]) / (2 * kVariance)) +
             std::exp(-square(&prior[i * d], &prior[j * d]) / (2 * kVariance));
  return kMmdWeight * mmd / (kRows * kRows) + kMarginWeight * margin / kRows;
}

int check(bool with_labels, bool detached, bool with_r, bool with_g, int threads) {
  const int64_t d = kFeatures;
  uint64_t state = 7;
  const auto random = [&] {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return float(double(state >> 40) / double(1 << 24) * 3 - 1.5);
  };
  std::vector<float> r(kRows * d), g(kPrototypes * d), noise(2 * kRows * d);
  for (std::vector<float>* values : {&r, &g, &noise})
    for (float& value : *values) value = random();
  std::vector<int64_t> labels(kRows), assignment(kRows, -1);
  for (int64_t i = 0; i < kRows; ++i) labels[i] = (3 * i) % kPrototypes;

  CgmLossInput<float> in = {};
  in.margin = {kRows,
               kPrototypes,
               d,
               {r.data(), Dtype::float32, 0, d, 1},
               {g.data(), Dtype::float32, 0, d, 1},
               with_labels ? labels.data() : nullptr,
               kMargin,
               kNegativeScale,
               1.0 / kRows};
  in.noise = {noise.data(), Dtype::float32, kRows * d, d, 1};
  in.sigma = kSigma;
  in.prior_sigma = kPriorSigma;
  in.mmd_weight = kMmdWeight;
  in.margin_weight = kMarginWeight;
  in.scales = 1;
  const double one = 1;
  in.variances = &kVariance;
  in.kernel_weights = &one;
  in.kernel = Kernel::gaussian;
  in.detach_prior = detached;
  float value = NAN, terms[2];
  std::vector<float> z(r.size()), grad_r(r.size(), NAN), grad_g(g.size(), NAN);
  cgm_loss_fwd_cpu<float>(in,
                          {&value, terms, assignment.data(), z.data(),
                           with_r ? grad_r.data() : nullptr, with_g ? grad_g.data() : nullptr},
                          threads);

  std::vector<double> exact_r(r.begin(), r.end()), exact_g(g.begin(), g.end());
  const std::vector<double> prior_g = exact_g;
  const auto formula = [&] { return loss(exact_r, exact_g, noise, assignment, detached, prior_g); };
  int wrong = std::fabs(value - formula()) > 1e-5 * std::fabs(value);
  const auto compare = [&](std::vector<double>& at, const std::vector<float>& gradient) {
    constexpr double kStep = 1e-5;
    for (size_t i = 0; i < at.size(); ++i) {
      const double kept = at[i];
      at[i] = kept + kStep;
      const double above = formula();
      at[i] = kept - kStep;
      const double slope = (above - formula()) / (2 * kStep);
      at[i] = kept;
      wrong += !(std::fabs(slope - gradient[i]) < 1e-4 * (1 + std::fabs(slope)));
    }
  };
  if (with_r) compare(exact_r, grad_r);
  if (with_g) compare(exact_g, grad_g);
  return wrong;
}

}  // namespace

int check_cgm_loss() {
  int failures = 0;
  for (int options = 0; options < 16; ++options) {
    for (int threads : {1, 3}) {
      const int wrong = check(options & 1, options & 2, options & 4, options & 8, threads);
      if (wrong) std::printf("FAILED cgm_loss %d: %d values\n", options, wrong);
      failures += wrong != 0;
    }
  }
  return failures;
}
