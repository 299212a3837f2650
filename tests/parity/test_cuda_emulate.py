"""CUDA on the CPU: right kernels give the right numbers, each kind of mistake is caught."""

from __future__ import annotations

import numpy as np
import pytest

from tvm_mobilenet.errors import InputError, ParityError
from tvm_mobilenet.parity.cuda_emulate import Emulator, KernelError, emulate_source, run_function
from tvm_mobilenet.parity.cuda_launches import Buffer, HostCode, Launch

# Each takes x and y of 64 floats and runs in one block of 64 threads, if not listed otherwise.
KERNELS = r"""
KERNEL reverse ARGUMENTS {
  __shared__ float s[64];
  s[threadIdx.x] = x[threadIdx.x];
  __syncthreads();
  y[threadIdx.x] = s[63 - threadIdx.x];
}
KERNEL dynamic ARGUMENTS {
  extern __shared__ alignas(64) float d[];
  d[threadIdx.x] = x[threadIdx.x];
  __syncthreads();
  y[threadIdx.x] = d[63 - threadIdx.x];
}
KERNEL warp_sum ARGUMENTS {
  float v = x[threadIdx.x];
  for (int i = 16; i > 0; i /= 2) v += __shfl_down_sync(0xffffffff, v, i, 32);
  y[threadIdx.x] = __shfl_sync(0xffffffff, v, 0, 32);
}
KERNEL butterfly ARGUMENTS {
  float v = x[threadIdx.x];
  v += __shfl_xor_sync(__activemask(), v, 1);
  y[threadIdx.x] = v + __shfl_up_sync(0xffffffff, v, 2, 8);
}
KERNEL within_warp ARGUMENTS {
  __shared__ float s[64];
  s[threadIdx.x] = x[threadIdx.x];
  __syncwarp();
  y[threadIdx.x] = s[threadIdx.x ^ 31];
}
KERNEL vectors ARGUMENTS {
  if (threadIdx.x < 16) {
    float4 v = *(float4*)(x + threadIdx.x * 4);
    *(float4*)(y + threadIdx.x * 4) = make_float4(v.w, v.z, v.y, fmaf(v.x, 2.0f, 0.0f));
  }
}
KERNEL whole_grid ARGUMENTS {
  int i = blockIdx.y * 32 + blockIdx.x * 16 + threadIdx.z * 4 + threadIdx.y * 2 + threadIdx.x;
  y[i] = x[i] + gridDim.x + blockDim.z;
}

KERNEL no_barrier ARGUMENTS {
  __shared__ float s[64];
  s[threadIdx.x] = x[threadIdx.x];
  y[threadIdx.x] = s[63 - threadIdx.x];
}
KERNEL one_buffer_for_two_steps ARGUMENTS {
  __shared__ float s[64];
  float sum = 0.0f;
  for (int i = 0; i < 2; ++i) {
    s[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    sum += s[63 - threadIdx.x];
  }
  y[threadIdx.x] = sum;
}
KERNEL read_then_write ARGUMENTS {
  __shared__ float s[64];
  s[threadIdx.x] = x[threadIdx.x];
  __syncthreads();
  float v = s[0];
  if (threadIdx.x == 63) s[0] = v + 1.0f;
  y[threadIdx.x] = v;
}
KERNEL no_warp_barrier ARGUMENTS {
  __shared__ float s[64];
  s[threadIdx.x] = x[threadIdx.x];
  y[threadIdx.x] = s[threadIdx.x ^ 31];
}
KERNEL warp_barrier_for_a_block ARGUMENTS {
  __shared__ float s[64];
  s[threadIdx.x] = x[threadIdx.x];
  __syncwarp();
  y[threadIdx.x] = s[63 - threadIdx.x];
}
KERNEL same_place ARGUMENTS {
  __shared__ float s[64];
  s[threadIdx.x / 2] = x[threadIdx.x];
  y[threadIdx.x] = 0.0f;
}
KERNEL halo_before ARGUMENTS { y[threadIdx.x] = x[(int)threadIdx.x - 1]; }
KERNEL halo_behind ARGUMENTS { y[threadIdx.x] = x[threadIdx.x + 1]; }
KERNEL tail ARGUMENTS { y[blockIdx.x * 64 + threadIdx.x + 8] = 1.0f; }
KERNEL vector_tail ARGUMENTS {
  if (threadIdx.x == 0) *(float2*)(y + 63) = make_float2(x[0], x[1]);
}
KERNEL far_away ARGUMENTS { y[threadIdx.x] = x[1000000000 + threadIdx.x]; }
KERNEL misaligned ARGUMENTS {
  if (threadIdx.x == 0) *(float4*)y = *(float4*)(x + 2);
}
KERNEL beyond_shared ARGUMENTS {
  __shared__ float s[60];
  s[threadIdx.x] = x[threadIdx.x];
  y[threadIdx.x] = s[threadIdx.x];
}
KERNEL unwritten_shared ARGUMENTS {
  __shared__ float s[64];
  if (threadIdx.x != 5) s[threadIdx.x] = x[threadIdx.x];
  __syncthreads();
  y[threadIdx.x] = s[63 - threadIdx.x];
}
KERNEL last_block_s_shared ARGUMENTS {
  __shared__ float s[64];
  if (blockIdx.x == 0) s[threadIdx.x] = x[threadIdx.x];
  if (blockIdx.x == 1) y[threadIdx.x] = s[threadIdx.x];
}
KERNEL unwritten_output ARGUMENTS { y[threadIdx.x] += x[threadIdx.x]; }
KERNEL early_end ARGUMENTS {
  if (threadIdx.x == 63) return;
  __syncthreads();
  y[threadIdx.x] = x[threadIdx.x];
}
KERNEL two_barriers ARGUMENTS {
  if (threadIdx.x < 32) {
    __syncthreads();
  } else {
    __syncthreads();
  }
  y[threadIdx.x] = x[threadIdx.x];
}
KERNEL missing_lane ARGUMENTS {
  float v = x[threadIdx.x];
  if (threadIdx.x < 63) v += __shfl_down_sync(0xffffffff, v, 1);
  y[threadIdx.x] = v;
}
KERNEL two_blocks_write ARGUMENTS { y[threadIdx.x] = x[threadIdx.x]; }
KERNEL another_block_s_output ARGUMENTS {
  if (blockIdx.x == 0) y[threadIdx.x] = x[threadIdx.x];
  if (blockIdx.x == 1) x[threadIdx.x] = y[threadIdx.x];
}
KERNEL overwritten_input ARGUMENTS {
  if (blockIdx.x == 0) y[threadIdx.x] = x[threadIdx.x];
  if (blockIdx.x == 1) x[threadIdx.x] = 0.0f;
}
KERNEL beyond_local ARGUMENTS {
  float a[4];
  for (int i = 0; i < 4; ++i) a[i] = x[i];
  y[threadIdx.x] = a[(int)x[threadIdx.x]];
}
KERNEL too_much_shared ARGUMENTS {
  __shared__ float s[12289];
  s[threadIdx.x] = x[threadIdx.x];
  y[threadIdx.x] = s[threadIdx.x];
}
KERNEL endless ARGUMENTS {
  while (x[0] == 0.0f) __syncthreads();
}
"""

SOURCE = KERNELS.replace("KERNEL", 'extern "C" __global__ void __launch_bounds__(64)').replace(
    "ARGUMENTS", "(float* __restrict__ x, float* __restrict__ y)"
)

X = np.arange(64, dtype="float32")
WARPS = X.reshape(2, 32)
BUTTERFLY = (X + X.reshape(-1, 2)[:, ::-1].ravel()).reshape(-1, 8)

RIGHT = {
    "reverse": X[::-1],
    "dynamic": X[::-1],
    "warp_sum": WARPS.sum(axis=1, keepdims=True).repeat(32, axis=1).ravel(),
    "butterfly": (BUTTERFLY + np.c_[BUTTERFLY[:, :2], BUTTERFLY[:, :-2]]).ravel(),
    "within_warp": WARPS[:, ::-1].ravel(),
    "vectors": (X.reshape(-1, 4)[:, ::-1] * [1, 1, 1, 2]).ravel(),
    "whole_grid": X + 2 + 4,
}
SHAPES = {"whole_grid": ((2, 2, 1), (2, 2, 4))}
BLOCKS = {"last_block_s_shared": 2, "two_blocks_write": 2}
BLOCKS |= {"another_block_s_output": 2, "overwritten_input": 2}
WRONG = {
    "no_barrier": "reads at 252 of 's', which nobody wrote",
    "one_buffer_for_two_steps": "'s', which thread 31 wrote with no barrier between",
    "read_then_write": "writes at 0 of 's', which thread 63 reads with no barrier",
    "no_warp_barrier": "no barrier between|nobody wrote",
    "warp_barrier_for_a_block": "no barrier between|nobody wrote",
    "same_place": "writes at 0 of 's', which thread 0 wrote with no barrier",
    "halo_before": r"thread \(0, 0, 0\): reads 4 bytes at -4 of 'argument_0', which has 256",
    "halo_behind": r"thread \(63, 0, 0\): reads 4 bytes at 256 of 'argument_0'",
    "tail": r"thread \(56, 0, 0\): writes 4 bytes at 256 of 'output_0'",
    "vector_tail": "writes 8 bytes at 252 of 'output_0', which has 256",
    "far_away": "reads 4 bytes at 4000000000 of 'argument_0'",
    "misaligned": "reads 16 bytes at 8 of 'argument_0': misaligned",
    "beyond_shared": "writes 4 bytes at 240 of 's', which has 240",
    "unwritten_shared": "reads at 20 of 's', which nobody wrote",
    "last_block_s_shared": "reads at 0 of 's', which nobody wrote",
    "unwritten_output": "reads at 0 of 'output_0', which nobody wrote",
    "early_end": r"divergent barrier: waits at line \d+, but thread 63 has ended",
    "two_barriers": r"divergent barrier: waits at line \d+, but thread \d+ at line \d+",
    "missing_lane": "for lanes 0x80000000 of its warp, which do not come",
    "two_blocks_write": "writes at 0 of 'output_0', which another block wrote in this launch",
    "another_block_s_output": "reads at 0 of 'output_0', which another block wrote",
    "overwritten_input": "writes at 0 of 'argument_0', which another block reads in this launch",
    "beyond_local": "beyond the end of a local array",
    "too_much_shared": "49156 bytes of static shared memory",
}


@pytest.fixture(scope="module")
def emulator():
    with Emulator(SOURCE) as made:
        yield made


def launch(kernel, **others):
    grid, block = SHAPES.get(kernel, ((BLOCKS.get(kernel, 1), 1, 1), (64, 1, 1)))
    return Launch(kernel, grid, block, 256 if kernel == "dynamic" else 0, (0, 1))


def run(emulator, *kernels):
    code = HostCode((), (), tuple(map(launch, kernels)))
    return run_function(emulator, code, [X], [Buffer((64,), "float32")])[0]


def test_every_kernel_is_listed():
    import re

    listed = {*RIGHT, *WRONG, "endless"}
    assert set(re.findall(r"^KERNEL (\w+)", KERNELS, re.MULTILINE)) == listed


@pytest.mark.parametrize("kernel", RIGHT)
def test_right_kernels_give_the_right_numbers(emulator, kernel):
    np.testing.assert_array_equal(run(emulator, kernel), RIGHT[kernel])


@pytest.mark.parametrize("kernel", WRONG)
def test_each_mistake_is_caught_by_name(emulator, kernel):
    with pytest.raises(KernelError, match=f"^kernel {kernel}, block .*{WRONG[kernel]}"):
        run(emulator, kernel)


def test_a_mistake_names_the_line_of_the_source(emulator):
    with pytest.raises(KernelError, match=r"\(line \d+: y\[threadIdx.x\] = s\[63 - thread"):
        run(emulator, "no_barrier")
    assert issubclass(KernelError, ParityError)  # the command line's exit code


TENSOR_CORES = r"""
using namespace nvcuda;
extern "C" __global__ void halves(half* a, half* b, float* c) {
  __shared__ half s[256];
  wmma::fragment<wmma::matrix_a, 16, 16, 16, half, wmma::row_major> left;
  wmma::fragment<wmma::matrix_b, 16, 16, 16, half, wmma::col_major> right;
  wmma::fragment<wmma::accumulator, 16, 16, 16, float> sums;
  for (int i = threadIdx.x; i < 256; i += 32) s[i] = a[i];
  __syncthreads();
  wmma::fill_fragment(sums, 0.5f);
  wmma::load_matrix_sync(left, s, 16);
  wmma::load_matrix_sync(right, b, 16);
  wmma::mma_sync(sums, left, right, sums);
  wmma::store_matrix_sync(c, sums, 16, wmma::mem_row_major);
}
extern "C" __global__ void tf32(float* a, float* b, float* c) {
  wmma::fragment<wmma::matrix_a, 16, 16, 8, wmma::precision::tf32, wmma::row_major> left;
  wmma::fragment<wmma::matrix_b, 16, 16, 8, wmma::precision::tf32, wmma::row_major> right;
  wmma::fragment<wmma::accumulator, 16, 16, 8, float> sums;
  wmma::fill_fragment(sums, 0.0f);
  for (int k = 0; k < 16; k += 8) {
    wmma::load_matrix_sync(left, a + k, 16);
    wmma::load_matrix_sync(right, b + k * 16, 16);
    for (auto& x : left.x) x = wmma::__float_to_tf32(x);
    for (auto& x : right.x) x = wmma::__float_to_tf32(x);
    wmma::mma_sync(sums, left, right, sums);
  }
  wmma::store_matrix_sync(c, sums, 16, wmma::mem_col_major);
}
extern "C" __global__ void beyond(half* a, half* b, float* c) {
  wmma::fragment<wmma::matrix_a, 16, 16, 16, half, wmma::row_major> left;
  wmma::load_matrix_sync(left, a, 17);
}
extern "C" __global__ void half_a_warp(half* a, half* b, float* c) {
  wmma::fragment<wmma::matrix_a, 16, 16, 16, half, wmma::row_major> left;
  if (threadIdx.x < 16) wmma::load_matrix_sync(left, a, 16);
}
"""


def to_tf32(x):
    """Nearest number of 10 bits of mantissa, by its definition."""
    scale = 2.0 ** (np.floor(np.log2(np.abs(x.astype("float64")))) - 10)
    return np.round(x / scale) * scale


def test_fragments_of_tensor_cores():
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal((16, 16)).astype("float32") for _ in range(2))
    codes = {
        name: HostCode((), (), (Launch(name, (1, 1, 1), (32, 1, 1), 0, (0, 1, 2)),))
        for name in ("halves", "tf32", "beyond", "half_a_warp")
    }
    halves, output = [a.astype("float16"), b.astype("float16")], [Buffer((16, 16), "float32")]
    with Emulator(TENSOR_CORES) as emulator:
        (got,) = run_function(emulator, codes["halves"], halves, output)
        exact = halves[0].astype("float64") @ halves[1].astype("float64").T + 0.5
        assert np.abs(got - exact).max() < 2e-6
        (got,) = run_function(emulator, codes["tf32"], [a, b], output)
        assert np.abs(got.T - to_tf32(a) @ to_tf32(b)).max() < 2e-6
        assert np.abs(got.T - a.astype("float64") @ b).max() > 1e-4  # it is no float32
        with pytest.raises(KernelError, match=r"reads 2 bytes at 526 of 'argument_0'"):
            run_function(emulator, codes["beyond"], halves, output)
        with pytest.raises(KernelError, match="lanes 0xffff0000 of its warp, which do not come"):
            run_function(emulator, codes["half_a_warp"], halves, output)


def test_launches_follow_each_other(emulator):
    """What is a race in one launch is none over two: a launch is a barrier for all blocks."""
    np.testing.assert_array_equal(run(emulator, "reverse", "reverse", "vectors"), RIGHT["vectors"])


def test_an_output_that_is_not_written_is_nan(emulator):
    code = HostCode((), (), (Launch("reverse", (1, 1, 1), (64, 1, 1), 0, (0, 1)),))
    both = [Buffer((64,), "float32")] * 2
    written, untouched = run_function(emulator, code, [X], both)
    assert np.isfinite(written).all() and np.isnan(untouched).all()


def test_a_kernel_that_does_not_end_is_given_up(emulator):
    code = HostCode((), (), (launch("endless"),))
    with pytest.raises(KernelError, match=r"no end after 0\.5 s"):
        run_function(emulator, code, [X], [Buffer((64,), "float32")], timeout=0.5)


@pytest.mark.parametrize(
    ("body", "error", "says"),
    [
        ("y[0] = __tensor_core_of_tomorrow(x[0]);", InputError, "tomorrow"),
        ("__shared__ float s[2][3]; y[0] = s[0][0];", NotImplementedError, "shared memory"),
    ],
)
def test_words_that_it_does_not_know_are_refused(body, error, says):
    source = f'extern "C" __global__ void k(float* x, float* y) {{ {body} }}'
    with pytest.raises(error, match=says):
        emulate_source(source, [launch("k")], [X], [Buffer((64,), "float32")])
