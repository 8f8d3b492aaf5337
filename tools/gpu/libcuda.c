// A CUDA driver without a device: every call succeeds, a launch does nothing.
//
// With it Triton's own driver compiles, caches and "launches" kernels for a GPU that is elsewhere
// (triton_cache.py); what is left is the host's share of a call.

#include <stddef.h>
#include <stdint.h>

typedef int Result;  // CUresult, where 0 is success

long cgm_fast_launches = 0;

// CUdevice_attribute numbers and their values on an H100.
enum {
  WARP_SIZE = 10,
  SHARED_MEMORY = 8,
  REGISTERS = 12,
  CLOCK = 13,
  MULTIPROCESSORS = 16,
  MEMORY_CLOCK = 36,
  BUS_WIDTH = 37,
  MAJOR = 75,
  MINOR = 76,
  SHARED_MEMORY_ON_REQUEST = 97,
};

Result cuDeviceGetAttribute(int* value, int attribute, int device) {
  switch (attribute) {
    case WARP_SIZE:
      *value = 32;
      break;
    case SHARED_MEMORY:
      *value = 49152;
      break;
    case REGISTERS:
      *value = 65536;
      break;
    case CLOCK:
      *value = 1980000;
      break;
    case MULTIPROCESSORS:
      *value = 132;
      break;
    case MEMORY_CLOCK:
      *value = 2619000;
      break;
    case BUS_WIDTH:
      *value = 5120;
      break;
    case MAJOR:
      *value = 9;
      break;
    case MINOR:
      *value = 0;
      break;
    case SHARED_MEMORY_ON_REQUEST:
      *value = 232448;
      break;
    default:
      *value = 1;
  }
  return 0;
}

Result cuFuncGetAttribute(int* value, int attribute, void* function) {
  enum { MOST_THREADS = 0, REGISTERS_OF_THREAD = 4 };
  *value = attribute == MOST_THREADS ? 1024 : attribute == REGISTERS_OF_THREAD ? 64 : 0;
  return 0;
}

Result cuGetErrorString(Result error, const char** text) {
  *text = "no device";
  return 0;
}

Result cuLaunchKernelEx(const void* config, void* function, void** arguments, void** extra) {
  cgm_fast_launches++;
  return 0;
}

Result cuLaunchKernel(void* function, unsigned grid_x, unsigned grid_y, unsigned grid_z,
                      unsigned block_x, unsigned block_y, unsigned block_z, unsigned shared,
                      void* stream, void** arguments, void** extra) {
  cgm_fast_launches++;
  return 0;
}

Result cuPointerGetAttribute(void* value, int attribute, uint64_t pointer) {
  *(uint64_t*)value = pointer;
  return 0;
}

// Handles that nobody looks into.
static Result handle(void** out) {
  *out = (void*)1;
  return 0;
}

Result cuDevicePrimaryCtxRetain(void** context, int device) { return handle(context); }
Result cuCtxGetCurrent(void** context) { return handle(context); }
Result cuStreamGetCtx(void* stream, void** context) { return handle(context); }
Result cuModuleLoadData(void** module, const void* image) { return handle(module); }
Result cuModuleGetFunction(void** function, void* module, const char* name) {
  return handle(function);
}

Result cuStreamIsCapturing(void* stream, int* status) { return *status = 0, 0; }
Result cuDriverGetVersion(int* version) { return *version = 13000, 0; }
Result cuDeviceGet(int* device, int ordinal) { return *device = 0; }
Result cuDeviceGetCount(int* count) { return *count = 1, 0; }
Result cuCtxGetDevice(int* device) { return *device = 0; }
Result cuCtxGetLimit(size_t* value, int limit) { return *value = 0, 0; }
Result cuOccupancyMaxActiveClusters(int* count, void* function, const void* config) {
  return *count = 1, 0;
}

Result cuInit(unsigned flags) { return 0; }
Result cuCtxSetCurrent(void* context) { return 0; }
Result cuCtxSetLimit(int limit, size_t value) { return 0; }
Result cuFuncSetCacheConfig(void* function, int config) { return 0; }
Result cuFuncSetAttribute(void* function, int attribute, int value) { return 0; }
Result cuModuleUnload(void* module) { return 0; }
Result cuTensorMapEncodeTiled(void) { return 0; }
Result cuTensorMapEncodeIm2col(void) { return 0; }
