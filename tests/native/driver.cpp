// Runs the CPU kernels without Python and holds them to a plain evaluation in double.
//
//   driver [SEEDS]       every check; a line for each failure, and exit status 1
//   driver mmd SEED      one check of mmd, and of its Hessian-vector product
//   driver margin SEED   one check of prototype_margin
//   driver product SEED  one check of kernel_product
//   driver count [NAME]  the cases whose instructions are counted, or one: see instructions.py
//
// A seed stands for a problem: shapes, dtypes, strides and options are drawn from it.
#include <array>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <iterator>
#include <limits>
#include <stdexcept>
#include <string>
#include <thread>
#include <tuple>
#include <utility>
#include <vector>

#ifndef _WIN32
#include <sys/wait.h>
#include <unistd.h>
#endif

#include "cpu/isa.h"
#include "margin_problem.h"
#include "mmd_problem.h"
#include "product_problem.h"

int check_cgm_loss();  // check_cgm_loss.cpp

namespace {

using namespace cgm_fast;
using namespace checks;

// For every number of threads: right, and the same bits again.
template <typename Make, typename Exact>
void check_threads(const Make& make, const Exact& exact) {
  for (int threads : {1, 2, 5}) {
    auto result = make(), again = make();
    result.compute(threads);
    result.check(exact);
    again.compute(threads);
    expect(result == again, "bits differ from run to run");
  }
}

template <typename T>
void check_mmd(const MmdOptions& options, Random& random, bool with_hvp = true) {
  const Mmd<T> problem(options, random);
  for (int hvp = 0; hvp <= int(with_hvp); ++hvp) {
    std::vector<Exact> exact;
    for (int64_t b = 0; b < options.batch; ++b)
      exact.push_back(exact_mmd(problem.point(b), problem.begins, options.d, problem.kernel_weights,
                                options.kernel, hvp));
    check_threads([&] { return MmdResult<T>(problem, hvp); }, exact);
  }
}

void check_mmd(uint64_t seed) {
  now_checking = "mmd " + std::to_string(seed);
  Random random{seed};
  MmdOptions o;
  const bool wide = random.chance(0.3);  // d from 64 on: fewer rows, so that this stays quick
  o.d = wide ? random.pick({64, 300, 600}) : random.pick({1, 2, 3, 10, 31, 32, 33});
  const auto rows = [&] {
    return wide ? random.pick({1, 2, 16, 33, 50}) : random.pick({1, 2, 5, 15, 16, 17, 64, 65, 150});
  };
  o.n = rows();
  o.m = rows();
  o.batch = (o.n + o.m) * (o.n + o.m) * o.d > 200000 ? 1 : random.pick({1, 2, 3, 7});
  o.scales = random.pick({1, 1, 2, 5});
  const bool single = random.chance(0.7);
  const auto dtype = [&] {
    return random.pick({Dtype::float16, Dtype::bfloat16, Dtype::float32,
                        single ? Dtype::float32 : Dtype::float64});
  };
  const auto strides = [&] {
    return random.pick({Strides::contiguous, Strides::padded, Strides::spread, Strides::transposed,
                        Strides::same_items, Strides::same_rows});
  };
  o.x_dtype = dtype();
  o.y_dtype = dtype();
  o.x_strides = strides();
  o.y_strides = strides();
  for (bool* given : {&o.weights, &o.relation, &o.variance, &o.near, &o.of_weights, &o.of_relation,
                      &o.of_variance, &o.tangent_weights, &o.tangent_relation, &o.tangent_variance})
    *given = random.chance(0.3);
  o.of_weights &= o.weights;  // without weights the kernel does not sum every row
  o.tangent_z =
      !(o.tangent_weights || o.tangent_relation || o.tangent_variance) || random.chance(0.7);
  if (random.chance(0.4)) o.kernel = kKernelNames[random.below(std::size(kKernelNames))].kernel;
  if (random.chance(0.4)) {  // groups that have nothing to do with where y begins
    o.begins = {0};
    while (o.begins.back() < o.n + o.m && o.begins.size() < 6)
      o.begins.push_back(o.begins.back() + 1 + random.below(o.n + o.m - o.begins.back()));
    if (o.begins.back() < o.n + o.m) o.begins.push_back(o.n + o.m);
  }
  // From few bandwidths to many: the kernel has a formula for each. Not coincident rows many of
  // them from all others, whose gradient is nothing but rounding.
  o.width = random.pick({0.01, 1.0, 30.0});
  if (o.x_strides == Strides::same_rows || o.y_strides == Strides::same_rows) o.width = 0.3;
  const bool half = std::min(o.x_dtype, o.y_dtype) < Dtype::float32;
  o.offset = random.pick({0.0, 0.0, half ? 2.0 : 100.0});  // 16 bits hold no small steps at 100
  const int64_t all = o.n + o.m, a = random.below(all + 1), b = random.below(all + 1);
  const std::pair<int64_t, int64_t> ranges[] = {
      {0, all}, {0, all}, {0, o.n}, {o.n, all}, {0, 0}, {std::min(a, b), std::max(a, b)}};
  std::tie(o.begin, o.end) = ranges[random.below(6)];
  char text[200];
  std::snprintf(text, sizeof text,
                " (%d %d %d, batch %d, scales %d, width %g, dtypes %d %d, strides %d %d)", int(o.n),
                int(o.m), int(o.d), int(o.batch), int(o.scales), o.width, int(o.x_dtype),
                int(o.y_dtype), int(o.x_strides), int(o.y_strides));
  now_checking += text;
  const bool with_hvp = !has_kink(o.kernel);  // else there is no second derivative
  single ? check_mmd<float>(o, random, with_hvp) : check_mmd<double>(o, random, with_hvp);
}

// Many tiles, and so rows and tiles enough for every sum that is kept apart.
void check_large_mmd() {
  for (auto [n, m, d] : {std::array<int64_t, 3>{700, 500, 3}, {1500, 1300, 2}, {500, 20, 40}}) {
    now_checking = "mmd of many rows";
    Random random{uint64_t(n)};
    MmdOptions o{1, n, m, d, 1};
    o.end = n + m;
    check_mmd<float>(o, random, n < 1000);
  }
  now_checking = "mmd of many rows and features";
  for (Kernel kernel : {Kernel::gaussian, Kernel::laplacian}) {
    Random random{7};
    MmdOptions o{1, 330, 130, 130, 2};
    o.begins = {0, 17, 250, 460};  // of tiles that are full and some that are not
    o.kernel = kernel;
    o.weights = o.relation = o.variance = o.of_weights = o.of_relation = o.of_variance = true;
    o.begin = 5;
    o.end = 410;
    o.tangent_weights = o.tangent_relation = o.tangent_variance = true;
    check_mmd<float>(o, random, !has_kink(kernel));
  }
}

// A NaN anywhere makes the loss NaN; no kernel may turn it into an index or a shift.
void check_nan() {
  for (double value : {kNan, std::numeric_limits<double>::infinity()}) {
    now_checking = "mmd of a NaN or an infinity";
    Random random{1};
    MmdOptions o{1, 20, 30, 3, 2};
    o.end = 50;
    o.of_weights = o.of_relation = o.of_variance = true;
    Mmd<float> problem(o, random);
    float* first = const_cast<float*>(static_cast<const float*>(problem.in.x.data));
    first[7] = float(value);
    for (bool hvp : {false, true}) {
      MmdResult<float> result(problem, hvp);
      result.compute(2);
      expect(std::isnan(hvp ? result.z.data[6] : result.loss.data[0]), "lost a NaN");
    }
  }
}

// --- prototype_margin

template <typename T>
void check_margin(Random& random) {
  const int64_t d = random.pick({1, 2, 3, 10, 31, 32, 33, 64, 300, 600});
  const int64_t k = random.pick({1, 2, 3, 10, 17, 100, 300});
  const int64_t rows = d * k > 10000 ? random.pick({1, 3, 20}) : random.pick({1, 2, 7, 64, 150});
  const bool labels = random.chance(0.4), tangent_r = random.chance(0.7),
             tangent_g = random.chance(0.7), with_r = random.chance(0.7),
             with_g = random.chance(0.7);
  const Margin<T> problem(rows, k, d, true, labels, tangent_r, tangent_g, random);
  const ExactMargin exact(problem);
  check_threads([&] { return MarginResult<T>(problem, with_r, with_g); }, exact);
}

void check_margin(uint64_t seed) {
  now_checking = "margin " + std::to_string(seed);
  Random random{seed};
  random.chance(0.6) ? check_margin<float>(random) : check_margin<double>(random);
}

// --- threads

template <typename T>
void check_product(const ProductOptions& options, Random& random) {
  const Product<T> problem(options, random);
  std::vector<ExactProduct> exact;
  for (int64_t b = 0; b < options.batch; ++b) exact.push_back(problem.exact(b));
  check_threads([&] { return ProductResult<T>(problem); }, exact);
}

void check_product(uint64_t seed) {
  now_checking = "product " + std::to_string(seed);
  Random random{seed + 1000000};
  ProductOptions o;
  const bool wide = random.chance(0.3), many = random.chance(0.1);
  o.d = wide ? random.pick({64, 300, 600}) : random.pick({1, 2, 3, 10, 31, 32, 33});
  o.p = random.pick({1, 1, 2, 7, 31, 32, 33, wide ? 600 : 5});
  const auto rows = [&] { return random.pick({1, 2, 5, 15, 16, 17, 64, 65, wide ? 40 : 300}); };
  o.n = many ? random.pick({1, 20, 83}) : rows();
  o.m = many ? random.pick({600, 5000}) : rows();  // few rows: the columns are shared
  if (many) o.d = o.p = 3;
  o.batch = o.n * o.m * (o.d + o.p) > 100000 ? 1 : random.pick({1, 2, 3, 7});
  o.scales = random.pick({1, 1, 2, 5});
  const bool single = random.chance(0.7);
  o.dtype = random.pick(
      {Dtype::float16, Dtype::bfloat16, Dtype::float32, single ? Dtype::float32 : Dtype::float64});
  if (!single) o.dtype = Dtype::float64;
  const auto strides = [&] {
    return random.pick({Strides::contiguous, Strides::padded, Strides::spread, Strides::transposed,
                        Strides::same_items});
  };
  o.x_strides = strides();
  o.y_strides = strides();
  if (random.chance(0.8)) o.kernel = kKernelNames[random.below(std::size(kKernelNames))].kernel;
  o.variance = random.chance(0.4);
  o.width = random.pick({0.01, 1.0, 30.0});
  o.offset = random.pick({0.0, 0.0, o.dtype < Dtype::float32 ? 2.0 : 100.0});
  o.of_x = random.chance(0.6);
  o.of_variance = random.chance(0.4);
  o.of_product = random.chance(0.7) || !(o.of_x || o.of_variance);
  char text[200];
  std::snprintf(text, sizeof text,
                " (%d %d %d %d, batch %d, scales %d, kernel %d, width %g, dtype %d, strides %d %d, "
                "wanted %d %d %d)",
                int(o.n), int(o.m), int(o.d), int(o.p), int(o.batch), int(o.scales), int(o.kernel),
                o.width, int(o.dtype), int(o.x_strides), int(o.y_strides), int(o.of_product),
                int(o.of_x), int(o.of_variance));
  now_checking += text;
  single ? check_product<float>(o, random) : check_product<double>(o, random);
}

struct Everything {  // one of each call, with work for several threads
  Everything()
      : random{3}, mmd(options(), random), margin(3000, 100, 31, true, false, true, true, random) {}

  static MmdOptions options() {
    MmdOptions o{1, 700, 600, 3, 1};
    o.end = 1300;
    return o;
  }

  struct Result {
    explicit Result(const Everything& of, int threads)
        : first(of.mmd, false), hvp(of.mmd, true), margin(of.margin, true, true) {
      first.compute(threads);
      hvp.compute(threads);
      margin.compute(threads);
    }
    bool operator==(const Result& other) const {
      return first == other.first && hvp == other.hvp && margin == other.margin;
    }
    MmdResult<float> first, hvp;
    MarginResult<float> margin;
  };

  Random random;
  Mmd<float> mmd;
  Margin<float> margin;
};

void check_concurrent_calls() {
  now_checking = "concurrent calls";
  const Everything problem;
  const Everything::Result two(problem, 2), five(problem, 5);
  bool same[4] = {};
  std::vector<std::thread> callers;
  for (int caller = 0; caller < 4; ++caller) {
    callers.emplace_back([&, caller] {
      same[caller] = true;
      for (int call = 0; call < 5; ++call) {
        const Everything::Result found(problem, (call + caller) % 2 ? 5 : 2);
        same[caller] &= found == ((call + caller) % 2 ? five : two);
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
  for (bool good : same) expect(good, "bits differ from those of a call alone");
}

void check_fork() {
#if !defined(_WIN32) && !defined(CGM_FAST_NO_FORK)
  now_checking = "fork";
  const Everything problem;
  const Everything::Result before(problem, 5);
  const pid_t child = fork();
  if (child == 0) {
    alarm(60);  // a child that waits for threads it does not have
    _exit(Everything::Result(problem, 5) == before ? 0 : 1);
  }
  int status = -1;
  waitpid(child, &status, 0);
  expect(status == 0, "a forked child differs", status, 0);
  expect(Everything::Result(problem, 5) == before, "the parent differs after a fork");
#endif
}

// --- instruction counts

}  // namespace

// Callgrind counts inside this function only; see instructions.py.
extern "C" __attribute__((noinline)) void cgm_fast_counted(const std::function<void()>& call) {
  call();
  asm volatile("" ::: "memory");  // no tail call: callgrind must see the return
}

namespace {

bool count(const char* wanted) {
  bool found = false;
  const auto run = [&](const char* name, const std::function<void()>& call) {
    if (!found) call();  // what happens once in a process is not counted
    found = true;
    cgm_fast_counted(call);
    std::printf("%s\n", name);
  };
  const auto mmd = [&](const char* name, int64_t rows, int64_t d, int64_t scales, auto zero,
                       bool hvp, Kernel kernel = Kernel::gaussian) {
    if (wanted && std::strcmp(name, wanted) != 0) return;
    using T = decltype(zero);
    Random random{1};
    MmdOptions o{1, rows, rows, d, scales};
    o.kernel = kernel;
    o.x_dtype = o.y_dtype = sizeof(T) == 4 ? Dtype::float32 : Dtype::float64;
    o.end = 2 * rows;
    const Mmd<T> problem(o, random);
    MmdResult<T> result(problem, hvp);
    run(name, [&] { result.compute(1); });
  };
  const auto margin = [&](const char* name, int64_t rows, int64_t k, int64_t d) {
    if (wanted && std::strcmp(name, wanted) != 0) return;
    Random random{1};
    const Margin<float> problem(rows, k, d, false, false, false, false, random);
    MarginResult<float> result(problem, true, true);
    run(name, [&] { result.compute_first(1); });
  };
  const auto product = [&](const char* name, int64_t rows, int64_t d, int64_t p, bool of_x) {
    if (wanted && std::strcmp(name, wanted) != 0) return;
    Random random{1};
    ProductOptions o{1, rows, rows, d, p, 1};
    o.of_x = of_x;
    const Product<float> problem(o, random);
    ProductResult<float> result(problem);
    run(name, [&] { result.compute(1); });
  };
#ifdef __clang__
  std::printf("clang %d %s\n", __clang_major__, isa_name(isa()));
#else
  std::printf("gcc %d %s\n", __GNUC__, isa_name(isa()));
#endif
  mmd("mmd-64x10", 64, 10, 1, 0.0f, false);
  mmd("mmd-1024x10", 1024, 10, 1, 0.0f, false);
  mmd("mmd-512x64", 512, 64, 1, 0.0f, false);
  mmd("mmd-256x300", 256, 300, 1, 0.0f, false);
  mmd("mmd-256x10-float64", 256, 10, 1, 0.0, false);
  mmd("mmd-256x10-bandwidths5", 256, 10, 5, 0.0f, false);
  mmd("mmd-hvp-128x10", 128, 10, 1, 0.0f, true);
  mmd("mmd-hvp-128x300", 128, 300, 1, 0.0f, true);
  mmd("mmd-256x10-matern52", 256, 10, 1, 0.0f, false, Kernel::matern52);
  product("product-512x10x1", 512, 10, 1, false);
  product("product-256x64x64-of-x", 256, 64, 64, true);
  margin("margin-64x10x10", 64, 10, 10);
  margin("margin-1024x100x64", 1024, 100, 64);
  margin("margin-256x1000x10", 256, 1000, 10);
  margin("margin-128x200x300", 128, 200, 300);
  return found;
}

}  // namespace

int main(int count_of_arguments, char** arguments) {
  const std::string what = count_of_arguments > 1 ? arguments[1] : "";
  const char* which = count_of_arguments > 2 ? arguments[2] : nullptr;
  const uint64_t seeds = what.empty() ? 150 : std::strtoull(what.c_str(), nullptr, 10);
  try {
    isa();
  } catch (const std::invalid_argument& error) {
    // A run for every instruction set: what this processor lacks is no failure, and no success.
    const char* wanted = std::getenv("CGM_FAST_ISA");
    const bool known = !std::strcmp(wanted, "avx2") || !std::strcmp(wanted, "avx512");
    std::printf("%s: %s%s\n", wanted, known ? "skipped: " : "", error.what());
    return known ? 0 : 2;
  }
  if (what == "count") return count(which) ? 0 : 2;
  if (what == "mmd" && which) {
    check_mmd(std::strtoull(which, nullptr, 10));
  } else if (what == "margin" && which) {
    check_margin(std::strtoull(which, nullptr, 10));
  } else if (what == "product" && which) {
    check_product(std::strtoull(which, nullptr, 10));
  } else if (seeds > 0) {
    for (uint64_t seed = 0; seed < seeds; ++seed) check_mmd(seed);
    for (uint64_t seed = 0; seed < seeds / 2; ++seed) check_margin(seed);
    for (uint64_t seed = 0; seed < seeds; ++seed) check_product(seed);
    check_large_mmd();
    check_nan();
    failures += check_cgm_loss();
    check_concurrent_calls();
    check_fork();
  } else {
    std::printf("usage: driver [SEEDS | mmd SEED | margin SEED | product SEED | count [NAME]]\n");
    return 2;
  }
  std::printf("%s: %d failures\n", isa_name(isa()), failures);
  return failures != 0;
}
