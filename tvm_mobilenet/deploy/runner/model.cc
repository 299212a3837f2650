// The model in TVM's virtual machine, of a bundle whose files are as its manifest says.
#include "model.h"

#include <tvm/ffi/container/array.h>
#include <tvm/ffi/container/map.h>
#include <tvm/ffi/container/tensor.h>
#include <tvm/ffi/extra/json.h>
#include <tvm/ffi/extra/module.h>
#include <tvm/ffi/function.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <thread>

#include "cpu.h"
#include "sha256.h"

namespace ffi = tvm::ffi;
namespace fs = std::filesystem;
namespace json = tvm::ffi::json;

namespace {

constexpr int kOldestSchema = 1, kNewestSchema = 3;  // runtime/manifest.py's

std::string text_of(const json::Object& object, const char* key) {
  return object[key].cast<std::string>();
}

// The manifest's last key is the SHA-256 of its text with that key's digits as zeros.
bool seal_holds(std::string text) {
  const std::string key = "\"manifest_sha256\": \"";
  const size_t at = text.rfind(key);
  constexpr size_t kDigits = 64;
  if (at == std::string::npos || at + key.size() + kDigits > text.size()) return false;
  const std::string found = text.substr(at + key.size(), kDigits);
  text.replace(at + key.size(), kDigits, kDigits, '0');
  Sha256 hash;
  hash.add(text.data(), text.size());
  return hash.hex() == found;
}

json::Object read_manifest(const std::string& directory, bool verify) {
  const std::string path = directory + "/manifest.json";
  std::ifstream file(path, std::ios::binary);
  const std::string text((std::istreambuf_iterator<char>(file)), {});
  if (text.empty()) throw std::runtime_error(path + " is missing or empty");
  const auto manifest = json::Parse(text).cast<json::Object>();
  if (manifest.count("format") == 0 || text_of(manifest, "format") != "tvm-mobilenet bundle") {
    throw std::runtime_error(path + " is not the manifest of a bundle");
  }
  const auto version = manifest["schema_version"].cast<int>();
  if (version < kOldestSchema || version > kNewestSchema) {
    throw std::runtime_error(path + " has schema version " + std::to_string(version) +
                             ", unknown to this runner");
  }
  if (verify && !seal_holds(text)) throw std::runtime_error(path + " differs from what was built");
  return manifest;
}

void refuse_outside(const std::string& name) {
  bool inside = !name.empty() && name.find('\\') == std::string::npos;
  size_t start = 0;
  while (inside && start <= name.size()) {
    const size_t end = std::min(name.find('/', start), name.size());
    const std::string part = name.substr(start, end - start);
    inside = !part.empty() && part != "." && part != "..";
    start = end + 1;
  }
  if (!inside) throw std::runtime_error("file name '" + name + "' leads out of the bundle");
}

// Sizes always: a truncated library would end the process. Content with `verify`.
void check_files(const std::string& directory, const json::Object& files, bool verify) {
  for (const auto& [key, value] : files) {
    const auto name = key.cast<std::string>();
    const auto entry = value.cast<json::Object>();
    refuse_outside(name);
    for (fs::path part = name; !part.empty(); part = part.parent_path()) {
      if (fs::is_symlink(directory / part)) {
        throw std::runtime_error((directory / part).string() + " is a link");
      }
    }
    const std::string path = directory + "/" + name;
    std::error_code error;
    const auto size = fs::file_size(path, error);
    if (error || static_cast<int64_t>(size) != entry["size"].cast<int64_t>() ||
        (verify && sha256_of_file(path, size) != text_of(entry, "sha256"))) {
      throw std::runtime_error(path + " is missing or differs from what was built");
    }
  }
}

template <class T>
std::vector<T> list(const json::Object& object, const char* key) {
  std::vector<T> values;
  if (object.count(key) == 0) return values;
  for (const ffi::Any& value : object[key].cast<json::Array>()) values.push_back(value.cast<T>());
  return values;
}

#if defined(__x86_64__)
constexpr char kArchitecture[] = "x86_64";
#elif defined(__aarch64__)
constexpr char kArchitecture[] = "aarch64";
#else
constexpr char kArchitecture[] = "armv7";
#endif

// In a bundle for several targets the directory of the first that can run here; else `directory`.
std::string choose(const std::string& directory, const json::Object& manifest, bool verify) {
  if (manifest.count("variants") == 0) return directory;
  for (const ffi::Any& value : manifest["variants"].cast<json::Array>()) {
    const auto variant = value.cast<json::Object>();
    const auto features = list<std::string>(variant, "cpu_features");
    if (text_of(variant, "architecture") != kArchitecture ||
        !std::all_of(features.begin(), features.end(), cpu_has)) {
      continue;
    }
    const std::string path = text_of(variant, "path");
    refuse_outside(path);
    const std::string name = path + "/manifest.json";
    const auto entry = manifest["files"].cast<json::Object>()[name].cast<json::Object>();
    check_files(directory, json::Object{{ffi::String(name), entry}}, verify);
    return directory + "/" + path;
  }
  throw std::runtime_error(directory + " has nothing for this machine");
}

DLDataType to_dtype(const std::string& name) {
  DLDataType dtype;
  const TVMFFIByteArray text{name.data(), name.size()};
  if (TVMFFIDataTypeFromString(&text, &dtype) != 0) throw std::runtime_error("no dtype: " + name);
  return dtype;
}

std::vector<TensorInfo> tensors(const json::Object& manifest, const char* key) {
  std::vector<TensorInfo> found;
  for (const ffi::Any& value : manifest[key].cast<json::Array>()) {
    const auto entry = value.cast<json::Object>();
    TensorInfo tensor{text_of(entry, "name"), text_of(entry, "dtype"),
                      list<int64_t>(entry, "shape"), 0, ""};
    if (entry.count("values") > 0) tensor.values = text_of(entry, "values");
    size_t elements = 1;
    for (const int64_t extent : tensor.shape) elements *= static_cast<size_t>(extent);
    tensor.bytes = ffi::GetDataSize(elements, to_dtype(tensor.dtype));
    found.push_back(tensor);
  }
  return found;
}

struct Borrowed {  // memory of somebody else's, as a tensor
  void* data;
  void AllocData(DLTensor* tensor) { tensor->data = data; }
  void FreeData(DLTensor*) {}
};

ffi::Function function(const ffi::Module& module, const char* name) {
  auto found = module->GetFunction(name);
  if (!found.has_value()) throw std::runtime_error(std::string("model.so has no ") + name);
  return found.value();
}

// Spreads the calling thread's work over `threads` of the CPUs usable here (0: all), and binds no
// thread to one of them. Where `affinity` has CPUs that are usable here, only those: the kind of
// core that the bundle was built for. TVM keeps a pool for each calling thread.
void use_threads(int threads, const std::vector<int>& affinity) {
  thread_local int configured = -1;
  if (configured == threads) return;
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
  constexpr int kShareAllCores = -3;
  const auto configure = ffi::Function::GetGlobalRequired("runtime.config_threadpool");
  configure(kShareAllCores, most, cpus);  // creates the pool in full: it cannot grow
  const int count = threads == 0 ? most : std::min(threads, most);
  configure(kShareAllCores, count, cpus, count);  // on one thread, work skips the pool
  configured = threads;
}

}  // namespace

struct Model::Engine {
  Engine(const std::string& path, const std::vector<TensorInfo>& inputs,
         const std::vector<std::string>& names)
      : library(ffi::Module::LoadFromFile(path)),
        machine(function(library, "vm_load_executable")().cast<ffi::Module>()) {
    constexpr int kPooledAllocator = 2;
    function(machine, "vm_initialization")(static_cast<int>(kDLCPU), 0, kPooledAllocator);
    for (const std::string& name : names) entries.push_back(function(machine, name.c_str()));
    for (const TensorInfo& input : inputs) dtypes.push_back(to_dtype(input.dtype));
    arguments.resize(inputs.size());
    copies.resize(inputs.size());
  }

  void call(ffi::Any* result) {
    const std::vector<ffi::AnyView> views(arguments.begin(), arguments.end());
    entries[last].CallPacked(views.data(), static_cast<int>(views.size()), result);
  }

  ffi::Module library, machine;
  std::vector<ffi::Function> entries;  // by the model's batches
  size_t last = 0;                     // what ran last
  std::vector<DLDataType> dtypes;
  std::vector<ffi::Tensor> arguments;
  std::vector<Memory> copies;  // of inputs that are not aligned
  std::vector<int> affinity;
};

Model::Model(const std::string& bundle, int threads_, bool verify) : verified(verify) {
  const std::string top = bundle.empty() ? "." : bundle;
  const std::string directory = choose(top, read_manifest(top, verify), verify);
  const json::Object manifest = read_manifest(directory, verify);
  check_files(directory, manifest["files"].cast<json::Object>(), verify);
  const auto described = manifest["target"].cast<json::Object>();
  check_cpu(list<std::string>(described, "cpu_features"));
  const auto parity = manifest["parity"].cast<json::Object>();
  factor = parity["factor"].cast<double>();
  floor_ulps = parity["floor_ulps"].cast<double>();
  if (parity.count("few_values") > 0) few_values = parity["few_values"].cast<double>();
  inputs = tensors(manifest, "inputs");
  outputs = tensors(manifest, "outputs");
  name = text_of(manifest["model"].cast<json::Object>(), "name");
  target = text_of(described, "name");
  samples = directory + "/samples.npz";
  threads = threads_ > 0 ? threads_ : manifest["threads"].as<int>().value_or(0);
  const std::vector<int> affinity = list<int>(described, "affinity");
  use_threads(threads, affinity);  // before the library's code starts a pool of TVM's choice
  const std::vector<int64_t>& shape = inputs.at(0).shape;
  batches.push_back(shape.empty() ? 1 : shape[0]);
  std::vector<std::string> names = {"main"};
  if (manifest.count("entries") > 0) {  // not in older manifests
    for (const ffi::Any& value : manifest["entries"].cast<json::Array>()) {
      const auto entry = value.cast<json::Object>();
      batches.push_back(entry["batch"].cast<int64_t>());
      names.push_back(text_of(entry, "name"));
    }
  }
  divisible = !list<int64_t>(manifest, "batches").empty();
  engine_ = std::make_unique<Engine>(fs::absolute(directory + "/model.so").string(), inputs, names);
  engine_->affinity = affinity;
}

Model::~Model() = default;

void Model::run_compiled(size_t which, const void* const* in, void* const* out) {
  use_threads(threads, engine_->affinity);
  engine_->last = which;
  const int64_t batch = batches[which];
  const int64_t most = *std::max_element(batches.begin(), batches.end());
  for (size_t i = 0; i < inputs.size(); ++i) {
    void* data = const_cast<void*>(in[i]);
    if (!is_aligned(data)) {
      if (!engine_->copies[i]) engine_->copies[i] = allocate(bytes_for(inputs[i], most));
      data = std::memcpy(engine_->copies[i].get(), data, bytes_for(inputs[i], batch));
    }
    std::vector<int64_t> extents = inputs[i].shape;
    if (!extents.empty() && which > 0) extents[0] = batch;
    const ffi::ShapeView shape(extents.data(), extents.size());
    engine_->arguments[i] = ffi::Tensor::FromNDAlloc(Borrowed{data}, shape, engine_->dtypes[i],
                                                     DLDevice{kDLCPU, 0});
  }
  ffi::Any result;
  engine_->call(&result);
  const auto write = [&](size_t i, const ffi::Tensor& tensor) {
    const size_t bytes = bytes_for(outputs.at(i), batch);
    if (tensor.numel() * tensor.dtype().bits / 8 != static_cast<int64_t>(bytes)) {
      throw std::runtime_error("output " + outputs[i].name + " differs in size from the manifest");
    }
    std::memcpy(out[i], tensor.data_ptr(), bytes);
  };
  if (const auto single = result.as<ffi::Tensor>()) {
    write(0, *single);
    return;
  }
  size_t i = 0;
  for (const ffi::Tensor& tensor : result.cast<ffi::Array<ffi::Tensor>>()) write(i++, tensor);
}

void Model::bare_call() {
  ffi::Any result;
  engine_->call(&result);
}

void Model::observe(std::function<void(float*, size_t)>) {
  throw std::runtime_error("--trace is for a program that has its network linked in");
}
