#include "model.h"
#include "tvm_mobilenet.h"

#include <exception>

struct TmModel {
  Model model;
};

namespace {

thread_local std::string error;

int fail(int code, const std::string& why) {
  error = why;
  return code;
}

// Runs `work`; no exception leaves it.
template <class Work>
int guarded(const Work& work) {
  try {
    error.clear();
    return work();
  } catch (const std::exception& problem) {
    return fail(TM_BAD_INPUT, problem.what());
  } catch (...) {
    return fail(TM_BAD_INPUT, "unknown error");
  }
}

int describe(const std::vector<TensorInfo>& tensors, int index, TmTensor* info) {
  error.clear();
  if (info == nullptr || index < 0 || index >= static_cast<int>(tensors.size())) {
    return fail(TM_USAGE, "there is no tensor " + std::to_string(index));
  }
  const TensorInfo& tensor = tensors[static_cast<size_t>(index)];
  *info = {tensor.name.c_str(), tensor.dtype.c_str(), tensor.shape.data(),
           static_cast<int32_t>(tensor.shape.size()), tensor.bytes};
  return TM_OK;
}

bool any_null(const void* const* pointers, size_t count) {
  for (size_t i = 0; i < count; ++i) {
    if (pointers[i] == nullptr) return true;
  }
  return false;
}

}  // namespace

int tm_api_version(void) { return TM_API_VERSION; }

int tm_open(const char* bundle, int threads, TmModel** model) {
  if (model == nullptr) return fail(TM_USAGE, "model is NULL");
  *model = nullptr;
  if (threads < 0) return fail(TM_USAGE, "threads is negative");
  return guarded([&] {
    *model = new TmModel{{bundle == nullptr ? "" : bundle, threads, true}};
    return static_cast<int>(TM_OK);
  });
}

int tm_input_count(const TmModel* model) { return static_cast<int>(model->model.inputs.size()); }
int tm_output_count(const TmModel* model) { return static_cast<int>(model->model.outputs.size()); }

int tm_input(const TmModel* model, int index, TmTensor* info) {
  return describe(model->model.inputs, index, info);
}

int tm_output(const TmModel* model, int index, TmTensor* info) {
  return describe(model->model.outputs, index, info);
}

int tm_run(TmModel* model, const void* const* inputs, void* const* outputs) {
  return tm_run_batch(model, model == nullptr ? 1 : model->model.batches[0], inputs, outputs);
}

int tm_batches(const TmModel* model, int64_t* sizes, int capacity) {
  const std::vector<int64_t>& batches = model->model.batches;
  for (size_t i = 0; i < batches.size() && static_cast<int>(i) < capacity; ++i) sizes[i] = batches[i];
  return static_cast<int>(batches.size());
}

int tm_run_batch(TmModel* model, int64_t batch, const void* const* inputs, void* const* outputs) {
  if (model == nullptr || inputs == nullptr || outputs == nullptr ||
      any_null(inputs, model->model.inputs.size()) ||
      any_null(outputs, model->model.outputs.size())) {
    return fail(TM_USAGE, "a pointer is NULL");
  }
  if (batch < 1) return fail(TM_USAGE, "batch is less than 1");
  return guarded([&] {
    model->model.run(inputs, outputs, batch);
    return static_cast<int>(TM_OK);
  });
}

void tm_close(TmModel* model) { delete model; }

const char* tm_error(void) { return error.c_str(); }
