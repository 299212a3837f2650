// Runs the network that it is linked with, without TVM: proves parity on the samples, or times it.
//
//   runner [--samples FILE] [--threads N] [--repeat N] [--outputs FILE] [--only N]
//
// Runs every sample of FILE (else of samples.npz: beside the runner, in the directory above, or
// here) and holds the outputs against PyTorch's, float32 and float64, by the rule of the build. With
// --repeat: that, then N timed runs. --outputs writes what came out, as raw float32, sample by
// sample. --only runs the first sample N times and nothing else, for counting instructions.
// Exit codes: 0 done; 2 usage; 3 it cannot run here; 5 parity failed.

#include <cstring>
#include <memory>

#include "common.h"
#include "network.h"
#include "npz.h"
#include "runtime.h"

constexpr char kUsage[] = "[--samples FILE] [--threads N] [--repeat N] [--outputs FILE] [--only N]";
constexpr size_t kAlignment = 64;

// Where an emulator's plugin reads its counter: before each operator and behind the last.
extern "C" __attribute__((noinline)) void operator_begins() { asm volatile(""); }

using Samples = std::map<std::string, npz::Array>;

struct Options {
  std::string samples, outputs;
  int threads = 0, repeat = 0, only = 0;
};

std::string find_samples(const std::string& program) {
  const size_t slash = program.rfind('/');
  const std::string directory = slash == std::string::npos ? "." : program.substr(0, slash);
  for (const std::string& path : {directory + "/samples.npz", directory + "/../samples.npz"}) {
    if (std::ifstream(path)) return path;
  }
  return "samples.npz";
}

struct Free {
  void operator()(char* memory) const { std::free(memory); }
};
using Memory = std::unique_ptr<char, Free>;

Memory allocate(size_t bytes) {
  void* memory = std::aligned_alloc(kAlignment, (bytes / kAlignment + 1) * kAlignment);
  if (memory == nullptr) throw std::bad_alloc();
  return Memory(static_cast<char*>(memory));
}

class Network {
 public:
  Network() : arena_(allocate(network::arena_bytes)) {
    for (const network::Tensor& tensor : network::tensors) {
      DLTensor view{};
      view.device = {kDLCPU, 0};
      view.ndim = static_cast<int32_t>(tensor.shape.size());
      view.dtype = tensor.dtype;
      view.shape = const_cast<int64_t*>(tensor.shape.data());
      if (tensor.place == network::Place::kInput) {
        buffers_.push_back(allocate(bytes(view)));
        view.data = buffers_.back().get();
      } else if (tensor.place == network::Place::kArena) {
        view.data = arena_.get() + tensor.offset;
      } else {
        view.data = const_cast<char*>(network::network_weights + tensor.offset);
      }
      views_.push_back(view);
    }
    for (const network::Call& call : network::calls) {
      std::vector<TVMFFIAny> arguments;
      for (const int tensor : call.arguments) {
        TVMFFIAny argument{};
        argument.type_index = kTVMFFIDLTensorPtr;
        argument.v_ptr = &views_[tensor];
        arguments.push_back(argument);
      }
      arguments_.push_back(std::move(arguments));
    }
  }

  void set_input(size_t number, const npz::Array& array) {
    const DLTensor& view = views_[network::inputs.at(number).tensor];
    if (array.bytes.size() != bytes(view)) throw std::runtime_error("an input's size differs");
    std::memcpy(view.data, array.bytes.data(), array.bytes.size());
  }

  void run() {
    for (size_t i = 0; i < network::calls.size(); ++i) {
      operator_begins();
      TVMFFIAny result{};
      const auto count = static_cast<int32_t>(arguments_[i].size());
      if (network::calls[i].kernel(nullptr, arguments_[i].data(), count, &result) != 0) {
        throw std::runtime_error(std::string(network::calls[i].name) + ": " +
                                 runtime::last_error());
      }
    }
    operator_begins();
  }

  const float* output(size_t number, size_t expected) const {
    const DLTensor& view = views_[network::outputs[number].tensor];
    if (bytes(view) != expected * sizeof(float)) {
      throw std::runtime_error("an output's size differs from the sample's");
    }
    return static_cast<const float*>(view.data);
  }

 private:
  static size_t bytes(const DLTensor& view) {
    size_t elements = 1;
    for (int i = 0; i < view.ndim; ++i) elements *= static_cast<size_t>(view.shape[i]);
    return elements * view.dtype.bits / 8;
  }

  Memory arena_;
  std::vector<Memory> buffers_;  // of the inputs
  std::vector<DLTensor> views_;
  std::vector<std::vector<TVMFFIAny>> arguments_;
};

void set_inputs(Network& model, const Samples& samples, int sample) {
  for (size_t i = 0; i < network::inputs.size(); ++i) {
    model.set_input(i, samples.at(std::to_string(sample) + ".input." + std::to_string(i)));
  }
}

bool prove_parity(Network& model, const Samples& samples, const std::string& outputs_path) {
  std::ofstream file;
  if (!outputs_path.empty()) file.open(outputs_path, std::ios::binary);
  std::vector<Errors> errors(network::outputs.size());
  int count = 0;
  for (; samples.count(std::to_string(count) + ".input.0"); ++count) {
    set_inputs(model, samples, count);
    model.run();
    for (size_t i = 0; i < network::outputs.size(); ++i) {
      const std::string suffix = "." + std::to_string(i), sample = std::to_string(count);
      const npz::Array& torch32 = samples.at(sample + ".float32" + suffix);
      const npz::Array& exact = samples.at(sample + ".float64" + suffix);
      const float* got = model.output(i, exact.size());
      for (size_t j = 0; j < exact.size(); ++j) errors[i].add(got[j], torch32[j], exact[j]);
      if (file.is_open()) {
        file.write(reinterpret_cast<const char*>(got),
                   static_cast<std::streamsize>(exact.size() * sizeof(float)));
      }
    }
  }
  if (count == 0) throw std::runtime_error("there are no samples");
  if (file.is_open() && !file.flush()) throw std::runtime_error(outputs_path + " cannot be written");
  bool passed = true;
  for (size_t i = 0; i < errors.size(); ++i) {
    const char* name = network::outputs[i].name;
    passed = verdict(name, errors[i], network::factor, network::floor_ulps) && passed;
  }
  std::printf("parity %s on %d samples\n", passed ? "passed" : "failed", count);
  return passed;
}

int main(int argc, char** argv) {
  Options options;
  parse(argc, argv, kUsage, {{"--samples", &options.samples}, {"--outputs", &options.outputs}},
        {{"--threads", &options.threads}, {"--repeat", &options.repeat}, {"--only", &options.only}});
  try {
    check_cpu(network::cpu_features);
    runtime::use_threads(options.threads > 0 ? options.threads : network::threads,
                         network::affinity);
    const Samples samples =
        npz::load(options.samples.empty() ? find_samples(argv[0]) : options.samples);
    Network model;
    if (options.only > 0) {
      set_inputs(model, samples, 0);
      for (int i = 0; i < options.only; ++i) model.run();
      return 0;
    }
    if (!prove_parity(model, samples, options.outputs)) return 5;
    if (options.repeat > 0) {
      set_inputs(model, samples, 0);
      measure(options.repeat, [&] { model.run(); });
    }
  } catch (const std::exception& error) {
    std::fprintf(stderr, "runner: %s\n", error.what());
    return 3;
  }
  return 0;
}
