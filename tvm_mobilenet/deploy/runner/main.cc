// Runs the bundle with TVM's runtime alone: proves parity on the stored samples, or times it.
//
//   runner [--bundle DIR] [--threads N] [--repeat N]
//
// Without --repeat: runs every sample and holds the outputs against PyTorch's, float32 and float64,
// by the rule of the build (see parity in manifest.json). With --repeat: that, then N timed runs.
// Exit codes: 0 done; 2 usage; 3 the bundle cannot be used; 5 parity failed.

#include <tvm/ffi/container/array.h>
#include <tvm/ffi/container/map.h>
#include <tvm/ffi/container/tensor.h>
#include <tvm/ffi/extra/json.h>
#include <tvm/ffi/extra/module.h>
#include <tvm/ffi/function.h>

#include <filesystem>
#include <thread>

#include "common.h"
#include "npz.h"

namespace ffi = tvm::ffi;
namespace json = tvm::ffi::json;

struct Options {
  std::string bundle = BUNDLE_DIRECTORY;
  int threads = 0;  // 0: as the bundle was built, else one for each usable CPU
  int repeat = 0;
};

constexpr char kUsage[] = "[--bundle DIR] [--threads N] [--repeat N]";

struct Allocator {  // compiled code loads whole vectors from its inputs
  static constexpr size_t kAlignment = 64;
  void AllocData(DLTensor* tensor) {
    const size_t bytes = ffi::GetDataSize(*tensor);
    tensor->data = std::aligned_alloc(kAlignment, (bytes / kAlignment + 1) * kAlignment);
    if (tensor->data == nullptr) throw std::bad_alloc();
  }
  void FreeData(DLTensor* tensor) { std::free(tensor->data); }
};

ffi::Tensor to_tensor(const npz::Array& array) {
  const uint8_t bits = array.dtype == "<f8" ? 64 : 32;
  ffi::Tensor tensor = ffi::Tensor::FromNDAlloc(
      Allocator(), ffi::ShapeView(array.shape.data(), array.shape.size()),
      DLDataType{kDLFloat, bits, 1}, DLDevice{kDLCPU, 0});
  std::memcpy(tensor.data_ptr(), array.bytes.data(), array.bytes.size());
  return tensor;
}

// The model in TVM's virtual machine.
class Model {
 public:
  explicit Model(const std::string& path)
      : library_(ffi::Module::LoadFromFile(path)),
        machine_(function(library_, "vm_load_executable")().cast<ffi::Module>()) {
    constexpr int kPooledAllocator = 2;
    function(machine_, "vm_initialization")(static_cast<int>(kDLCPU), 0, kPooledAllocator);
    main_ = function(machine_, "main");
  }

  std::vector<ffi::Tensor> run(const std::vector<ffi::Tensor>& inputs) const {
    const std::vector<ffi::AnyView> arguments(inputs.begin(), inputs.end());
    ffi::Any result;
    main_.CallPacked(arguments.data(), static_cast<int>(arguments.size()), &result);
    if (auto single = result.as<ffi::Tensor>()) return {*single};
    std::vector<ffi::Tensor> outputs;
    for (const ffi::Tensor& output : result.cast<ffi::Array<ffi::Tensor>>()) {
      outputs.push_back(output);
    }
    return outputs;
  }

 private:
  static ffi::Function function(const ffi::Module& module, const char* name) {
    return module->GetFunction(name).value();
  }

  ffi::Module library_;
  ffi::Module machine_;
  ffi::Function main_;
};

json::Object read_manifest(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  const std::string text((std::istreambuf_iterator<char>(file)), {});
  if (text.empty()) throw std::runtime_error(path + " is missing or empty");
  return json::Parse(text).cast<json::Object>();
}

// A truncated library would end the process: sizes are compared, hashes only by the Python runtime.
void check_sizes(const std::string& bundle, const json::Object& files) {
  for (const auto& [name, entry] : files) {
    const std::string path = bundle + "/" + std::string(name.cast<ffi::String>());
    std::error_code error;
    const auto size = std::filesystem::file_size(path, error);
    if (error || static_cast<int64_t>(size) != entry.cast<json::Object>()["size"].cast<int64_t>()) {
      throw std::runtime_error(path + " is missing or differs from what was built");
    }
  }
}

std::vector<int> affinity(const json::Object& target) {
  std::vector<int> cpus;
  if (target.count("affinity") == 0) return cpus;
  for (const ffi::Any& entry : target["affinity"].cast<json::Array>()) {
    cpus.push_back(entry.cast<int>());
  }
  return cpus;
}

std::vector<std::string> cpu_features(const json::Object& target) {
  std::vector<std::string> names;
  for (const ffi::Any& entry : target["cpu_features"].cast<json::Array>()) {
    names.push_back(entry.cast<std::string>());
  }
  return names;
}

// Spreads work over `threads` of the CPUs usable here, and binds no thread to one of them. Where
// `affinity` has CPUs that are usable here, only those: the kind of core the bundle was built for.
void use_threads(int threads, const std::vector<int>& affinity) {
  ffi::Array<ffi::String> cpus;
#ifdef __linux__
  const cpu_set_t usable = choose_cpus(affinity);
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (CPU_ISSET(cpu, &usable)) cpus.push_back(std::to_string(cpu));
  }
#else
  (void)affinity;
  for (unsigned cpu = 0; cpu < std::thread::hardware_concurrency(); ++cpu) {
    cpus.push_back(std::to_string(cpu));
  }
#endif
  const int most = static_cast<int>(cpus.size());
  threads = threads == 0 ? most : std::min(threads, most);
  constexpr int kShareAllCores = -3;
  const auto configure = ffi::Function::GetGlobalRequired("runtime.config_threadpool");
  configure(kShareAllCores, most, cpus);  // creates the pool in full: it cannot grow
  configure(kShareAllCores, threads, cpus, threads);  // on one thread, work skips the pool
}

bool prove_parity(const Model& model, const std::map<std::string, npz::Array>& samples,
                  const json::Object& manifest) {
  const auto parity = manifest["parity"].cast<json::Object>();
  const auto factor = parity["factor"].cast<double>();
  const auto floor_ulps = parity["floor_ulps"].cast<double>();
  const auto inputs = manifest["inputs"].cast<json::Array>();
  const auto outputs = manifest["outputs"].cast<json::Array>();
  std::vector<Errors> errors(outputs.size());
  int count = 0;
  for (; samples.count(std::to_string(count) + ".input.0"); ++count) {
    const std::string sample = std::to_string(count);
    std::vector<ffi::Tensor> arguments;
    for (size_t i = 0; i < inputs.size(); ++i) {
      arguments.push_back(to_tensor(samples.at(sample + ".input." + std::to_string(i))));
    }
    const std::vector<ffi::Tensor> results = model.run(arguments);
    for (size_t i = 0; i < outputs.size(); ++i) {
      const npz::Array& torch32 = samples.at(sample + ".float32." + std::to_string(i));
      const npz::Array& exact = samples.at(sample + ".float64." + std::to_string(i));
      if (results.at(i).numel() != static_cast<int64_t>(exact.size())) {
        throw std::runtime_error("an output's size differs from the sample's");
      }
      const float* got = static_cast<const float*>(results[i].data_ptr());
      for (size_t j = 0; j < exact.size(); ++j) errors[i].add(got[j], torch32[j], exact[j]);
    }
  }
  if (count == 0) throw std::runtime_error("the bundle has no samples");
  bool passed = true;
  for (size_t i = 0; i < outputs.size(); ++i) {
    const auto name = outputs[i].cast<json::Object>()["name"].cast<std::string>();
    passed = verdict(name, errors[i], factor, floor_ulps) && passed;
  }
  std::printf("parity %s on %d samples\n", passed ? "passed" : "failed", count);
  return passed;
}

void measure(const Model& model, const std::map<std::string, npz::Array>& samples, size_t inputs,
             int repeat) {
  std::vector<ffi::Tensor> arguments;
  for (size_t i = 0; i < inputs; ++i) {
    arguments.push_back(to_tensor(samples.at("0.input." + std::to_string(i))));
  }
  measure(repeat, [&] { model.run(arguments); });
}

int main(int argc, char** argv) {
  Options options;
  parse(argc, argv, kUsage, {{"--bundle", &options.bundle}},
        {{"--threads", &options.threads}, {"--repeat", &options.repeat}});
  try {
    const json::Object manifest = read_manifest(options.bundle + "/manifest.json");
    check_sizes(options.bundle, manifest["files"].cast<json::Object>());
    const auto target = manifest["target"].cast<json::Object>();
    check_cpu(cpu_features(target));
    const auto stored_threads = manifest["threads"].as<int>().value_or(0);
    use_threads(options.threads > 0 ? options.threads : stored_threads, affinity(target));
    const auto samples = npz::load(options.bundle + "/samples.npz");
    const Model model(options.bundle + "/model.so");
    if (!prove_parity(model, samples, manifest)) return 5;
    if (options.repeat > 0) {
      measure(model, samples, manifest["inputs"].cast<json::Array>().size(), options.repeat);
    }
  } catch (const std::exception& error) {
    std::fprintf(stderr, "runner: %s\n", error.what());
    return 3;
  }
  return 0;
}
