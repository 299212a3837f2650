#include "runtime.h"

#include <dlfcn.h>
#include <limits.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <thread>

#include "cpu.h"

namespace runtime {

struct Group {  // TVMParallelGroupEnv of tvm/runtime/c_backend_api.h
  void* sync_handle;
  int32_t num_task;
};
using Task = int (*)(int task, Group* group, void* data);

// Threads that wait for a kernel's parallel loop. The caller takes part of the work itself.
class Pool {
 public:
  explicit Pool(int threads) : threads_(threads) {
    for (int task = 1; task < threads; ++task) {
      workers_.emplace_back([this, task] { serve(task); });
    }
  }

  ~Pool() {
    ended_ = true;
    next_round();
    for (std::thread& worker : workers_) worker.join();
  }

  int run(Task task, void* data) {
    Group group{nullptr, threads_};
    if (threads_ == 1) return task(0, &group, data);
    task_ = task;
    data_ = data;
    failed_ = 0;
    left_ = threads_ - 1;
    next_round();
    const int failed = task(0, &group, data);
    while (left_.load(std::memory_order_acquire) != 0) std::this_thread::yield();
    return failed != 0 ? failed : failed_.load();
  }

 private:
  void next_round() {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      round_.fetch_add(1, std::memory_order_release);
    }
    wake_.notify_all();
  }

  void serve(int number) {
    constexpr int kSpins = 20000;  // the next loop mostly follows at once: sleeping would cost more
    for (unsigned seen = 0;; ++seen) {
      for (int i = 0; i < kSpins && round_.load(std::memory_order_acquire) == seen; ++i) {
        if (i % 64 == 63) std::this_thread::yield();
      }
      if (round_.load(std::memory_order_acquire) == seen) {
        std::unique_lock<std::mutex> lock(mutex_);
        wake_.wait(lock, [&] { return round_.load(std::memory_order_acquire) != seen; });
      }
      if (ended_) return;
      Group group{nullptr, threads_};
      if (const int failed = task_(number, &group, data_)) failed_ = failed;
      left_.fetch_sub(1, std::memory_order_release);
    }
  }

  const int threads_;
  Task task_ = nullptr;
  void* data_ = nullptr;
  std::atomic<bool> ended_{false};
  std::atomic<int> failed_{0}, left_{0};
  std::atomic<unsigned> round_{0};
  std::mutex mutex_;
  std::condition_variable wake_;
  std::vector<std::thread> workers_;
};

}  // namespace runtime

namespace {

thread_local runtime::Pool* pool = nullptr;  // of the model that this thread runs
std::mutex error_mutex;
std::string error;

extern "C" int launch(runtime::Task task, void* data, int /*num_task: TVM's code asks for all*/) {
  return pool->run(task, data);
}

extern "C" void* allocate_workspace(int, int, uint64_t bytes, int, int) {
  constexpr size_t kAlignment = 64;
  return std::aligned_alloc(kAlignment, (static_cast<size_t>(bytes) / kAlignment + 1) * kAlignment);
}

extern "C" int free_workspace(int, int, void* memory) {
  std::free(memory);
  return 0;
}

}  // namespace

namespace runtime {

std::shared_ptr<Pool> make_pool(int threads, const std::vector<int>& affinity) {
  const cpu_set_t usable = choose_cpus(affinity);
  const int most = std::max(1, CPU_COUNT(&usable));
  return std::make_shared<Pool>(threads == 0 ? most : std::min(threads, most));
}

Use::Use(Pool& used) { pool = &used; }
Use::~Use() { pool = nullptr; }

std::string last_error() {
  const std::lock_guard<std::mutex> lock(error_mutex);
  return error;
}

std::string this_file() {
  Dl_info info{};
  char path[PATH_MAX];
  // A static program has no dynamic linker to ask.
  if (dladdr(reinterpret_cast<void*>(&launch), &info) != 0 && info.dli_fname != nullptr &&
      realpath(info.dli_fname, path) != nullptr) {
    return path;
  }
  const ssize_t length = readlink("/proc/self/exe", path, sizeof path);
  if (length <= 0) throw std::runtime_error("/proc/self/exe cannot be read");
  return std::string(path, static_cast<size_t>(length));
}

}  // namespace runtime

// Compiled code calls through these; TVM's runtime would fill in its own.
extern "C" {
extern decltype(&launch) __TVMBackendParallelLaunch;
extern decltype(&allocate_workspace) __TVMBackendAllocWorkspace;
extern decltype(&free_workspace) __TVMBackendFreeWorkspace;
decltype(&launch) __TVMBackendParallelLaunch = launch;
decltype(&allocate_workspace) __TVMBackendAllocWorkspace = allocate_workspace;
decltype(&free_workspace) __TVMBackendFreeWorkspace = free_workspace;

void TVMFFIErrorSetRaisedFromCStrParts(const char* kind, const char** parts, int32_t count) {
  const std::lock_guard<std::mutex> lock(error_mutex);
  error = std::string(kind) + ": ";
  for (int32_t i = 0; i < count; ++i) error += parts[i];
}

void TVMFFIErrorSetRaisedFromCStr(const char* kind, const char* message) {
  TVMFFIErrorSetRaisedFromCStrParts(kind, &message, 1);
}

// Only TVM's virtual machine calls the functions that name these, and it is not here.
void TVMBackendAnyListMoveFromPackedReturn() { std::abort(); }
void TVMBackendAnyListSetPackedArg() { std::abort(); }
void TVMBackendAnyListResetItem() { std::abort(); }
}
