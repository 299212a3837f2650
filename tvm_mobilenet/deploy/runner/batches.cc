// A batch of any size on the sizes that were compiled; the same for both engines.
#include <algorithm>
#include <stdexcept>

#include "model.h"

std::vector<size_t> Model::parts(int64_t batch) const {
  std::vector<size_t> order(batches.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = i;
  std::sort(order.begin(), order.end(),
            [&](size_t a, size_t b) { return batches[a] > batches[b]; });
  std::vector<size_t> found;
  int64_t left = batch;
  for (const size_t i : order) {
    for (; batches[i] > 0 && left >= batches[i]; left -= batches[i]) found.push_back(i);
  }
  if (batch < 1 || left != 0 || (!divisible && batch != batches[0])) {
    std::string sizes;
    for (const size_t i : order) sizes = std::to_string(batches[i]) + (sizes.empty() ? "" : ", ") + sizes;
    throw std::runtime_error("a batch of " + std::to_string(batch) + " cannot be run: it takes " +
                             (divisible ? "sums of " : "") + sizes);
  }
  return found;
}

void Model::run(const void* const* in, void* const* out, int64_t batch) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (batch == 0 || batch == batches[0]) return run_compiled(0, in, out);
  std::vector<const void*> from(in, in + inputs.size());
  std::vector<void*> to(out, out + outputs.size());
  for (const size_t part : parts(batch)) {
    run_compiled(part, from.data(), to.data());
    for (size_t i = 0; i < inputs.size(); ++i) {
      from[i] = static_cast<const char*>(from[i]) + bytes_for(inputs[i], batches[part]);
    }
    for (size_t i = 0; i < outputs.size(); ++i) {
      to[i] = static_cast<char*>(to[i]) + bytes_for(outputs[i], batches[part]);
    }
  }
}
