// The little that compiled kernels need while they run: threads, scratch memory, error messages.
#pragma once

#include <string>
#include <vector>

namespace runtime {

// Spreads kernels over `threads` threads (0: one for each usable CPU). Where `affinity` has CPUs
// that are usable here, the process is bound to them first.
void use_threads(int threads, const std::vector<int>& affinity);

// The message of the error that a kernel ended with.
std::string last_error();

}  // namespace runtime
