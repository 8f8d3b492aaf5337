// What csrc/cuda/launch.cuh does with a run-time that fails: `launches NAME` prints "right", or
// what was called and thrown.
#include <cstdio>

#include "cuda/launch.cuh"

using cgm_fast::cuda::Launch;
using failing::runtime;

namespace {

using Calls = std::vector<std::string>;

// Two kernels, which are never run.
void first(int, double) {}
void second(int, double) {}

constexpr std::size_t kKilobyte = 1024;

// What it threw; empty if nothing.
std::string launch(std::size_t kilobytes, void (*kernel)(int, double) = first) {
  int stream = 0;
  try {
    const Launch how{"sums_kernel", dim3(7, 2), dim3(256), kilobytes * kKilobyte, &stream};
    cgm_fast::cuda::run(how, kernel, 3, 0.5);
  } catch (const std::runtime_error& error) {
    return error.what();
  }
  return "";
}

std::string failed(std::size_t kilobytes, const char* why) {
  return "sums_kernel <<<7x2x1, 256x1x1, " + std::to_string(kilobytes * kKilobyte) + ">>>: " + why;
}

Calls launched(std::size_t kilobytes, const Calls& before = {}) {
  Calls calls = before;
  calls.push_back("cudaLaunchKernel 7 256 " + std::to_string(kilobytes * kKilobyte) + " 1");
  return calls;
}

Calls asked(std::size_t kilobytes) {
  return {"cudaGetDevice", "cudaFuncSetAttribute " + std::to_string(kilobytes * kKilobyte)};
}

Calls calls() { return std::exchange(runtime().calls, {}); }

// No error is left for whoever calls the run-time next.
bool nothing_left() { return runtime().last == cudaSuccess; }

bool plain() {
  if (launch(48) != "" || calls() != launched(48)) return false;
  return launch(1) == "" && calls() == launched(1);
}

bool launch_fails() {
  runtime().failures["cudaLaunchKernel"] = cudaErrorLaunchFailure;
  if (launch(1) != failed(1, "launch failure") || !nothing_left()) return false;
  runtime().failures.clear();
  return launch(1) == "";
}

bool no_device() {
  runtime().failures["cudaGetDevice"] = cudaErrorNoDevice;
  if (launch(90) != failed(90, "no device") || !nothing_left()) return false;
  if (calls() != Calls{"cudaGetDevice"}) return false;            // nothing was allowed or launched
  if (launch(48) != "" || calls() != launched(48)) return false;  // does not ask
  runtime().failures.clear();
  return launch(90) == "" && calls() == launched(90, asked(90));
}

// A refusal is not remembered as permission.
bool too_much_shared_memory() {
  runtime().failures["cudaFuncSetAttribute"] = cudaErrorInvalidValue;
  for (int again = 0; again < 2; ++again) {
    if (launch(300) != failed(300, "invalid argument") || !nothing_left()) return false;
    if (calls() != asked(300)) return false;
  }
  runtime().failures.clear();
  return launch(300) == "" && calls() == launched(300, asked(300));
}

// Once for a kernel and a device, until it needs more.
bool allowed_once() {
  if (launch(90) != "" || calls() != launched(90, asked(90))) return false;
  for (std::size_t kilobytes : {90, 60}) {
    if (launch(kilobytes) != "" || calls() != launched(kilobytes, {"cudaGetDevice"})) return false;
  }
  if (launch(100) != "" || calls() != launched(100, asked(100))) return false;
  if (launch(90, second) != "" || calls() != launched(90, asked(90))) return false;
  runtime().device = 1;
  if (launch(90) != "" || calls() != launched(90, asked(90))) return false;
  runtime().device = 0;
  return launch(100) == "" && calls() == launched(100, {"cudaGetDevice"});
}

// Someone else's error is neither taken for this launch's nor taken away.
bool anothers_error() {
  runtime().last = cudaErrorNoDevice;
  return launch(90) == "" && runtime().last == cudaErrorNoDevice;
}

bool problem() {
  if (cgm_fast::cuda::problem() != nullptr) return false;
  runtime().failures["cudaGetDeviceCount"] = cudaErrorNoDevice;
  const char* found = cgm_fast::cuda::problem();
  return found && found == std::string("no device") && nothing_left();
}

}  // namespace

int main(int, char** arguments) {
  const std::map<std::string, bool (*)()> cases = {
      {"plain", plain},
      {"launch_fails", launch_fails},
      {"no_device", no_device},
      {"too_much_shared_memory", too_much_shared_memory},
      {"allowed_once", allowed_once},
      {"anothers_error", anothers_error},
      {"problem", problem},
  };
  const bool right = cases.at(arguments[1])();
  std::puts(right ? "right" : "wrong");
  for (const std::string& call : runtime().calls) std::puts(call.c_str());
  return right ? 0 : 1;
}
