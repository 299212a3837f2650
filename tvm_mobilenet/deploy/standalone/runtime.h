// The little that compiled kernels need while they run: threads, scratch memory, error messages.
#pragma once

#include <memory>
#include <string>
#include <vector>

namespace runtime {

class Pool;

// Threads to spread kernels over, `threads` with the caller (0: one for each usable CPU). Where
// `affinity` has CPUs that are usable here, the calling thread and the pool's are bound to them.
std::shared_ptr<Pool> make_pool(int threads, const std::vector<int>& affinity);

// While it lives, kernels that the calling thread runs are spread over the pool.
class Use {
 public:
  explicit Use(Pool& pool);
  ~Use();
  Use(const Use&) = delete;
  Use& operator=(const Use&) = delete;
};

// The message of the error that a kernel ended with.
std::string last_error();

// The program or the shared library that this code is in.
std::string this_file();

}  // namespace runtime
