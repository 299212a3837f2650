"""CUDA kernels on a CPU: proof of their numbers, and of their accesses to memory, without a GPU.

The generated CUDA C is compiled by g++; threads are fibers, blocks run one after another. Every
access to global and shared memory is checked (see `cuda_emulator/runtime.cc`). A kernel fails that

- reads or writes outside of a buffer, or misaligned for its width;
- reads shared memory that its block has not written, or global memory that nobody has;
- writes what another thread of the block reads or writes with no barrier between, or what another
  block reads or writes in the same launch;
- has a thread that ends, or waits elsewhere, while others wait at a barrier;
- indexes a local array beyond its end, or has more shared memory than a block can have.

Not modelled: time, caches, limits on registers, and any order of the threads that no barrier
forbids but the memory rules above allow (none can change a result).
"""

from __future__ import annotations

import functools
import re
import subprocess
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tvm_mobilenet.errors import ParityError

from .cuda_launches import Buffer, HostCode, Launch, lower

if TYPE_CHECKING:
    import numpy as np
    from tvm import tirx

    from tvm_mobilenet.targets import TargetSpec

_DIRECTORY = Path(__file__).parent / "cuda_emulator"
_KERNELS = "kernels.cu"
MISTAKE = 3  # the program's exit code for a mistake of a kernel
_LANGUAGE = (
    *("-std=c++20", "-O1", "-g1", "-gdwarf-4", "-march=native", "-w"),
    "-fno-strict-aliasing",  # TVM reads floats as float4
)
# Struct copies stay whole, so that a vector's access is seen, and its alignment checked, as one.
_CHECKED = (
    *("-fsanitize=thread", "--param=tsan-instrument-func-entry-exit=0", "-fno-tree-sra"),
    *("-fsanitize=bounds-strict", "-ftrivial-auto-var-init=pattern", "-fno-ipa-icf"),
)
_KERNEL = re.compile(r"__global__\s+void\s+(?:__launch_bounds__\(.*?\)\s+)?(\w+)\s*\(")
_SHARED = re.compile(
    r"(?P<dynamic>extern\s+)?__shared__\s+(?:alignas\(\d+\)\s+|__align__\(\d+\)\s+)?"
    r"(?P<type>[\w:]+(?:\s+(?:int|char|short|long))?)\s+(?P<name>\w+)\s*\[(?P<size>[^\]]*)\]\s*;"
)
_ASSEMBLY = re.compile(
    r"\basm(?:\s+volatile)?\s*\((?P<text>(?:\s*\"[^\"]*\")+)(?P<operands>[^;]*)\)\s*;"
)
_OPERAND = re.compile(r"\"[=+]?\w\"\s*\(((?:[^()]|\([^()]*\))*)\)")
_INCLUDE = re.compile(r"^\s*#\s*include\s+<(?:cuda|mma).*?>.*$", re.MULTILINE)
TIMEOUT_SECONDS = 600.0


class KernelError(ParityError):
    """A kernel broke a rule of CUDA. The message names kernel, block, thread and source line."""


@dataclass(frozen=True)
class Step:
    """One launch on tensors of an `Emulator.run`, by their names."""

    launch: Launch
    tensors: tuple[str, ...]


class Emulator:
    """Kernels of one CUDA source, compiled for this CPU. A context manager: it owns a directory.

    architecture: what `__CUDA_ARCH__` is, 750 for sm_75. Raises InputError with g++'s first
    complaint for CUDA C that it does not know, MissingToolError without a compiler.
    """

    def __init__(self, source: str, architecture: int = 900) -> None:
        self._lines = source.splitlines()
        self._folder = tempfile.TemporaryDirectory(prefix="tvm-mobilenet-cuda-")
        self._program = Path(self._folder.name) / "program"
        self._granule = granule(source)
        try:
            from tvm_mobilenet.deploy.toolchain import own

            flags = ("-no-pie", f"-D__CUDA_ARCH__={architecture}")
            kernels = _compile_kernels(source, Path(self._folder.name), *flags)
            own().run("-no-pie", kernels, *_runtime(), "-o", self._program)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Emulator:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Delete the program."""
        self._folder.cleanup()

    def run(
        self,
        inputs: Mapping[str, np.ndarray],
        others: Mapping[str, Buffer],
        steps: Iterable[Step],
        outputs: Sequence[str],
        *,
        timeout: float = TIMEOUT_SECONDS,
    ) -> dict[str, np.ndarray]:
        """Launch kernels in order and return the tensors named by `outputs`.

        inputs: tensors that hold something before the first launch; others: those that do not, and
        must be written before they are read. Raises KernelError.
        """
        import numpy as np

        numbers: dict[str, int] = {}
        plan = [f"granule {self._granule}"]
        with tempfile.TemporaryDirectory(dir=self._folder.name) as place:
            paths = [Path(place) / name for name in ("plan", "inputs", "outputs")]
            with paths[1].open("wb") as file:
                for name, value in inputs.items():
                    numbers[name] = len(numbers)
                    plan.append(f"tensor {_word(name)} {value.nbytes} 1")
                    file.write(np.ascontiguousarray(value).tobytes())
            for name, buffer in others.items():
                numbers[name] = len(numbers)
                plan.append(f"tensor {_word(name)} {_bytes(buffer)} 0")
            for step in steps:
                launch, tensors = step.launch, [numbers[name] for name in step.tensors]
                values = (*launch.grid, *launch.block, launch.shared_bytes, *tensors)
                plan.append(f"launch {launch.kernel} {' '.join(map(str, values))}")
            plan += [f"output {numbers[name]}" for name in outputs]
            paths[0].write_text("\n".join(plan) + "\n", encoding="utf-8")
            self._execute(paths, timeout)
            read = paths[2].read_bytes()
        shapes = {**others, **{n: Buffer(a.shape, str(a.dtype)) for n, a in inputs.items()}}
        results: dict[str, np.ndarray] = {}
        start = 0
        for name in outputs:
            buffer = shapes[name]
            part = np.frombuffer(read[start : start + _bytes(buffer)], buffer.dtype)
            results[name] = part.reshape(buffer.shape).copy()
            start += part.nbytes
        return results

    def _execute(self, paths: Sequence[Path], timeout: float) -> None:
        try:
            done = subprocess.run(
                [str(self._program), *map(str, paths)],
                capture_output=True,
                text=True,
                check=False,
                timeout=timeout,
            )
        except subprocess.TimeoutExpired:
            raise KernelError(f"no end after {timeout:g} s of emulation") from None
        if done.returncode == MISTAKE:
            raise mistake(done.stderr, self._program, self._lines)
        if done.returncode != 0:
            raise RuntimeError(f"the CUDA emulator failed ({done.returncode}): {done.stderr}")


def mistake(told: str, program: Path, lines: Sequence[str]) -> KernelError:
    """The error of an emulator's last words; program: whose code ran, lines: of its CUDA C."""
    address, _, message = told.strip().splitlines()[-1].partition("\t")
    return KernelError(message + _source_line(address, program, lines))


def _source_line(address: str, program: Path, lines: Sequence[str]) -> str:
    """Where in the CUDA C an instruction comes from: ` (line N: TEXT)`, "" if unknown."""
    try:
        before = hex(int(address, 16) - 1)  # the address is a return address
        command = ["addr2line", "-e", str(program), before]
        found = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    except (ValueError, OSError):
        return ""
    match = re.search(r"kernels\.cu:(\d+)", found)
    if match is None:
        return ""
    number = int(match[1])
    return f" (line {number}: {lines[number - 1].strip()[:120]})"


def build_driver(directory: Path) -> None:
    """libcuda.so.1 and libcudart.so.13 whose GPU is the emulator; see `cuda_emulator/driver.cc`.

    Raises as `Emulator` does.
    """
    from tvm_mobilenet.deploy.toolchain import own

    shared = ("-shared", "-fPIC")
    sources = [_DIRECTORY / name for name in ("runtime.cc", "driver.cc")]
    name = "libcuda.so.1"
    options = (*_LANGUAGE, *shared, "-U_FORTIFY_SOURCE", f"-Wl,-soname,{name}")
    own().run(*options, *sources, "-o", directory / name)
    # the functions of both are in the first, which is loaded before; symbols have a version here
    versions, empty = directory / "versions", directory / "cudart.cc"
    name = "libcudart.so.13"
    versions.write_text(f"{name} {{ global: emulator_cudart; }};", encoding="utf-8")
    empty.write_text('extern "C" { int emulator_cudart = 0; }\n', encoding="utf-8")
    linking = (*shared, f"-Wl,-soname,{name}", f"-Wl,--version-script={versions}")
    own().run(*linking, empty, "-o", directory / name)


def build_kernels(source: str, directory: Path, architecture: int = 900) -> Path:
    """The kernels of a source as a shared library for `build_driver`'s module loader.

    architecture: see `Emulator`. Raises as `Emulator` does.
    """
    from tvm_mobilenet.deploy.toolchain import own

    made = directory / "kernels.so"
    kernels = _compile_kernels(source, directory, "-fPIC", f"-D__CUDA_ARCH__={architecture}")
    own().run("-shared", kernels, "-o", made)
    return made


def emulate(
    kernel: tirx.PrimFunc,
    arguments: Sequence[np.ndarray],
    outputs: Sequence[Buffer],
    target: TargetSpec,
) -> list[np.ndarray]:
    """Run a scheduled function for a CUDA target on this CPU.

    arguments: its inputs, in order; outputs: shapes of what follows them in the call, whose values
    are returned. Raises KernelError for a broken kernel, NotImplementedError (see
    `cuda_launches.lower`).
    """
    name = str(kernel.attrs.get("global_symbol", "main")) if kernel.attrs else "main"
    lowered = lower({name: kernel}, target)
    assert target.gpu is not None
    with Emulator(lowered.source, 10 * target.gpu.capability) as emulator:
        return run_function(emulator, lowered.functions[name], arguments, outputs)


def emulate_source(
    source: str,
    launches: Sequence[Launch],
    arguments: Sequence[np.ndarray],
    outputs: Sequence[Buffer],
) -> list[np.ndarray]:
    """As `emulate`, of CUDA C; the launches' arguments count `arguments`, then `outputs`."""
    code = HostCode((), (), tuple(launches))
    with Emulator(source) as emulator:
        return run_function(emulator, code, arguments, outputs)


def run_function(
    emulator: Emulator,
    code: HostCode,
    arguments: Sequence[np.ndarray],
    outputs: Sequence[Buffer],
    *,
    timeout: float = TIMEOUT_SECONDS,
) -> list[np.ndarray]:
    """Run one function of an emulator; see `emulate`."""
    inputs = {f"argument {i}": value for i, value in enumerate(arguments)}
    results = {f"output {i}": buffer for i, buffer in enumerate(outputs)}
    temporaries = {f"temporary {i}": buffer for i, buffer in enumerate(code.temporaries)}
    names = [*inputs, *results, *temporaries]
    steps = [Step(launch, tuple(names[i] for i in launch.arguments)) for launch in code.launches]
    others = {**results, **temporaries}
    done = emulator.run(inputs, others, steps, list(results), timeout=timeout)
    return [done[name] for name in results]


def granule(source: str) -> int:
    """Bytes of the smallest values that the kernels touch: accesses are followed by these."""
    kernels = source[max(0, source.find("__global__")) :]  # type names stand before them anyway
    if re.search(r"\b(u?char\d?|u?int8_t|bool)\b", kernels):
        return 1
    return 2 if re.search(r"\b(half\d?|__half|u?short\d?|u?int16_t|\w*bfloat16)\b", kernels) else 4


def _as_cpp(source: str) -> str:
    """The CUDA C with shared arrays from the emulator, on the same lines."""
    numbers = iter(range(10**6))

    def shared(match: re.Match[str]) -> str:
        kind, name = match["type"], match["name"]
        if match["dynamic"]:
            return f"{kind}* {name} = ({kind}*)emulator_dynamic_shared();"
        size = f"sizeof({kind}) * ({match['size']})"
        return f'{kind}* {name} = ({kind}*)emulator_shared({next(numbers)}, {size}, "{name}");'

    text = _SHARED.sub(shared, _ASSEMBLY.sub(_ptx_call, _INCLUDE.sub("", source)))
    if "__shared__" in text:
        at = text.index("__shared__")
        raise NotImplementedError(f"shared memory declared as: {text[at : at + 100]}")
    return text


def _ptx_call(match: re.Match[str]) -> str:
    """An inline PTX instruction as a call of the emulator's function of its name.

    The arguments are in the instruction's order, which `%0`, `%1`... tell.
    """
    text = "".join(re.findall(r"\"([^\"]*)\"", match["text"])).strip(" ;")
    name, _, places = text.partition(" ")
    expressions = _OPERAND.findall(match["operands"])
    arguments = [expressions[int(number)] for number in re.findall(r"%(\d+)", places)]
    call = f"PTX_{re.sub(r'[.:]+', '_', name)}({', '.join(arguments)});"
    return call + "\n" * match[0].count("\n")


def _table(kernels: str) -> str:
    """The C++ around the kernels: what CUDA's words mean, and a table of the kernels."""
    rows = "".join(
        f'  {{"{name}", emulator_arity(&{name}), [](void** a) {{ emulator_call(&{name}, a); }}}},\n'
        for name in sorted(set(_KERNEL.findall(kernels)))
    )
    return (
        f'#include "cuda.h"\n#include "{_KERNELS}"\n'
        f"const EmulatorKernel emulator_kernels[] = {{\n{rows}  {{nullptr, 0, nullptr}}}};\n"
    )


def _compile_kernels(source: str, directory: Path, *flags: str) -> Path:
    """An object file of the kernels and their table."""
    from tvm_mobilenet.deploy.toolchain import own

    unit = directory / "kernels.cc"
    kernels = _as_cpp(source)
    unit.with_name(_KERNELS).write_text(kernels, encoding="utf-8")
    unit.write_text(_table(kernels), encoding="utf-8")
    made = unit.with_suffix(".o")
    own().run(*_LANGUAGE, *_CHECKED, *flags, "-I", _DIRECTORY, "-c", unit, "-o", made)
    return made


@functools.cache
def _runtime() -> tuple[Path, ...]:
    """The emulator's own object files, compiled once in a process."""
    from tvm_mobilenet.deploy.toolchain import own

    folder = tempfile.TemporaryDirectory(prefix="tvm-mobilenet-cuda-")
    _runtime_folders.append(folder)  # deleted when the process ends
    made = []
    for name in ("runtime", "program"):
        made.append(Path(folder.name) / f"{name}.o")
        source = _DIRECTORY / f"{name}.cc"
        own().run(*_LANGUAGE, "-no-pie", "-U_FORTIFY_SOURCE", "-c", source, "-o", made[-1])
    return tuple(made)


_runtime_folders: list[tempfile.TemporaryDirectory[str]] = []


def _word(name: str) -> str:
    return re.sub(r"\s", "_", name)


def _bytes(buffer: Buffer) -> int:
    import math

    import numpy as np

    return math.prod(buffer.shape) * np.dtype(buffer.dtype).itemsize
