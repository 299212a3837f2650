// A model that is ready to run. Two sources implement it: model.cc of runner/ with TVM's virtual
// machine, and that of standalone/ with the kernels linked in.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <functional>
#include <memory>
#include <mutex>
#include <new>
#include <string>
#include <vector>

struct TensorInfo {
  std::string name, dtype;
  std::vector<int64_t> shape;
  size_t bytes;
  std::string values;  // of an output: "scores" or "probabilities"

  // Its bytes with another first axis.
  size_t bytes_of(int64_t batch) const {
    if (shape.empty() || shape[0] < 1) return bytes;
    return bytes / static_cast<size_t>(shape[0]) * static_cast<size_t>(batch);
  }
};

class Model {
 public:
  // Opens a bundle's directory ("": where the build says). verify: compare files with their hashes.
  // threads: 0 as it was built, else one for each usable CPU. Throws std::runtime_error.
  Model(const std::string& bundle, int threads, bool verify);
  ~Model();

  // Reads inputs[i] and writes outputs[i]; calls from several threads take turns. batch: the size
  // of their first axis, 0 for that in `inputs`; one without kernels of its own runs in parts.
  // Throws std::runtime_error for one that is no sum of compiled ones.
  void run(const void* const* inputs, void* const* outputs, int64_t batch = 0);

  // The compiled network alone on the inputs of the last run: what `run` is measured against.
  void bare_call();

  // After each operator of `run` this gets its float32 result, to read and to change, and the
  // result's size; no elements for a result of another type. Throws std::runtime_error where the
  // network is not linked in.
  void observe(std::function<void(float* result, size_t elements)> observer);

  std::vector<TensorInfo> inputs, outputs;
  std::string name, target, samples;  // samples: a file
  double factor = 0, floor_ulps = 0, few_values = 0;  // the parity rule's
  int threads = 0;
  bool verified = false;
  // Bytes of an input or output at a batch size. As compiled first, tensors may differ in their
  // first axis; another batch has one for all.
  size_t bytes_for(const TensorInfo& tensor, int64_t batch) const {
    return batch == batches[0] ? tensor.bytes : tensor.bytes_of(batch);
  }

  std::vector<int64_t> batches;  // sizes that were compiled, first that of `inputs`
  bool divisible = false;        // whether it runs other sizes in parts

 private:
  struct Engine;
  void run_compiled(size_t which, const void* const* inputs, void* const* outputs);
  std::vector<size_t> parts(int64_t batch) const;  // places in `batches`, largest first
  std::unique_ptr<Engine> engine_;
  std::mutex mutex_;
};

constexpr size_t kAlignment = 64;  // bytes; compiled code loads whole vectors from its inputs

inline bool is_aligned(const void* data) {
  return reinterpret_cast<uintptr_t>(data) % kAlignment == 0;
}

struct Free {
  void operator()(char* memory) const { std::free(memory); }
};
using Memory = std::unique_ptr<char, Free>;

inline Memory allocate(size_t bytes) {
  void* memory = std::aligned_alloc(kAlignment, (bytes / kAlignment + 1) * kAlignment);
  if (memory == nullptr) throw std::bad_alloc();
  return Memory(static_cast<char*>(memory));
}
