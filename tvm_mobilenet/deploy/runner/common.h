// What both runners share: options, the choice and the check of CPUs, the verdict on an output, and
// timing.
#pragma once

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

#ifdef __linux__
#include <sched.h>
#if defined(__aarch64__) || defined(__arm__)
#include <sys/auxv.h>
#endif
#endif

[[noreturn]] inline void usage(const std::string& problem, const char* options) {
  std::fprintf(stderr, "runner: %s\nusage: runner %s\n", problem.c_str(), options);
  std::exit(2);
}

inline int positive(const std::string& text, const char* options) {
  char* end = nullptr;
  const long value = std::strtol(text.c_str(), &end, 10);
  if (*end != '\0' || value < 1 || value > 1000000) {
    usage("'" + text + "' is no positive number", options);
  }
  return static_cast<int>(value);
}

// Reads options, each with a value, into the places given for their names.
inline void parse(int argc, char** argv, const char* options,
                  const std::map<std::string, std::string*>& texts,
                  const std::map<std::string, int*>& numbers) {
  for (int i = 1; i < argc; i += 2) {
    const std::string name = argv[i];
    if (i + 1 == argc) usage("'" + name + "' lacks its value or is unknown", options);
    if (texts.count(name)) {
      *texts.at(name) = argv[i + 1];
    } else if (numbers.count(name)) {
      *numbers.at(name) = positive(argv[i + 1], options);
    } else {
      usage("unknown option '" + name + "'", options);
    }
  }
}

#ifdef __linux__
// The CPUs usable here. Where `affinity` names some of them, the process is bound to these: the kind
// of core that the bundle was built for.
inline cpu_set_t choose_cpus(const std::vector<int>& affinity) {
  cpu_set_t usable, wanted;
  CPU_ZERO(&usable);
  CPU_ZERO(&wanted);
  sched_getaffinity(0, sizeof(usable), &usable);
  for (const int cpu : affinity) {
    if (CPU_ISSET(cpu, &usable)) CPU_SET(cpu, &wanted);
  }
  const bool bound = CPU_COUNT(&wanted) > 0 && sched_setaffinity(0, sizeof(wanted), &wanted) == 0;
  return bound ? wanted : usable;
}
#endif

// Whether this CPU has a feature, by Linux's name; true where the system does not tell.
inline bool cpu_has(const std::string& name) {
#if defined(__linux__) && (defined(__aarch64__) || defined(__arm__))
  // Asked of the kernel: /proc/cpuinfo is the build machine's under an emulator.
  struct Bit {
    const char* name;
    int word, bit;
  };
  static const Bit bits[] = {  // asm/hwcap.h
#ifdef __aarch64__
      {"asimd", AT_HWCAP, 1},     {"aes", AT_HWCAP, 3},        {"sha2", AT_HWCAP, 6},
      {"crc32", AT_HWCAP, 7},     {"atomics", AT_HWCAP, 8},    {"asimdhp", AT_HWCAP, 10},
      {"asimdrdm", AT_HWCAP, 12}, {"asimddp", AT_HWCAP, 20},   {"sve", AT_HWCAP, 22},
      {"asimdfhm", AT_HWCAP, 23}, {"sve2", AT_HWCAP2, 1},      {"i8mm", AT_HWCAP2, 13},
      {"bf16", AT_HWCAP2, 14},
#else
      {"neon", AT_HWCAP, 12},     {"vfpv3", AT_HWCAP, 13},     {"vfpv4", AT_HWCAP, 16},
      {"idiva", AT_HWCAP, 17},    {"idivt", AT_HWCAP, 18},
#endif
  };
  for (const Bit& entry : bits) {
    if (name == entry.name) return getauxval(entry.word) >> entry.bit & 1;
  }
  return false;
#else
  std::ifstream file("/proc/cpuinfo");
  std::string features;
  for (std::string line; features.empty() && std::getline(file, line);) {
    if (line.rfind("flags", 0) == 0 || line.rfind("Features", 0) == 0) features = line + " ";
  }
  return features.empty() || features.find(" " + name + " ") != std::string::npos;
#endif
}

// Throws when this CPU lacks a feature that the code may use, instead of an illegal instruction.
inline void check_cpu(const std::vector<std::string>& features) {
  for (const std::string& name : features) {
    if (!cpu_has(name)) {
      throw std::runtime_error("the bundle needs a CPU with " + name + ", which this one lacks");
    }
  }
}

// Errors of one output over all samples, against float64; the rule is parity/judge.py's.
struct Errors {
  double max_abs = 0, torch_max_abs = 0, scale = 0;
  double squares = 0, torch_squares = 0, reference_squares = 0;
  int64_t misplaced = 0;  // NaN or infinity where PyTorch has none, or the other way round

  void add(double got, double torch32, double exact) {
    if (!std::isfinite(got) || !std::isfinite(torch32)) {
      misplaced += !(got == torch32 || (std::isnan(got) && std::isnan(torch32)));
      return;
    }
    if (!std::isfinite(exact)) return;
    const double error = got - exact, torch_error = torch32 - exact;
    max_abs = std::max(max_abs, std::fabs(error));
    torch_max_abs = std::max(torch_max_abs, std::fabs(torch_error));
    scale = std::max(scale, std::fabs(exact));
    squares += error * error;
    torch_squares += torch_error * torch_error;
    reference_squares += exact * exact;
  }

  bool passed(double factor, double floor_ulps) const {
    const double floor = floor_ulps * std::ldexp(1.0, -23);
    const double norm = std::sqrt(reference_squares);
    const double allowed_norm = std::max(factor * std::sqrt(torch_squares), floor * norm);
    return misplaced == 0 && max_abs <= std::max(factor * torch_max_abs, floor * scale) &&
           std::sqrt(squares) <= allowed_norm;
  }
};

// Prints the verdict on one output, and returns it.
inline bool verdict(const std::string& name, const Errors& errors, double factor,
                    double floor_ulps) {
  const bool good = errors.passed(factor, floor_ulps);
  std::printf("%s %s: max error %.3g, PyTorch float32's own %.3g, NaN or infinity misplaced %lld\n",
              good ? "ok  " : "FAIL", name.c_str(), errors.max_abs, errors.torch_max_abs,
              static_cast<long long>(errors.misplaced));
  return good;
}

// Times `repeat` calls of `run` after a few to warm up, and prints the figures.
template <class Run>
void measure(int repeat, const Run& run) {
  std::vector<double> times;
  constexpr int kWarmUp = 5;
  for (int i = -kWarmUp; i < repeat; ++i) {
    const auto start = std::chrono::steady_clock::now();
    run();
    const std::chrono::duration<double, std::milli> time = std::chrono::steady_clock::now() - start;
    if (i >= 0) times.push_back(time.count());
  }
  std::sort(times.begin(), times.end());
  std::printf("latency in ms over %zu runs: median %.4f, p10 %.4f, p90 %.4f, least %.4f\n",
              times.size(), times[times.size() / 2], times[times.size() / 10],
              times[times.size() * 9 / 10], times.front());
}
