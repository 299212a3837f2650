// Launches kernels on the CPU by a plan.
//
// Usage: program PLAN INPUTS OUTPUTS. Lines of PLAN:
//   granule BYTES                  of what shadow cells are kept; the first line
//   tensor NAME BYTES INITIALISED  numbered from 0; initialised ones come from INPUTS, in order
//   launch KERNEL GX GY GZ BX BY BZ SHARED_BYTES TENSOR...
//   output TENSOR                  written to OUTPUTS, in order
#include <stdio.h>
#include <unistd.h>

#include <fstream>
#include <sstream>

#include "cuda.h"
#include "runtime.h"

int main(int count, char** values) {
  if (count != 4) broken("usage: program PLAN INPUTS OUTPUTS");
  std::ifstream plan(values[1]), inputs(values[2], std::ios::binary);
  std::ofstream outputs(values[3], std::ios::binary);
  struct Tensor {
    char* place;
    std::streamsize bytes;
  };
  std::vector<Tensor> tensors;
  for (std::string line; std::getline(plan, line);) {
    std::istringstream words(line);
    std::string word, name;
    size_t number;
    words >> word;
    if (word == "granule") {
      int bytes;
      words >> bytes;
      start(bytes);
    } else if (word == "tensor") {
      size_t bytes;
      bool initialised;
      words >> name >> bytes >> initialised;
      tensors.push_back({static_cast<char*>(allocate(name, bytes, initialised)), std::streamsize(bytes)});
      if (initialised) inputs.read(tensors.back().place, tensors.back().bytes);
      if (!inputs) broken("INPUTS is too short");
    } else if (word == "launch") {
      Launch wanted;
      words >> name;
      wanted.kernel = find_kernel(emulator_kernels, name);
      for (unsigned& extent : wanted.grid) words >> extent;
      for (unsigned& extent : wanted.block) words >> extent;
      words >> wanted.shared_bytes;
      while (words >> number) wanted.arguments.push_back(tensors.at(number).place);
      launch(wanted);
    } else if (word == "output") {
      words >> number;
      outputs.write(tensors.at(number).place, tensors.at(number).bytes);
    } else {
      broken("PLAN: " + line);
    }
  }
  outputs.flush();
  if (!outputs) broken("OUTPUTS cannot be written");
  fflush(nullptr);
  _exit(0);
}
