// The CPUs that work is spread over, and whether they have what the code needs.
#pragma once

#include <fstream>
#include <stdexcept>
#include <string>
#include <vector>

#ifdef __linux__
#include <sched.h>
#if defined(__aarch64__) || defined(__arm__)
#include <sys/auxv.h>
#endif
#endif

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
