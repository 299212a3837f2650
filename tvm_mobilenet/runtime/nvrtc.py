"""CUDA C to machine code by NVRTC: at build time, and at load time for an unknown architecture.

TVM's own way (`tvm.support.nvcc`) needs the whole compiler, always adds --use_fast_math (float32
divisions of 2 units in the last place, denormals lost) and drops ptxas's report on registers and
spills, which is kept here.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvm_mobilenet.errors import InputError, MissingToolError

if TYPE_CHECKING:
    from types import ModuleType

INSTALL = "pip install 'tvm-mobilenet[cuda]'"
_EXACT = ("-default-device", "--fmad=true", "--prec-div=true", "--prec-sqrt=true", "--ftz=false")
_QUIET = ("--disable-warnings", "--ptxas-options=-v")

# What TVM's preamble takes from CUDA's C++ library, which takes 0.7 s to read and 17 MB to install.
_HEADERS = {
    "cuda/std/cstdint": """#pragma once
namespace cuda { namespace std {
typedef signed char int8_t; typedef short int16_t; typedef int int32_t; typedef long long int64_t;
typedef unsigned char uint8_t; typedef unsigned short uint16_t; typedef unsigned int uint32_t;
typedef unsigned long long uint64_t;
} }
""",
    "cuda/std/type_traits": """#pragma once
namespace cuda { namespace std {
template <class A, class B> struct is_same { static constexpr bool value = false; };
template <class A> struct is_same<A, A> { static constexpr bool value = true; };
template <class A, class B> constexpr bool is_same_v = is_same<A, B>::value;
template <class A> struct is_integral;  // named by the preamble, used by nothing
template <class A> struct is_signed;
template <class A> struct is_unsigned;
template <class A> struct is_floating_point;
template <bool, class A = void> struct enable_if {};
template <class A> struct enable_if<true, A> { typedef A type; };
template <bool, class A, class B> struct conditional { typedef A type; };
template <class A, class B> struct conditional<false, A, B> { typedef B type; };
} }
""",
}


@dataclass(frozen=True)
class Image:
    """Machine code for one architecture, or PTX; `log` is what NVRTC and ptxas said."""

    arch: str  # sm_90; of PTX: compute_90
    code: bytes
    log: str


def architectures() -> tuple[str, ...]:
    """What this NVRTC compiles for, `sm_75` and on. Raises MissingToolError."""
    nvrtc = _nvrtc()
    _, supported = nvrtc.nvrtcGetSupportedArchs()
    return tuple(f"sm_{number}" for number in supported)


def version() -> str:
    """NVRTC's version, such as 13.0. Raises MissingToolError."""
    _, major, minor = _nvrtc().nvrtcVersion()
    return f"{major}.{minor}"


def compile_source(source: str, arch: str) -> Image:
    """Compile CUDA C for `sm_90` to a cubin, for `compute_90` to PTX; arithmetic is IEEE's.

    Raises MissingToolError: no NVRTC, or no headers for float16. InputError: it does not compile,
    with the first complaint.
    """
    nvrtc = _nvrtc()
    options = [f"--gpu-architecture={arch}", *_EXACT, *_QUIET]
    if "cuda_fp16.h" in source or "mma.h" in source:
        options += [f"-I{directory}" for directory in include_directories()]
    _, program = nvrtc.nvrtcCreateProgram(
        source.encode(),
        b"kernels.cu",
        len(_HEADERS),
        [text.encode() for text in _HEADERS.values()],
        [name.encode() for name in _HEADERS],
    )
    try:
        encoded = [option.encode() for option in options]
        (status,) = nvrtc.nvrtcCompileProgram(program, len(encoded), encoded)
        log = _bytes(nvrtc.nvrtcGetProgramLogSize, nvrtc.nvrtcGetProgramLog, program)
        text = log.rstrip(b"\0").decode(errors="replace")
        if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
            lines = [line.strip() for line in text.splitlines() if "error" in line]
            raise InputError(f"NVRTC cannot compile for {arch}: {(lines or [str(status)])[0]}")
        if arch.startswith("compute_"):
            code = _bytes(nvrtc.nvrtcGetPTXSize, nvrtc.nvrtcGetPTX, program)
        else:
            code = _bytes(nvrtc.nvrtcGetCUBINSize, nvrtc.nvrtcGetCUBIN, program)
    finally:
        nvrtc.nvrtcDestroyProgram(program)
    return Image(arch, code, text)


def _bytes(size: Any, get: Any, program: Any) -> bytes:
    """The bytes behind one of NVRTC's pairs of functions."""
    _, count = size(program)
    buffer = bytearray(count)
    get(program, buffer)
    return bytes(buffer)


@cache
def _nvrtc() -> ModuleType:
    try:
        from cuda import pathfinder
        from cuda.bindings import nvrtc
    except ImportError as error:
        raise MissingToolError(f"cuda-bindings is missing; run: {INSTALL}") from error
    try:
        pathfinder.load_nvidia_dynamic_lib("nvrtc")
    except (pathfinder.DynamicLibNotFoundError, RuntimeError, OSError) as error:
        raise MissingToolError(f"libnvrtc was not found; run: {INSTALL}") from error
    return nvrtc


def include_directories() -> list[Path]:
    """Where cuda_fp16.h and mma.h are, and what they include. Raises MissingToolError."""
    _nvrtc()
    from cuda import pathfinder

    found = []
    for library, place in (("cudart", "include"), ("cccl", "include/cccl")):
        directory = pathfinder.find_nvidia_header_directory(library) or _on_path(place)
        if directory is None:
            raise MissingToolError(f"the headers of CUDA's {library} are missing; run: {INSTALL}")
        found.append(Path(directory))
    return found


def _on_path(place: str) -> Path | None:
    """A directory of CUDA's wheels where they were only put on the path, which is not searched."""
    places = (Path(entry, "nvidia", "cu13", place) for entry in sys.path)
    return next((each for each in places if each.is_dir()), None)
