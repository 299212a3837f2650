// The words of CUDA C that TVM's generated kernels use, for g++ on a CPU. See runtime.cc.
#pragma once
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#ifndef __CUDA_ARCH__
#define __CUDA_ARCH__ 900
#endif

// Of functions that read the emulator's own memory.
#define EMULATOR_UNCHECKED __attribute__((no_sanitize("thread"), noinline))

struct uint3 { unsigned x, y, z; };

// Constant in one thread, so that the compiler may keep them over a barrier.
extern "C" {
__attribute__((const)) uint3 emulator_thread_index() noexcept;
__attribute__((const)) uint3 emulator_block_index() noexcept;
__attribute__((const)) uint3 emulator_block_shape() noexcept;
__attribute__((const)) uint3 emulator_grid_shape() noexcept;
__attribute__((const)) void* emulator_shared(int number, size_t bytes, const char* name) noexcept;
__attribute__((const)) void* emulator_dynamic_shared() noexcept;
void emulator_barrier(int line);
void emulator_warp_barrier(unsigned mask, int line);
unsigned emulator_active_lanes();
int emulator_lane();
// Publishes `value` to the lanes of `mask` and returns those of all 32 lanes.
const uint64_t* emulator_exchange(unsigned mask, uint64_t value, int line);
}

#define threadIdx (emulator_thread_index())
#define blockIdx (emulator_block_index())
#define blockDim (emulator_block_shape())
#define gridDim (emulator_grid_shape())
#define __syncthreads() emulator_barrier(__LINE__)
#define EMULATOR_FIRST(first, ...) first
#define __syncwarp(...) emulator_warp_barrier(EMULATOR_FIRST(__VA_ARGS__ __VA_OPT__(, ) 0xffffffffu), __LINE__)
#define __activemask() emulator_active_lanes()

#define EMULATOR_VECTORS(name, scalar)                                                          \
  struct alignas(2 * sizeof(scalar)) name##2 { scalar x, y; };                                  \
  struct name##3 { scalar x, y, z; };                                                           \
  struct alignas(4 * sizeof(scalar)) name##4 { scalar x, y, z, w; };                            \
  inline name##2 make_##name##2(scalar x, scalar y) { return {x, y}; }                          \
  inline name##3 make_##name##3(scalar x, scalar y, scalar z) { return {x, y, z}; }             \
  inline name##4 make_##name##4(scalar x, scalar y, scalar z, scalar w) { return {x, y, z, w}; }
EMULATOR_VECTORS(float, float)
EMULATOR_VECTORS(int, int)
EMULATOR_VECTORS(short, short)
EMULATOR_VECTORS(ushort, unsigned short)
EMULATOR_VECTORS(char, signed char)
EMULATOR_VECTORS(uchar, unsigned char)
struct alignas(8) uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
struct alignas(16) longlong2 { long long x, y; };
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

// As on the device: of a NaN and a number, the number.
inline float max(float a, float b) { return fmaxf(a, b); }
inline float min(float a, float b) { return fminf(a, b); }
inline int max(int a, int b) { return a < b ? b : a; }
inline int min(int a, int b) { return b < a ? b : a; }
inline int64_t max(int64_t a, int64_t b) { return a < b ? b : a; }
inline int64_t min(int64_t a, int64_t b) { return b < a ? b : a; }
inline float __expf(float x) { return expf(x); }
inline float __logf(float x) { return logf(x); }
inline float __fdividef(float x, float y) { return x / y; }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline float __int_as_float(int bits) { float x; memcpy(&x, &bits, 4); return x; }
inline float __uint_as_float(unsigned bits) { float x; memcpy(&x, &bits, 4); return x; }
inline int __float_as_int(float x) { int bits; memcpy(&bits, &x, 4); return bits; }
inline unsigned __float_as_uint(float x) { unsigned bits; memcpy(&bits, &x, 4); return bits; }
template <class T> inline T __ldg(const T* place) { return *place; }

// Value of the lane `source` of each group of `width` lanes; the lane's own outside the group.
template <class T>
EMULATOR_UNCHECKED T emulator_shuffle(unsigned mask, T value, int source, int width, int line) {
  static_assert(sizeof(T) <= 8);
  uint64_t bits = 0;
  memcpy(&bits, &value, sizeof(T));
  const uint64_t* all = emulator_exchange(mask, bits, line);
  int lane = emulator_lane(), group = lane / width * width;
  bool inside = source >= group && source < group + width;
  T result;
  memcpy(&result, all + (inside ? source : lane), sizeof(T));
  return result;
}
#define EMULATOR_SHUFFLE(source, mask, value, other, ...)                                      \
  ([&](auto emulated_, int other_, int width_) {                                               \
    int lane_ = emulator_lane();                                                               \
    (void)lane_;                                                                               \
    return emulator_shuffle(mask, emulated_, source, width_, __LINE__);                        \
  }(value, static_cast<int>(other), EMULATOR_FIRST(__VA_ARGS__ __VA_OPT__(, ) 32)))
#define __shfl_sync(mask, value, other, ...) \
  EMULATOR_SHUFFLE(lane_ / width_ * width_ + other_ % width_, mask, value, other, __VA_ARGS__)
#define __shfl_up_sync(mask, value, other, ...) \
  EMULATOR_SHUFFLE(lane_ - other_, mask, value, other, __VA_ARGS__)
#define __shfl_down_sync(mask, value, other, ...) \
  EMULATOR_SHUFFLE(lane_ + other_, mask, value, other, __VA_ARGS__)
#define __shfl_xor_sync(mask, value, other, ...) \
  EMULATOR_SHUFFLE(lane_ ^ other_, mask, value, other, __VA_ARGS__)

// Calls a kernel with pointers; the table of them stands behind the kernels' source.
template <class... A, size_t... I>
EMULATOR_UNCHECKED void emulator_call(void (*kernel)(A...), void** arguments, std::index_sequence<I...>) {
  kernel(reinterpret_cast<A>(arguments[I])...);
}
template <class... A>
inline void emulator_call(void (*kernel)(A...), void** arguments) {
  emulator_call(kernel, arguments, std::index_sequence_for<A...>{});
}
template <class... A>
constexpr int emulator_arity(void (*)(A...)) { return sizeof...(A); }
struct EmulatorKernel {
  const char* name;
  int arguments;
  void (*call)(void**);
};
extern const EmulatorKernel emulator_kernels[];

#include "tensor_core.h"
