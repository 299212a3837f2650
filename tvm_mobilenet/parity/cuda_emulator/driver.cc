// CUDA's driver and runtime library, as far as TVM's CUDA runtime uses them, with the emulator in the
// GPU's place: a bundle's own host code launches its kernels on the CPU.
//
// Everything is done at once, in the order of the calls, on whichever stream; a captured graph is
// the list of its launches. A module's image is the path of a shared library of compiled kernels, or
// anything: then $EMULATOR_KERNELS is that path. $EMULATOR_CAPABILITY is the GPU's, as 90;
// $EMULATOR_GRANULE see `start`.
#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>

#include <chrono>

#include "runtime.h"
#include "cuda.h"

namespace {

enum { kMajor = 75, kMinor = 76, kNotSupported = 801 };

struct Config {  // as CUlaunchConfig begins
  unsigned grid[3], block[3], shared;
  void *stream, *attributes;
  unsigned attribute_count;
};

bool started, capturing;
using Clock = std::chrono::steady_clock;
using Graph = std::vector<Launch>;
Graph* captured;

void ensure_started() {
  if (started) return;
  started = true;
  const char* text = getenv("EMULATOR_GRANULE");
  start(text ? atoi(text) : 1);
}

}  // namespace

extern "C" {

int cuModuleLoadData(void** module, const char* image) {
  const char* usual = getenv("EMULATOR_KERNELS");
  const char* path = *image == '/' ? image : usual ? usual : "";
  void* kernels = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (!kernels) broken(dlerror());
  *module = dlsym(kernels, "emulator_kernels");
  return *module ? 0 : kNotSupported;
}
int cuModuleUnload(void*) { return 0; }
int cuModuleGetFunction(void** function, void* module, const char* name) {
  const EmulatorKernel* table = static_cast<EmulatorKernel*>(module);
  *function = const_cast<EmulatorKernel*>(find_kernel(table, name));
  return 0;
}
int cuLaunchKernelEx(const Config* config, void* function, void** arguments, void**) {
  Launch wanted;
  wanted.kernel = static_cast<const EmulatorKernel*>(function);
  for (int i = 0; i < 3; ++i) {
    wanted.grid[size_t(i)] = config->grid[i];
    wanted.block[size_t(i)] = config->block[i];
  }
  wanted.shared_bytes = config->shared;
  for (int i = 0; i < wanted.kernel->arguments; ++i)
    wanted.arguments.push_back(*static_cast<void**>(arguments[i]));
  if (capturing) {
    captured->push_back(wanted);
  } else {
    ensure_started();
    launch(wanted);
  }
  return 0;
}
int cuFuncSetAttribute(void*, int, int) { return 0; }
int cuGetErrorName(int, const char** name) { *name = "CUDA_ERROR"; return 0; }
int cuGetErrorString(int, const char** text) { *text = "an error of the emulated driver"; return 0; }
int cuDeviceGetName(char* name, int size, int) {
  strncpy(name, "emulated", size_t(size));
  return 0;
}
int cuTensorMapEncodeTiled() { return kNotSupported; }

int cudaGetDeviceCount(int* count) { *count = 1; return 0; }
int cudaGetDevice(int* device) { *device = 0; return 0; }
int cudaSetDevice(int) { return 0; }
int cudaDeviceGetAttribute(int* value, int attribute, int) {
  const char* text = getenv("EMULATOR_CAPABILITY");
  int capability = text ? atoi(text) : 90;
  *value = attribute == kMajor ? capability / 10 : attribute == kMinor ? capability % 10 : 1;
  return 0;
}
int cudaGetDeviceProperties(void*, int) { return kNotSupported; }
int cudaMalloc(void** place, size_t size) {
  ensure_started();
  *place = allocate("device memory", size, false);
  return 0;
}
int cudaFree(void* place) {
  if (place) deallocate(place);
  return 0;
}
int cudaMallocHost(void** place, size_t size) {
  *place = aligned_alloc(256, (size + 255) / 256 * 256);
  return *place ? 0 : 2;
}
int cudaFreeHost(void* place) { free(place); return 0; }
int cudaMemGetInfo(size_t* left, size_t* total) { *left = *total = size_t(1) << 34; return 0; }
int cudaMemcpyAsync(void* to, const void* from, size_t size, int kind, void*) {
  enum { kToDevice = 1, kOnDevice = 3 };
  if (capturing) broken("a copy in a CUDA graph");
  memcpy(to, from, size);
  if (kind == kToDevice || kind == kOnDevice) mark_initialised(to);
  return 0;
}
int cudaMemcpyPeerAsync() { return kNotSupported; }
int cudaStreamCreate(void** stream) { *stream = &capturing; return 0; }
int cudaStreamCreateWithFlags(void** stream, unsigned) { return cudaStreamCreate(stream); }
int cudaStreamDestroy(void*) { return 0; }
int cudaStreamSynchronize(void*) { return 0; }
int cudaStreamWaitEvent(void*, void*, unsigned) { return 0; }
int cudaStreamBeginCapture(void*, int) {
  capturing = true;
  captured = new Graph;
  return 0;
}
int cudaStreamEndCapture(void*, void** graph) {
  capturing = false;
  *graph = captured;
  return 0;
}
int cudaGraphInstantiate(void** executable, void* graph, unsigned long long) {
  *executable = new Graph(*static_cast<Graph*>(graph));
  return 0;
}
int cudaGraphLaunch(void* executable, void*) {
  for (const Launch& each : *static_cast<Graph*>(executable)) launch(each);
  return 0;
}
int cudaGraphDestroy(void* graph) { delete static_cast<Graph*>(graph); return 0; }
int cudaGraphExecDestroy(void* executable) { return cudaGraphDestroy(executable); }
int cudaEventCreate(void** event) { *event = new Clock::time_point; return 0; }
int cudaEventDestroy(void* event) { delete static_cast<Clock::time_point*>(event); return 0; }
int cudaEventRecord(void* event, void*) {
  *static_cast<Clock::time_point*>(event) = Clock::now();
  return 0;
}
int cudaEventSynchronize(void*) { return 0; }
int cudaEventElapsedTime(float* ms, void* begin, void* end) {  // of the emulation
  auto [from, to] = std::pair(*static_cast<Clock::time_point*>(begin), *static_cast<Clock::time_point*>(end));
  *ms = std::chrono::duration<float, std::milli>(to - from).count();
  return 0;
}
int cudaGetLastError() { return 0; }
int cudaPeekAtLastError() { return 0; }
const char* cudaGetErrorName(int) { return "cudaError"; }
const char* cudaGetErrorString(int) { return "an error of the emulated driver"; }
}
