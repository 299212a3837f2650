// The model without TVM: the kernels, weights and tables that it is linked with.
#include "model.h"

#include <cstring>
#include <deque>
#include <filesystem>
#include <fstream>

#include "cpu.h"
#include "network.h"
#include "runtime.h"
#include "sha256.h"

// Where an emulator's plugin reads its counter: before each operator and behind the last.
extern "C" __attribute__((noinline)) void operator_begins() { asm volatile(""); }

namespace {

// The build appends a line to the program: kSeal, SHA-256 of what is before it, SHA-256 of the
// samples (device.py).
constexpr char kSeal[] = "\nTVM-MOBILENET-SHA256 ";
constexpr size_t kDigits = 64, kSealSize = sizeof kSeal - 1 + kDigits + 1 + kDigits + 1;

void check_hashes(const std::string& program, const std::string& samples) {
  std::ifstream file(program, std::ios::binary | std::ios::ate);
  const auto size = static_cast<int64_t>(file.tellg()) - static_cast<int64_t>(kSealSize);
  std::string seal(kSealSize, '\0');
  if (size < 0 || !file.seekg(size) || !file.read(&seal[0], kSealSize) ||
      seal.compare(0, sizeof kSeal - 1, kSeal) != 0) {
    throw std::runtime_error(program + " carries no SHA-256: it was stripped or cut; copy it again, "
                             "or give --no-verify");
  }
  const std::string digits = seal.substr(sizeof kSeal - 1);
  if (sha256_of_file(program, static_cast<uint64_t>(size)) != digits.substr(0, kDigits)) {
    throw std::runtime_error(program + " differs from what was built; copy it again");
  }
  std::error_code error;
  const auto length = std::filesystem::file_size(samples, error);
  if (error) return;  // to classify it needs no samples
  if (sha256_of_file(samples, length) != digits.substr(kDigits + 1, kDigits)) {
    throw std::runtime_error(samples + " differs from what was built; copy it again");
  }
}

std::string find_samples(const std::string& program) {
  const std::string directory = program.substr(0, program.rfind('/'));
  for (const std::string& path : {directory + "/samples.npz", directory + "/../samples.npz"}) {
    if (std::ifstream(path)) return path;
  }
  return "samples.npz";
}

size_t bytes_of(const DLTensor& view) {
  size_t elements = 1;
  for (int i = 0; i < view.ndim; ++i) elements *= static_cast<size_t>(view.shape[i]);
  return elements * view.dtype.bits / 8;
}

std::string name_of(DLDataType dtype) {
  const char* const kinds[] = {"int", "uint", "float"};  // DLDataTypeCode
  return kinds[dtype.code] + std::to_string(dtype.bits);
}

std::vector<TensorInfo> describe(const std::vector<network::Named>& named,
                                 const std::vector<int>& places) {
  std::vector<TensorInfo> found;
  for (size_t i = 0; i < named.size(); ++i) {
    const network::Named& each = named[i];
    const network::Tensor& tensor = network::networks[0].tensors.at(places.at(i));
    size_t bytes = tensor.dtype.bits / 8;
    for (const int64_t extent : tensor.shape) bytes *= static_cast<size_t>(extent);
    found.push_back({each.name, name_of(tensor.dtype), tensor.shape, bytes, each.values});
  }
  return found;
}

// One network's tensors in memory, and its kernels' arguments.
struct Prepared {
  Prepared(const network::Network& network, char* arena) : network(network) {
    for (const network::Tensor& tensor : network.tensors) {
      DLTensor view{};
      view.device = {kDLCPU, 0};
      view.ndim = static_cast<int32_t>(tensor.shape.size());
      view.dtype = tensor.dtype;
      view.shape = const_cast<int64_t*>(tensor.shape.data());
      if (tensor.place == network::Place::kArena) view.data = arena + tensor.offset;
      if (tensor.place == network::Place::kWeights) {
        view.data = const_cast<char*>(network::network_weights + tensor.offset);
      }
      views.push_back(view);
    }
    for (const int input : network.inputs) {
      // An input's part of the arena is its own: what lies in it is the input, or a view of it.
      const size_t begin = network.tensors[input].offset;
      const size_t end = begin + bytes_of(views[input]);
      std::vector<Place> found;
      for (size_t i = 0; i < views.size(); ++i) {
        const network::Tensor& tensor = network.tensors[i];
        if (tensor.place == network::Place::kArena && begin <= tensor.offset && tensor.offset < end) {
          found.push_back({&views[i], tensor.offset - begin});
        }
      }
      inputs.push_back(std::move(found));
    }
    for (const network::Call& call : network.calls) {
      std::vector<TVMFFIAny> list;
      for (const int tensor : call.arguments) {
        TVMFFIAny argument{};
        argument.type_index = kTVMFFIDLTensorPtr;
        argument.v_ptr = &views[tensor];
        list.push_back(argument);
      }
      arguments.push_back(std::move(list));
    }
  }

  void call(const std::function<void(float*, size_t)>& observer) {
    for (size_t i = 0; i < network.calls.size(); ++i) {
      operator_begins();
      TVMFFIAny result{};
      const auto count = static_cast<int32_t>(arguments[i].size());
      if (network.calls[i].kernel(nullptr, arguments[i].data(), count, &result) != 0) {
        throw std::runtime_error(std::string(network.calls[i].name) + ": " +
                                 runtime::last_error());
      }
      if (observer) {
        const DLTensor& made = *static_cast<const DLTensor*>(arguments[i].back().v_ptr);
        const bool traced = made.dtype.code == kDLFloat && made.dtype.bits == 32;
        observer(static_cast<float*>(made.data), traced ? bytes_of(made) / sizeof(float) : 0);
      }
    }
    operator_begins();
  }

  struct Place {
    DLTensor* view;
    size_t offset;
  };

  const network::Network& network;
  std::vector<DLTensor> views;
  std::vector<std::vector<Place>> inputs;  // for each input the views of its memory
  std::vector<std::vector<TVMFFIAny>> arguments;
};

}  // namespace

struct Model::Engine {
  explicit Engine(int threads)
      : pool(runtime::make_pool(threads, network::affinity)),
        arena(allocate(network::arena_bytes)) {
    for (const network::Network& each : network::networks) prepared.emplace_back(each, arena.get());
    last = &prepared[0];
  }

  void call() {
    const runtime::Use use(*pool);
    last->call(observer);
  }

  std::shared_ptr<runtime::Pool> pool;
  Memory arena;
  std::deque<Prepared> prepared;  // by the model's batches
  Prepared* last;                 // what ran last
  std::function<void(float*, size_t)> observer;
};

Model::Model(const std::string& bundle, int threads_, bool verify)
    : inputs(describe(network::inputs, network::networks[0].inputs)),
      outputs(describe(network::outputs, network::networks[0].outputs)),
      name(network::name),
      target(network::target),
      factor(network::factor),
      floor_ulps(network::floor_ulps),
      few_values(network::few_values),
      threads(threads_ > 0 ? threads_ : network::threads),
      verified(verify) {
  if (!bundle.empty()) throw std::runtime_error("the network is linked in: give no bundle");
  check_cpu(network::cpu_features);
  const std::string program = runtime::this_file();
  samples = find_samples(program);
  if (verify) check_hashes(program, samples);
  for (const network::Network& each : network::networks) {
    const std::vector<int64_t>& shape = each.tensors.at(each.inputs.at(0)).shape;
    batches.push_back(shape.empty() ? 1 : shape[0]);
  }
  divisible = batches.size() > 1;
  engine_ = std::make_unique<Engine>(threads);
}

Model::~Model() = default;

void Model::run_compiled(size_t which, const void* const* in, void* const* out) {
  Prepared& one = engine_->prepared[which];
  engine_->last = &one;
  for (size_t i = 0; i < inputs.size(); ++i) {
    char* data = static_cast<char*>(const_cast<void*>(in[i]));
    if (!is_aligned(data)) {
      const int place = one.network.inputs[i];
      data = engine_->arena.get() + one.network.tensors[place].offset;
      std::memcpy(data, in[i], bytes_of(one.views[place]));
    }
    for (const Prepared::Place& place : one.inputs[i]) place.view->data = data + place.offset;
  }
  engine_->call();
  for (size_t i = 0; i < outputs.size(); ++i) {
    const DLTensor& view = one.views[one.network.outputs[i]];
    std::memcpy(out[i], view.data, bytes_of(view));
  }
}

void Model::bare_call() { engine_->call(); }

void Model::observe(std::function<void(float*, size_t)> observer) {
  engine_->observer = std::move(observer);
}
