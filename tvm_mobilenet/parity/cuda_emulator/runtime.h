// What program.cc and driver.cc ask of the emulator in runtime.cc.
#pragma once
#include <array>
#include <cstddef>
#include <string>
#include <vector>

struct EmulatorKernel;

struct Launch {
  const EmulatorKernel* kernel;
  std::array<unsigned, 3> grid, block;
  size_t shared_bytes;  // dynamic
  std::vector<void*> arguments;  // pointers to buffers
};

// Ends the process with exit code 4: it is not a kernel's mistake.
[[noreturn]] void broken(const std::string& message);

// Before anything else. granule_bytes: of the smallest values that the kernels touch.
void start(int granule_bytes);

// A buffer of the GPU. Of one that is not initialised, only what a kernel wrote may be read.
void* allocate(const std::string& name, size_t bytes, bool initialised);
void deallocate(void* place);
void mark_initialised(void* place);

// Of a table that ends with a kernel without a name, as `emulator_kernels` of the kernels' source.
const EmulatorKernel* find_kernel(const EmulatorKernel* table, const std::string& name);
void launch(const Launch& wanted);
