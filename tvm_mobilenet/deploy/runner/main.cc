// Runs a bundle without Python: proves parity, measures, classifies.
//
//   runner [--check] [--bench N] [--batch N] [--input FILE ...] [--top-k K] [--threads T] [--json]
//          [--samples FILE] [--outputs FILE] [--no-verify] [--only N] [--trace] [--bundle DIR]
//
// --check, which is what it does without any of --bench, --input and --only: runs every sample, and
// the samples as rows of every other batch size that was compiled, and holds the outputs against
// PyTorch's, float32 and float64, by the rule of the build. --batch: the size that --bench runs. --bench: N
// timed runs, each beside one of the compiled network alone, whose difference is what this program
// adds. --input: the best classes for a .npy file, or one of raw little-endian values, one for each
// input. Every file is compared with its SHA-256 first, unless --no-verify is given. --samples: other
// samples than the bundle's. --outputs: what came out, as raw values. --only: runs the first sample N
// times and nothing else, for counting instructions. --trace: runs the first sample and writes every
// operator's result to --outputs; the samples also hold `trace` and `feed`, as of the entry
// `main_traced` (compiler_pass/traced_entry.py). --bundle: not for a program that has its network
// linked in.
// Exit codes: 0 done; 2 usage; 3 the bundle or a file cannot be used here; 5 parity failed.

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <functional>
#include <numeric>

#include "model.h"
#include "npz.h"
#include "report.h"

namespace {

constexpr char kUsage[] =
    "[--check] [--bench N] [--batch N] [--input FILE ...] [--top-k K] [--threads T] [--json]\n"
    "       [--samples FILE] [--outputs FILE] [--no-verify] [--only N] [--trace]"
#ifdef BUNDLE_DIRECTORY
    " [--bundle DIR]"
#endif
    ;

struct Options {
  bool check = false, json = false, no_verify = false, trace = false;
  int bench = 0, only = 0, threads = 0, top_k = 5, batch = 0;
  std::vector<std::string> files;
  std::string bundle, samples, outputs;
};

[[noreturn]] void usage(const std::string& problem) {
  std::fprintf(stderr, "runner: %s\nusage: runner %s\n", problem.c_str(), kUsage);
  std::exit(2);
}

int positive(const std::string& text) {
  char* end = nullptr;
  const long value = std::strtol(text.c_str(), &end, 10);
  if (*end != '\0' || value < 1 || value > 1000000) usage("'" + text + "' is no positive number");
  return static_cast<int>(value);
}

Options parse(int argc, char** argv) {
  Options options;
#ifdef BUNDLE_DIRECTORY
  options.bundle = BUNDLE_DIRECTORY;
#endif
  const std::map<std::string, bool*> flags = {
      {"--check", &options.check},
      {"--json", &options.json},
      {"--no-verify", &options.no_verify},
      {"--trace", &options.trace}};
  const std::map<std::string, int*> numbers = {{"--bench", &options.bench},
                                               {"--batch", &options.batch},
                                               {"--only", &options.only},
                                               {"--threads", &options.threads},
                                               {"--top-k", &options.top_k}};
  const std::map<std::string, std::string*> texts = {
#ifdef BUNDLE_DIRECTORY
      {"--bundle", &options.bundle},
#endif
      {"--samples", &options.samples},
      {"--outputs", &options.outputs}};
  for (int i = 1; i < argc; ++i) {
    const std::string name = argv[i];
    if (flags.count(name)) {
      *flags.at(name) = true;
      continue;
    }
    if (!numbers.count(name) && !texts.count(name) && name != "--input") {
      usage("unknown option '" + name + "'");
    }
    if (++i == argc) usage("'" + name + "' lacks its value");
    if (numbers.count(name)) {
      *numbers.at(name) = positive(argv[i]);
    } else if (texts.count(name)) {
      *texts.at(name) = argv[i];
    } else {
      options.files.emplace_back(argv[i]);
    }
  }
  if (options.bench == 0 && options.only == 0 && options.files.empty() && !options.trace) {
    options.check = true;
  }
  return options;
}

// What goes in and comes out of one model, in memory of its own.
class Session {
 public:
  explicit Session(Model& model) : model_(model) { resize(model.batches[0]); }

  // Memory for a batch of this size; what was in it is lost.
  void resize(int64_t batch) {
    if (batch == batch_) return;
    batch_ = batch;
    inputs_.clear(), outputs_.clear(), in_.clear(), out_.clear();
    for (const TensorInfo& tensor : model_.inputs) inputs_.push_back(allocate(bytes_of(tensor)));
    for (const TensorInfo& tensor : model_.outputs) outputs_.push_back(allocate(bytes_of(tensor)));
    for (const Memory& memory : inputs_) in_.push_back(memory.get());
    for (const Memory& memory : outputs_) out_.push_back(memory.get());
  }

  // The first input decides about the batch.
  void set_input(size_t i, const std::vector<char>& bytes, const std::string& source) {
    const TensorInfo& tensor = model_.inputs.at(i);
    if (i == 0 && model_.divisible && bytes.size() % tensor.bytes_of(1) == 0 && !bytes.empty()) {
      resize(static_cast<int64_t>(bytes.size() / tensor.bytes_of(1)));
    }
    if (bytes.size() != bytes_of(tensor)) {
      throw std::runtime_error(source + " has " + std::to_string(bytes.size()) + " bytes, input '" +
                               tensor.name + "' takes " + std::to_string(bytes_of(tensor)));
    }
    std::memcpy(inputs_[i].get(), bytes.data(), bytes.size());
  }

  // A batch of rows that are copies of the rows of the bytes, beginning anew behind the last.
  void set_rows(size_t i, const std::vector<char>& bytes) {
    const size_t total = bytes_of(model_.inputs.at(i));
    for (size_t at = 0; at < total; at += bytes.size()) {
      std::memcpy(inputs_[i].get() + at, bytes.data(), std::min(bytes.size(), total - at));
    }
  }

  void run() { model_.run(in_.data(), out_.data(), batch_); }
  int64_t batch() const { return batch_; }

  const float* scores(size_t i) const {
    if (model_.outputs.at(i).dtype != "float32") throw std::runtime_error("no float32 output");
    return reinterpret_cast<const float*>(outputs_[i].get());
  }

  void write(std::ofstream& file) const {
    for (size_t i = 0; i < outputs_.size(); ++i) {
      const size_t bytes = bytes_of(model_.outputs[i]);
      file.write(outputs_[i].get(), static_cast<std::streamsize>(bytes));
    }
  }

 private:
  size_t bytes_of(const TensorInfo& tensor) const { return model_.bytes_for(tensor, batch_); }

  Model& model_;
  int64_t batch_ = 0;
  std::vector<Memory> inputs_, outputs_;
  std::vector<const void*> in_;
  std::vector<void*> out_;
};

using Samples = std::map<std::string, npz::Array>;

const npz::Array& input_of(const Samples& samples, int number, size_t i) {
  const std::string name = std::to_string(number) + ".input." + std::to_string(i);
  if (!samples.count(name)) throw std::runtime_error("the samples lack " + name);
  return samples.at(name);
}

void set_sample(Session& session, const Model& model, const Samples& samples, int number) {
  for (size_t i = 0; i < model.inputs.size(); ++i) {
    session.set_input(i, input_of(samples, number, i).bytes, "a sample");
  }
}

// Adds the errors of what the session's last run gave: of every row against the sample's.
void add_errors(std::vector<Errors>& errors, const Session& session, const Model& model,
                const Samples& samples, int number) {
  for (size_t i = 0; i < errors.size(); ++i) {
    const std::string sample = std::to_string(number), place = "." + std::to_string(i);
    const npz::Array& torch32 = samples.at(sample + ".float32" + place);
    const npz::Array& exact = samples.at(sample + ".float64" + place);
    const size_t count = model.bytes_for(model.outputs[i], session.batch()) / sizeof(float);
    if (exact.size() == 0 || count % exact.size() != 0) {
      throw std::runtime_error("an output's size differs from the sample's");
    }
    const float* got = session.scores(i);
    for (size_t j = 0; j < count; ++j) {
      errors[i].add(got[j], torch32[j % exact.size()], exact[j % exact.size()]);
    }
  }
}

std::vector<Errors> check(Session& session, const Model& model, const Samples& samples,
                          std::ofstream& outputs, int& count) {
  std::vector<Errors> errors(model.outputs.size());
  for (count = 0; samples.count(std::to_string(count) + ".input.0"); ++count) {
    set_sample(session, model, samples, count);
    session.run();
    add_errors(errors, session, model, samples, count);
    if (outputs.is_open()) session.write(outputs);
  }
  if (count == 0) throw std::runtime_error("there are no samples");
  if (outputs.is_open()) return errors;  // who asks for them brought samples of every size
  const int stored = count;
  for (size_t which = 1; which < model.batches.size(); ++which, ++count) {
    const int number = static_cast<int>(which) % stored;
    session.resize(model.batches[which]);
    for (size_t i = 0; i < model.inputs.size(); ++i) {
      session.set_rows(i, input_of(samples, number, i).bytes);
    }
    session.run();
    add_errors(errors, session, model, samples, number);
  }
  return errors;
}

// One inference with every operator's result, in order; where an operator's `feed` is not 0, what
// was in the trace goes on in the place of its result.
void trace(Session& session, Model& model, const Samples& samples, std::ofstream& outputs) {
  std::vector<char> traced = samples.at("trace").bytes;
  const npz::Array& feed = samples.at("feed");
  size_t number = 0, offset = 0;
  model.observe([&](float* result, size_t elements) {
    const size_t bytes = elements * sizeof(float);
    if (number >= feed.size() || offset + bytes > traced.size()) {
      throw std::runtime_error("the trace is of another network");
    }
    const std::vector<char> before(traced.begin() + static_cast<std::ptrdiff_t>(offset),
                                   traced.begin() + static_cast<std::ptrdiff_t>(offset + bytes));
    std::memcpy(traced.data() + offset, result, bytes);
    if (feed[number] != 0) std::memcpy(result, before.data(), bytes);
    offset += bytes;
    ++number;
  });
  session.run();
  model.observe(nullptr);
  outputs.write(traced.data(), static_cast<std::streamsize>(traced.size()));
}

Latency bench(Session& session, Model& model, int repeat) {
  std::vector<double> times, bare;
  const auto timed = [](std::vector<double>& into, const std::function<void()>& work) {
    const auto start = std::chrono::steady_clock::now();
    work();
    const std::chrono::duration<double, std::milli> time = std::chrono::steady_clock::now() - start;
    into.push_back(time.count());
  };
  constexpr int kWarmUp = 5;
  for (int i = 0; i < kWarmUp; ++i) session.run();
  for (int i = 0; i < repeat; ++i) {  // in turns: what else the machine does hits both alike
    timed(times, [&] { session.run(); });
    timed(bare, [&] { model.bare_call(); });
  }
  return Latency(std::move(times), std::move(bare));
}

std::vector<char> read_input(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  const std::string data((std::istreambuf_iterator<char>(file)), {});
  if (data.empty()) throw std::runtime_error(path + " is missing or empty");
  if (data.compare(0, 6, "\x93NUMPY") == 0) return npz::parse(data).bytes;
  return {data.begin(), data.end()};
}

// The best classes of each row of the first output.
std::vector<Ranked> classify(Session& session, const Model& model,
                             const std::vector<std::string>& files, int top_k) {
  if (files.size() != model.inputs.size()) {
    usage("--input is needed once for each of the model's " + std::to_string(model.inputs.size()) +
          " inputs");
  }
  for (size_t i = 0; i < files.size(); ++i) session.set_input(i, read_input(files[i]), files[i]);
  session.run();
  const TensorInfo& output = model.outputs.at(0);
  const size_t total = model.bytes_for(output, session.batch()) / sizeof(float);
  const auto rows = static_cast<size_t>(output.shape.empty() ? 1 : session.batch());
  const size_t classes = total / rows;
  std::vector<Ranked> ranking;
  for (size_t row = 0; row < rows; ++row) {
    const float* scores = session.scores(0) + row * classes;
    std::vector<double> shares(scores, scores + classes);
    if (output.values != "probabilities") {
      const double most = *std::max_element(shares.begin(), shares.end());
      double sum = 0;
      for (double& share : shares) sum += share = std::exp(share - most);
      for (double& share : shares) share /= sum;
    }
    std::vector<size_t> order(classes);
    std::iota(order.begin(), order.end(), size_t{0});
    std::stable_sort(order.begin(), order.end(),
                     [&](size_t a, size_t b) { return shares[a] > shares[b]; });
    for (size_t rank = 0; rank < std::min(classes, static_cast<size_t>(top_k)); ++rank) {
      ranking.push_back({row, rank + 1, order[rank], shares[order[rank]]});
    }
  }
  return ranking;
}

}  // namespace

int main(int argc, char** argv) {
  const Options options = parse(argc, argv);
  try {
    Model model(options.bundle, options.threads, !options.no_verify);
    Session session(model);
    Report report(model, options.json);
    const bool needs_samples = options.check || options.bench > 0 || options.only > 0 || options.trace;
    Samples samples;
    if (needs_samples) {
      samples = npz::load(options.samples.empty() ? model.samples : options.samples);
      set_sample(session, model, samples, 0);
    }
    if (options.only > 0) {
      session.run();
      for (int i = 1; i < options.only; ++i) model.bare_call();
      return 0;
    }
    std::ofstream outputs;
    if (!options.outputs.empty()) outputs.open(options.outputs, std::ios::binary);
    if (options.trace) {
      trace(session, model, samples, outputs);
      if (!outputs.flush()) throw std::runtime_error("--trace needs --outputs that can be written");
      return 0;
    }
    bool passed = true;
    if (options.check) {
      int count = 0;
      const auto errors = check(session, model, samples, outputs, count);
      passed = report.parity(errors, count);
    }
    if (passed && options.bench > 0) {
      set_sample(session, model, samples, 0);
      if (options.batch > 0) {
        const std::vector<int64_t>& sizes = model.batches;
        if (std::find(sizes.begin(), sizes.end(), options.batch) == sizes.end()) {
          throw std::runtime_error("--batch takes a size with kernels of its own");
        }
        session.resize(options.batch);
        for (size_t i = 0; i < model.inputs.size(); ++i) {
          session.set_rows(i, input_of(samples, 0, i).bytes);
        }
      }
      report.latency(bench(session, model, options.bench));
    }
    if (passed && !options.files.empty()) {
      report.classes(classify(session, model, options.files, options.top_k));
      if (outputs.is_open()) session.write(outputs);
    }
    if (!options.outputs.empty() && !outputs.flush()) {
      throw std::runtime_error(options.outputs + " cannot be written");
    }
    report.finish();
    return passed ? 0 : 5;
  } catch (const std::exception& error) {
    const std::string text = error.what();
    std::fprintf(stderr, "runner: %s\n", text.substr(0, text.find('\n')).c_str());
    return 3;
  }
}
