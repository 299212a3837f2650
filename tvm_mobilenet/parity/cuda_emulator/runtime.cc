// Runs CUDA kernels compiled by g++ on a CPU and checks every access to memory.
//
// Threads of a block are fibers that run until a barrier; blocks run one after another. The kernels
// are compiled with -fsanitize=thread, which calls a function before each access; this file
// defines those functions in place of libtsan's. Each buffer lies in the middle of 16 GiB of
// addresses of its own, so that a wrong 32-bit index cannot reach another buffer. A shadow cell
// remembers who wrote and read each word last, in which interval between barriers.
//
// A mistake of a kernel ends the process with exit code 3 and one line on stderr: the address of
// the instruction (in a shared library from its begin), a tab, the message. program.cc and driver.cc
// are its users.
#include "runtime.h"

#include <dlfcn.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include "cuda.h"

void broken(const std::string& message) {
  fprintf(stderr, "%s\n", message.c_str());
  _exit(4);
}

namespace {

constexpr uintptr_t kProgramBegin = 0x400000;  // of a program that is not position-independent
constexpr uintptr_t kBase = uintptr_t(1) << 44;
constexpr int kSlotBits = 34;  // 16 GiB: a 32-bit index of floats, both ways
constexpr size_t kStackBytes = 256 << 10, kPage = 4096;
constexpr int kMaxThreads = 1024, kWarp = 32;
constexpr size_t kStaticSharedLimit = 48 << 10;
constexpr int kMistake = 3;

// Who accessed a word last. Epochs count the intervals between barriers over the whole program.
struct Cell {
  uint32_t write_epoch, read_epoch;
  uint16_t write_thread, read_thread;
  uint8_t write_turn, read_turn;  // the warp's __syncwarp count in that epoch
  uint8_t many_in_warp, many_warps;
};
static_assert(sizeof(Cell) == 16);
constexpr uint8_t kManyBlocks = 2;  // in many_warps

struct Buffer {
  std::string name;
  uintptr_t begin;
  size_t bytes;
  Cell* cells;
  bool initialised, shared;
};

enum class State : uint8_t { kReady, kBarrier, kWarp, kDone };

struct Thread {
  State state;
  uint8_t turn;  // __syncwarp calls since the last block barrier
  int line;
  unsigned mask;
  uint32_t exchanges;
  uint3 index;
  jmp_buf place;
};

struct Warp {
  unsigned arrived;
  uint64_t values[2][kWarp];
};

std::vector<Buffer> buffers;
int granule_bits = 2;
uint32_t epoch = 1, block_first = 1, launch_first = 1;
Thread threads[kMaxThreads];
Warp warps[kMaxThreads / kWarp];
int thread_count, current;
uint3 grid, block_shape, block;
size_t static_shared;
std::vector<int> shared_buffers;  // by the number of the declaration; -1 where not yet seen
int dynamic_buffer;
const EmulatorKernel* kernel;
std::vector<void*> arguments;
char* stacks;
jmp_buf scheduler;
ucontext_t first_context, fiber_context;
bool started[kMaxThreads];

[[noreturn]] void fail(void* where, const char* format, ...) {
  char message[512];
  va_list list;
  va_start(list, format);
  vsnprintf(message, sizeof(message), format, list);
  va_end(list);
  Dl_info object;
  if (where && dladdr(where, &object) && uintptr_t(object.dli_fbase) != kProgramBegin)
    where = reinterpret_cast<void*>(uintptr_t(where) - uintptr_t(object.dli_fbase));
  fprintf(stderr, "%p\tkernel %s, block (%u, %u, %u), thread (%u, %u, %u): %s\n", where,
          kernel ? kernel->name : "?", block.x, block.y, block.z, threads[current].index.x,
          threads[current].index.y, threads[current].index.z, message);
  fflush(stderr);
  _exit(kMistake);
}


size_t cell_bytes(const Buffer& buffer) {
  return ((buffer.bytes >> granule_bits) + 1) * sizeof(Cell);
}

int add_buffer(const std::string& name, size_t bytes, bool initialised, bool shared) {
  uintptr_t begin = kBase + (uintptr_t(buffers.size()) << kSlotBits) + (uintptr_t(1) << (kSlotBits - 1));
  int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
  size_t mapped = bytes ? bytes : 1;
  void* data = mmap(reinterpret_cast<void*>(begin), mapped, PROT_READ | PROT_WRITE,
                    flags | MAP_FIXED_NOREPLACE, -1, 0);
  Buffer made = {name, begin, bytes, nullptr, initialised, shared};
  void* shadow = mmap(nullptr, cell_bytes(made), PROT_READ | PROT_WRITE, flags, -1, 0);
  if (data != reinterpret_cast<void*>(begin) || shadow == MAP_FAILED) broken("out of memory");
  memset(data, 0xff, bytes);  // NaN: what is not written shows in the outputs too
  made.cells = static_cast<Cell*>(shadow);
  buffers.push_back(made);
  return int(buffers.size()) - 1;
}

// The memory goes back; the buffer's addresses stay taken, so that a late access is seen.
void empty(Buffer& buffer) {
  if (!buffer.cells) return;
  munmap(reinterpret_cast<void*>(buffer.begin), buffer.bytes ? buffer.bytes : 1);
  munmap(buffer.cells, cell_bytes(buffer));
  buffer.bytes = 0;
  buffer.cells = nullptr;
}

// Whether an access of thread `who` in this epoch is ordered before one of the current thread.
inline bool unordered(uint16_t who, uint8_t turn) {
  if (who == current) return false;
  return who / kWarp != current / kWarp || turn == threads[current].turn;
}

template <bool kWrite>
inline void access_memory(const void* place, size_t bytes, void* where) {
  uintptr_t address = reinterpret_cast<uintptr_t>(place);
  size_t slot = (address - kBase) >> kSlotBits;
  const char* verb = kWrite ? "writes" : "reads";
  if (slot >= buffers.size()) {
    if (size_t(static_cast<const char*>(place) - stacks) < kMaxThreads * kStackBytes) return;
    fail(where, "%s %zu bytes through a wild pointer", verb, bytes);
  }
  Buffer& buffer = buffers[slot];
  ptrdiff_t offset = ptrdiff_t(address - buffer.begin);
  if (offset < 0 || size_t(offset) + bytes > buffer.bytes)
    fail(where, "%s %zu bytes at %td of '%s', which has %zu", verb, bytes, offset,
         buffer.name.c_str(), buffer.bytes);
  if ((bytes & (bytes - 1)) == 0 && address % bytes)
    fail(where, "%s %zu bytes at %td of '%s': misaligned", verb, bytes, offset, buffer.name.c_str());
  Cell* last = buffer.cells + ((size_t(offset) + bytes - 1) >> granule_bits);
  for (Cell* cell = buffer.cells + (size_t(offset) >> granule_bits); cell <= last; ++cell) {
    uint32_t oldest = buffer.shared ? block_first : launch_first;
    bool written = cell->write_epoch >= oldest;
    if (written && cell->write_epoch < block_first)
      fail(where, "%s at %td of '%s', which another block wrote in this launch", verb, offset,
           buffer.name.c_str());
    if (written && cell->write_epoch == epoch && unordered(cell->write_thread, cell->write_turn))
      fail(where, "%s at %td of '%s', which thread %d wrote with no barrier between", verb, offset,
           buffer.name.c_str(), int(cell->write_thread));
    bool read = cell->read_epoch >= oldest;
    if constexpr (kWrite) {
      if (read && (cell->read_epoch < block_first || cell->many_warps & kManyBlocks) &&
          !buffer.shared)
        fail(where, "writes at %td of '%s', which another block reads in this launch", offset,
             buffer.name.c_str());
      if (cell->read_epoch == epoch &&
          ((cell->many_warps & 1) || unordered(cell->read_thread, cell->read_turn) ||
           (cell->many_in_warp && cell->read_turn == threads[current].turn)))
        fail(where, "writes at %td of '%s', which thread %d reads with no barrier between", offset,
             buffer.name.c_str(), int(cell->read_thread));
      cell->write_epoch = epoch;
      cell->write_thread = uint16_t(current);
      cell->write_turn = threads[current].turn;
    } else {
      if (!written && !buffer.initialised && (buffer.shared || !cell->write_epoch))
        fail(where, "reads at %td of '%s', which nobody wrote", offset, buffer.name.c_str());
      uint8_t many_blocks = read && (cell->read_epoch < block_first || cell->many_warps & kManyBlocks)
                                ? kManyBlocks : 0;
      if (cell->read_epoch == epoch) {
        if (cell->read_thread / kWarp != current / kWarp) {
          cell->many_warps |= 1;
        } else if (cell->read_turn == threads[current].turn) {
          cell->many_in_warp |= cell->read_thread != current;
        } else {
          cell->many_in_warp = 0;
        }
        cell->many_warps |= many_blocks;
      } else {
        cell->many_warps = many_blocks;
        cell->many_in_warp = 0;
      }
      cell->read_epoch = epoch;
      cell->read_thread = uint16_t(current);
      cell->read_turn = threads[current].turn;
    }
  }
}

Buffer& buffer_of(void* place) {
  size_t slot = (reinterpret_cast<uintptr_t>(place) - kBase) >> kSlotBits;
  if (slot >= buffers.size()) broken("a pointer that is not the GPU's");
  return buffers[slot];
}

void suspend() {
  if (!_setjmp(threads[current].place)) _longjmp(scheduler, 1);
}

void fiber() {
  for (;;) {
    kernel->call(arguments.data());
    threads[current].state = State::kDone;
    suspend();
  }
}

// Runs the current thread until it waits or ends.
void resume() {
  if (_setjmp(scheduler)) return;
  if (started[current]) _longjmp(threads[current].place, 1);
  started[current] = true;
  getcontext(&fiber_context);
  fiber_context.uc_stack.ss_sp = stacks + current * kStackBytes + kPage;
  fiber_context.uc_stack.ss_size = kStackBytes - kPage;
  fiber_context.uc_link = nullptr;
  makecontext(&fiber_context, fiber, 0);
  setcontext(&fiber_context);
}

void stack_overflow(int, siginfo_t* info, void*) {
  size_t offset = size_t(static_cast<char*>(info->si_addr) - stacks);
  fail(nullptr, offset < kMaxThreads * kStackBytes ? "local memory exceeds the emulator's stack"
                                                   : "accesses memory that is not there");
}

void next_epoch() {
  if (++epoch == 0) broken("too many barriers in one run");
}

// All threads that have not ended wait; says whether any is left.
bool release() {
  int at_barrier = -1, at_warp = -1, done = -1;
  for (int i = 0; i < thread_count; ++i) {
    State state = threads[i].state;
    (state == State::kBarrier ? at_barrier : state == State::kWarp ? at_warp : done) = i;
  }
  if (at_warp >= 0) {
    current = at_warp;
    unsigned missing = threads[current].mask & ~warps[current / kWarp].arrived;
    fail(nullptr, "waits at line %d for lanes 0x%x of its warp, which do not come",
         threads[current].line, missing);
  }
  if (at_barrier < 0) return false;
  current = at_barrier;
  if (done >= 0)
    fail(nullptr, "divergent barrier: waits at line %d, but thread %d has ended",
         threads[current].line, done);
  for (int i = 0; i < thread_count; ++i) {
    if (threads[i].line != threads[current].line)
      fail(nullptr, "divergent barrier: waits at line %d, but thread %d at line %d",
           threads[current].line, i, threads[i].line);
    threads[i].state = State::kReady;
    threads[i].turn = 0;
  }
  next_epoch();
  return true;
}

void run_block() {
  next_epoch();
  block_first = epoch;
  for (int i = 0; i < thread_count; ++i) {
    threads[i].state = State::kReady;
    threads[i].turn = 0;
    threads[i].exchanges = 0;
  }
  for (Warp& warp : warps) warp.arrived = 0;
  do {
    for (bool again = true; again;) {
      again = false;
      for (current = 0; current < thread_count; ++current) {
        if (threads[current].state != State::kReady) continue;
        resume();
        again = true;
      }
    }
  } while (release());
}

void run_launch() {
  thread_count = int(block_shape.x * block_shape.y * block_shape.z);
  if (thread_count < 1 || thread_count > kMaxThreads) broken("a block of too many threads");
  next_epoch();
  launch_first = block_first = epoch;
  for (int i = 0; i < thread_count; ++i) {
    unsigned x = block_shape.x, y = block_shape.y, u = unsigned(i);
    threads[i].index = {u % x, u / x % y, u / (x * y)};
  }
  for (block.z = 0; block.z < grid.z; ++block.z)
    for (block.y = 0; block.y < grid.y; ++block.y)
      for (block.x = 0; block.x < grid.x; ++block.x) run_block();
}

}  // namespace

extern "C" {
uint3 emulator_thread_index() noexcept { return threads[current].index; }
uint3 emulator_block_index() noexcept { return block; }
uint3 emulator_block_shape() noexcept { return block_shape; }
uint3 emulator_grid_shape() noexcept { return grid; }
int emulator_lane() { return current % kWarp; }

void* emulator_shared(int number, size_t bytes, const char* name) noexcept {
  if (size_t(number) >= shared_buffers.size()) shared_buffers.resize(size_t(number) + 1, -1);
  int& found = shared_buffers[size_t(number)];
  if (found < 0) {
    found = add_buffer(name, bytes, false, true);
    static_shared += bytes;
  }
  return reinterpret_cast<void*>(buffers[size_t(found)].begin);
}
void* emulator_dynamic_shared() noexcept {
  return reinterpret_cast<void*>(buffers[size_t(dynamic_buffer)].begin);
}

void emulator_barrier(int line) {
  threads[current].state = State::kBarrier;
  threads[current].line = line;
  suspend();
}

unsigned emulator_active_lanes() {
  unsigned mask = 0;
  int first = current / kWarp * kWarp;
  for (int lane = 0; lane < kWarp && first + lane < thread_count; ++lane)
    if (threads[first + lane].state != State::kDone) mask |= 1u << lane;
  return mask;
}

const uint64_t* emulator_exchange(unsigned mask, uint64_t value, int line) {
  Thread& self = threads[current];
  Warp& warp = warps[current / kWarp];
  int lane = current % kWarp, first = current - lane;
  if (thread_count - first < kWarp) mask &= (1u << (thread_count - first)) - 1;
  if (!(mask >> lane & 1)) fail(__builtin_return_address(0), "its lane is not in its own mask");
  uint64_t* values = warp.values[self.exchanges++ & 1];
  values[lane] = value;
  warp.arrived |= 1u << lane;
  self.mask = mask;
  self.line = line;
  if ((warp.arrived & mask) == mask) {
    warp.arrived &= ~mask;
    for (int i = 0; i < kWarp; ++i) {
      if (!(mask >> i & 1)) continue;
      Thread& other = threads[first + i];
      if (other.line != line || other.mask != mask)
        fail(__builtin_return_address(0), "line %d: thread %d of its warp is at line %d", line,
             first + i, other.line);
      other.state = State::kReady;
    }
  } else {
    self.state = State::kWarp;
    suspend();
  }
  return values;
}

void emulator_warp_barrier(unsigned mask, int line) {
  emulator_exchange(mask, 0, line);
  if (++threads[current].turn == 0)
    fail(__builtin_return_address(0), "more __syncwarp between two barriers than can be followed");
}

#define ACCESS(bytes)                                                              \
  void __tsan_read##bytes(void* p) {                                               \
    access_memory<false>(p, bytes, __builtin_return_address(0));                   \
  }                                                                                \
  void __tsan_write##bytes(void* p) {                                              \
    access_memory<true>(p, bytes, __builtin_return_address(0));                    \
  }                                                                                \
  void __tsan_unaligned_read##bytes(void* p) {                                     \
    access_memory<false>(p, bytes, __builtin_return_address(0));                   \
  }                                                                                \
  void __tsan_unaligned_write##bytes(void* p) {                                    \
    access_memory<true>(p, bytes, __builtin_return_address(0));                    \
  }
ACCESS(1)
ACCESS(2)
ACCESS(4)
ACCESS(8)
ACCESS(16)
void __tsan_read_range(void* p, size_t bytes) {
  access_memory<false>(p, bytes, __builtin_return_address(0));
}
void __tsan_write_range(void* p, size_t bytes) {
  access_memory<true>(p, bytes, __builtin_return_address(0));
}
void __tsan_init() {}
void __ubsan_handle_out_of_bounds(void*, void* index) {
  fail(__builtin_return_address(0), "index %td is beyond the end of a local array",
       reinterpret_cast<ptrdiff_t>(index));
}
}

void start(int granule_bytes) {
  granule_bits = __builtin_ctz(unsigned(granule_bytes));
  stacks = static_cast<char*>(mmap(nullptr, kMaxThreads * kStackBytes, PROT_READ | PROT_WRITE,
                                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
  if (stacks == MAP_FAILED) broken("out of memory");
  for (int i = 0; i < kMaxThreads; ++i) mprotect(stacks + i * kStackBytes, kPage, PROT_NONE);
  static char signal_stack[64 << 10];
  stack_t alternative = {signal_stack, 0, sizeof(signal_stack)};
  sigaltstack(&alternative, nullptr);
  struct sigaction action = {};
  action.sa_sigaction = stack_overflow;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK;
  sigaction(SIGSEGV, &action, nullptr);
  sigaction(SIGBUS, &action, nullptr);
}

void* allocate(const std::string& name, size_t bytes, bool initialised) {
  return reinterpret_cast<void*>(buffers[size_t(add_buffer(name, bytes, initialised, false))].begin);
}

void deallocate(void* place) { empty(buffer_of(place)); }

void mark_initialised(void* place) { buffer_of(place).initialised = true; }

const EmulatorKernel* find_kernel(const EmulatorKernel* table, const std::string& name) {
  for (const EmulatorKernel* each = table; each->name; ++each)
    if (name == each->name) return each;
  broken("no kernel " + name);
}

void launch(const Launch& wanted) {
  kernel = wanted.kernel;
  if (size_t(kernel->arguments) != wanted.arguments.size())
    broken(std::string("arguments of ") + kernel->name);
  grid = {wanted.grid[0], wanted.grid[1], wanted.grid[2]};
  block_shape = {wanted.block[0], wanted.block[1], wanted.block[2]};
  arguments = wanted.arguments;
  size_t first_shared = buffers.size();
  dynamic_buffer = add_buffer("dynamic shared memory", wanted.shared_bytes, false, true);
  static_shared = 0;
  shared_buffers.clear();
  run_launch();
  if (static_shared > kStaticSharedLimit) {
    current = 0;
    fail(nullptr, "%zu bytes of static shared memory", static_shared);
  }
  for (; buffers.size() > first_shared; buffers.pop_back()) empty(buffers.back());
}
