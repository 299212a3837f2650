// A CUDA driver and runtime library without a GPU, for TVM's CUDA runtime in a test: memory is the
// CPU's, copies are done, launches are written to the file $FAKE_DRIVER_LOG and computed by nobody.
// $FAKE_CAPABILITY is the GPU's, as 90.
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { CAPACITY = 4096, MAJOR = 75, MINOR = 76, PROGRAMMATIC = 6 };
typedef struct {
  int id, padding, value[16];
} Attribute;  // as CUlaunchAttribute
typedef struct {
  unsigned grid[3], block[3], shared;  // as CUlaunchConfig begins
  void* stream;
  Attribute* attributes;
  unsigned attribute_count;
} Config;

static char functions[CAPACITY][128];
static int function_count, capturing, captured;

static void note(const char* format, ...) {
  FILE* log = fopen(getenv("FAKE_DRIVER_LOG"), "a");
  va_list arguments;
  va_start(arguments, format);
  vfprintf(log, format, arguments);
  va_end(arguments);
  fputc('\n', log);
  fclose(log);
}

// The driver's part.
int cuModuleLoadData(void** module, const char* image) {
  note("image %s", memcmp(image, "\177ELF", 4) ? "ptx" : "cubin");
  *module = (void*)1;
  return 0;
}
int cuModuleUnload(void* module) { return 0; }
int cuModuleGetFunction(void** function, void* module, const char* name) {
  strncpy(functions[function_count], name, 127);
  *function = functions[function_count++];
  return 0;
}
int cuLaunchKernelEx(const Config* c, void* function, void** arguments, void** extra) {
  captured += capturing;
  int early = 0;
  for (unsigned i = 0; i < c->attribute_count; ++i)
    early |= c->attributes[i].id == PROGRAMMATIC && c->attributes[i].value[0] == 1;
  note("%s %s %u %u %u %u %u %u %u%s", capturing ? "record" : "launch", (char*)function,
       c->grid[0], c->grid[1], c->grid[2], c->block[0], c->block[1], c->block[2], c->shared,
       early ? " early" : "");
  return 0;
}
int cuFuncSetAttribute(void* function, int attribute, int value) { return 0; }
int cuGetErrorName(int error, const char** name) { *name = "FAKE_ERROR"; return 0; }
int cuGetErrorString(int error, const char** text) { *text = "a fake error"; return 0; }
int cuDeviceGetName(char* name, int size, int device) { strncpy(name, "Fake", size); return 0; }
int cuTensorMapEncodeTiled(void) { return 801; }

// The runtime library's part.
int cudaGetDeviceCount(int* count) { *count = 1; return 0; }
int cudaGetDevice(int* device) { *device = 0; return 0; }
int cudaSetDevice(int device) { return 0; }
int cudaDeviceGetAttribute(int* value, int attribute, int device) {
  int capability = atoi(getenv("FAKE_CAPABILITY"));
  *value = attribute == MAJOR ? capability / 10 : attribute == MINOR ? capability % 10 : 1;
  return 0;
}
int cudaGetDeviceProperties(void* properties, int device) { return 801; }
int cudaMalloc(void** place, size_t size) {
  *place = aligned_alloc(256, (size + 255) / 256 * 256);
  return *place ? 0 : 2;
}
int cudaFree(void* place) { free(place); return 0; }
int cudaMallocHost(void** place, size_t size) { return cudaMalloc(place, size); }
int cudaFreeHost(void* place) { return cudaFree(place); }
int cudaMemGetInfo(size_t* left, size_t* total) { *left = *total = 1ul << 34; return 0; }
int cudaMemcpyAsync(void* to, const void* from, size_t size, int kind, void* stream) {
  note("copy %d %zu", kind, size);
  memcpy(to, from, size);
  return 0;
}
int cudaMemcpyPeerAsync(void) { return 801; }
int cudaStreamCreate(void** stream) { *stream = (void*)2; return 0; }
int cudaStreamCreateWithFlags(void** stream, unsigned flags) { return cudaStreamCreate(stream); }
int cudaStreamDestroy(void* stream) { return 0; }
int cudaStreamSynchronize(void* stream) { return 0; }
int cudaStreamWaitEvent(void* stream, void* event, unsigned flags) { return 0; }
int cudaStreamBeginCapture(void* stream, int mode) { capturing = 1; captured = 0; return 0; }
int cudaStreamEndCapture(void* stream, void** graph) { capturing = 0; *graph = (void*)3; return 0; }
int cudaGraphInstantiate(void** executable, void* graph, unsigned long long flags) {
  *executable = (void*)4;
  return 0;
}
int cudaGraphLaunch(void* executable, void* stream) { note("graph %d", captured); return 0; }
int cudaGraphDestroy(void* graph) { return 0; }
int cudaGraphExecDestroy(void* executable) { return 0; }
int cudaEventCreate(void** event) { *event = (void*)5; return 0; }
int cudaEventDestroy(void* event) { return 0; }
int cudaEventRecord(void* event, void* stream) { return 0; }
int cudaEventSynchronize(void* event) { return 0; }
int cudaEventElapsedTime(float* ms, void* start, void* end) { *ms = 1; return 0; }
int cudaGetLastError(void) { return 0; }
int cudaPeekAtLastError(void) { return 0; }
const char* cudaGetErrorName(int error) { return "fakeError"; }
const char* cudaGetErrorString(int error) { return "a fake error"; }
