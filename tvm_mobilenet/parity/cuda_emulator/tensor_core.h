// half, and a warp's small matrix product: PTX's mma.sync and the fragments of nvcuda::wmma.
//
// Products of halves and of tf32 values are exact in float32; sums are float32, rounded to nearest,
// in the order of the reduction. NVIDIA does not specify the order and rounding of the hardware's
// sums, so equal bits are not promised, an error of the same size is. Which lane holds which
// element of a wmma fragment is unspecified too; here lane l holds those from l * num_elements on,
// row by row. Of mma.sync it is specified, and so it is done here.
#pragma once

#ifndef __align__
#define __align__(bytes) alignas(bytes)
#endif

struct half {
  _Float16 value;
  half() = default;
  half(float x) : value(static_cast<_Float16>(x)) {}
  operator float() const { return static_cast<float>(value); }
};
using __half = half;
struct alignas(4) half2 { half x, y; };
using __half2 = half2;
inline half2 make_half2(half x, half y) { return {x, y}; }
inline half __float2half(float x) { return half(x); }
inline half __float2half_rn(float x) { return half(x); }
inline float __half2float(half x) { return x; }
inline bool __hgt(half a, half b) { return float(a) > float(b); }
inline bool __hlt(half a, half b) { return float(a) < float(b); }
// each operation rounds to half, as on the device
#define EMULATOR_HALF(symbol) \
  inline half operator symbol(half a, half b) { return half(float(a) symbol float(b)); }
EMULATOR_HALF(+)
EMULATOR_HALF(-)
EMULATOR_HALF(*)
EMULATOR_HALF(/)

namespace nvcuda::wmma {

struct matrix_a {};
struct matrix_b {};
struct accumulator {};
struct row_major {};
struct col_major {};
enum layout_t { mem_row_major, mem_col_major };
namespace precision {
struct tf32 {};
}

template <class T>
struct Stored { using type = T; };
template <>
struct Stored<precision::tf32> { using type = float; };

template <class Use, int M, int N, int K, class T, class Layout = row_major>
struct fragment {
  static constexpr int rows = std::is_same_v<Use, matrix_b> ? K : M;
  static constexpr int columns = std::is_same_v<Use, matrix_a> ? K : N;
  static constexpr int num_elements = rows * columns / 32;
  using element_type = T;
  using storage_element_type = typename Stored<T>::type;
  storage_element_type x[num_elements];
};

// Round to nearest with 10 bits of mantissa, ties away from zero, as cvt.rna.tf32.f32 does.
inline float __float_to_tf32(float x) {
  uint32_t bits;
  memcpy(&bits, &x, 4);
  if ((bits & 0x7f800000) != 0x7f800000) bits = (bits + 0x1000) & ~uint32_t(0x1fff);
  memcpy(&x, &bits, 4);
  return x;
}

// What a tensor core reads: of a float in a tf32 fragment the upper 19 bits.
template <class T>
inline float operand(typename Stored<T>::type x) {
  float value = float(x);
  if constexpr (std::is_same_v<T, precision::tf32>) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    bits &= ~uint32_t(0x1fff);
    memcpy(&value, &bits, 4);
  }
  return value;
}

// Calls element(e, row, column) for each element that this lane holds.
template <class Fragment, class Element>
inline void each(Element element) {
  for (int e = 0; e < Fragment::num_elements; ++e) {
    int at = emulator_lane() * Fragment::num_elements + e;
    element(e, at / Fragment::columns, at % Fragment::columns);
  }
}

template <class F, class P>
inline void load(F& to, const P* from, unsigned stride, bool by_rows, int line) {
  emulator_exchange(0xffffffffu, 0, line);
  each<F>([&](int e, int row, int column) {
    to.x[e] = from[by_rows ? row * stride + column : column * stride + row];
  });
}
template <class Use, int M, int N, int K, class T, class L, class P>
inline void load_matrix_sync(fragment<Use, M, N, K, T, L>& to, const P* from, unsigned stride,
                             int line = __builtin_LINE()) {
  load(to, from, stride, std::is_same_v<L, row_major>, line);
}
template <int M, int N, int K, class T, class L, class P>
inline void load_matrix_sync(fragment<accumulator, M, N, K, T, L>& to, const P* from,
                             unsigned stride, layout_t layout, int line = __builtin_LINE()) {
  load(to, from, stride, layout == mem_row_major, line);
}
template <int M, int N, int K, class T, class L, class P>
inline void store_matrix_sync(P* to, const fragment<accumulator, M, N, K, T, L>& from,
                              unsigned stride, layout_t layout, int line = __builtin_LINE()) {
  emulator_exchange(0xffffffffu, 0, line);
  each<fragment<accumulator, M, N, K, T, L>>([&](int e, int row, int column) {
    to[layout == mem_row_major ? row * stride + column : column * stride + row] = from.x[e];
  });
}
template <class F, class V>
inline void fill_fragment(F& to, V value) {
  for (auto& x : to.x) x = value;
}

template <int M, int N, int K, class T, class S, class LA, class LB, class LC>
EMULATOR_UNCHECKED void mma_sync(fragment<accumulator, M, N, K, S, LC>& d,
                                 const fragment<matrix_a, M, N, K, T, LA>& a,
                                 const fragment<matrix_b, M, N, K, T, LB>& b,
                                 const fragment<accumulator, M, N, K, S, LC>& c,
                                 int line = __builtin_LINE()) {
  using A = fragment<matrix_a, M, N, K, T, LA>;
  using B = fragment<matrix_b, M, N, K, T, LB>;
  const A* all_a[32];
  const B* all_b[32];
  const uint64_t* places = emulator_exchange(0xffffffffu, reinterpret_cast<uint64_t>(&a), line);
  for (int lane = 0; lane < 32; ++lane) all_a[lane] = reinterpret_cast<const A*>(places[lane]);
  places = emulator_exchange(0xffffffffu, reinterpret_cast<uint64_t>(&b), line);
  for (int lane = 0; lane < 32; ++lane) all_b[lane] = reinterpret_cast<const B*>(places[lane]);
  each<fragment<accumulator, M, N, K, S, LC>>([&](int e, int row, int column) {
    float sum = float(c.x[e]);
    for (int k = 0; k < K; ++k) {
      int at_a = row * K + k, at_b = k * N + column;
      sum += operand<T>(all_a[at_a / A::num_elements]->x[at_a % A::num_elements]) *
             operand<T>(all_b[at_b / B::num_elements]->x[at_b % B::num_elements]);
    }
    d.x[e] = sum;
  });
  emulator_exchange(0xffffffffu, 0, line);  // nobody changes a fragment before all have read it
}

}  // namespace nvcuda::wmma

// Factors of mma.sync as one lane holds them, and where they belong: lane 4 g + t holds rows g and
// g + 8 of A and column g of B (PTX ISA, "Matrix Fragments for mma.m16n8k8" and "m16n8k16").
template <int K>
struct EmulatorHalves {
  static constexpr int steps = K, of_a = K / 2, of_b = K / 4;
  uint32_t a[K / 4], b[K / 8];
  static float value(const uint32_t* registers, int i) {
    half x;
    memcpy(&x, reinterpret_cast<const char*>(registers) + 2 * i, 2);
    return x;
  }
  static int lower(int i) { return i % 4 / 2; }  // whether element i of A is of row g + 8
  static int column(int i, int t) { return 2 * t + i % 2 + i / 4 * 8; }  // of A
  static int row(int i, int t) { return 2 * t + i % 2 + i / 2 * 8; }     // of B
};
struct EmulatorTf32 {
  static constexpr int steps = 8, of_a = 4, of_b = 2;
  uint32_t a[4], b[2];
  static float value(const uint32_t* registers, int i) {
    return __uint_as_float(registers[i] & ~0x1fffu);  // the upper 19 bits are read
  }
  static int lower(int i) { return i % 2; }
  static int column(int i, int t) { return t + i / 2 * 4; }
  static int row(int i, int t) { return t + i * 4; }
};

// sums = A B + sums; a lane has columns 2 t and 2 t + 1 of row g, then of row g + 8.
template <class Factors>
EMULATOR_UNCHECKED void emulator_mma(float* sums, const Factors& own, int line) {
  const uint64_t* places = emulator_exchange(0xffffffffu, reinterpret_cast<uint64_t>(&own), line);
  int group = emulator_lane() / 4, within = emulator_lane() % 4;
  float rows[2][Factors::steps], columns[2][Factors::steps];
  for (int t = 0; t < 4; ++t) {
    auto* of = reinterpret_cast<const Factors*>(places[4 * group + t]);
    for (int i = 0; i < Factors::of_a; ++i)
      rows[Factors::lower(i)][Factors::column(i, t)] = Factors::value(of->a, i);
    for (int n = 0; n < 2; ++n) {
      of = reinterpret_cast<const Factors*>(places[4 * (2 * within + n) + t]);
      for (int i = 0; i < Factors::of_b; ++i)
        columns[n][Factors::row(i, t)] = Factors::value(of->b, i);
    }
  }
  for (int i = 0; i < 4; ++i)
    for (int k = 0; k < Factors::steps; ++k) sums[i] += rows[i / 2][k] * columns[i % 2][k];
  emulator_exchange(0xffffffffu, 0, line);  // nobody's factors go before all have read them
}

// PTX by its own name, operands in its own order; inline assembly is turned into calls of these.
inline void PTX_mma_sync_aligned_m16n8k16_row_col_f32_f16_f16_f32(
    float& d0, float& d1, float& d2, float& d3, uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3,
    uint32_t b0, uint32_t b1, float c0, float c1, float c2, float c3,
    int line = __builtin_LINE()) {
  float sums[] = {c0, c1, c2, c3};
  emulator_mma(sums, EmulatorHalves<16>{{a0, a1, a2, a3}, {b0, b1}}, line);
  d0 = sums[0], d1 = sums[1], d2 = sums[2], d3 = sums[3];
}
inline void PTX_mma_sync_aligned_m16n8k8_row_col_f32_f16_f16_f32(
    float& d0, float& d1, float& d2, float& d3, uint32_t a0, uint32_t a1, uint32_t b0, float c0,
    float c1, float c2, float c3, int line = __builtin_LINE()) {
  float sums[] = {c0, c1, c2, c3};
  emulator_mma(sums, EmulatorHalves<8>{{a0, a1}, {b0}}, line);
  d0 = sums[0], d1 = sums[1], d2 = sums[2], d3 = sums[3];
}
inline void PTX_mma_sync_aligned_m16n8k8_row_col_f32_tf32_tf32_f32(
    float& d0, float& d1, float& d2, float& d3, uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3,
    uint32_t b0, uint32_t b1, float c0, float c1, float c2, float c3,
    int line = __builtin_LINE()) {
  float sums[] = {c0, c1, c2, c3};
  emulator_mma(sums, EmulatorTf32{{a0, a1, a2, a3}, {b0, b1}}, line);
  d0 = sums[0], d1 = sums[1], d2 = sums[2], d3 = sums[3];
}
inline void PTX_cvt_rna_tf32_f32(uint32_t& d, float a) {
  d = __float_as_uint(nvcuda::wmma::__float_to_tf32(a));
}
// The emulator runs one kernel after the other, so that there is none to wait for.
inline void PTX_griddepcontrol_launch_dependents() {}
inline void PTX_griddepcontrol_wait() {}
