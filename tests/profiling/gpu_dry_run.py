"""benchmarks/gpu.py to its end without a GPU: `python gpu_dry_run.py DIRECTORY [arguments of run]`,
or a command of ours, `python gpu_dry_run.py DIRECTORY tvm-mobilenet bench ...`.

TVM's kernels run emulated, by `parity.cuda_emulate.build_driver` (in DIRECTORY, which
LD_LIBRARY_PATH must name before this starts); PyTorch's side runs on the CPU behind the names of
torch.cuda. What is timed is that, and means nothing; kernels that are tuned run, in times that are
invented: equal for equal kernels.

$GPU_SCRIPTS: where what was packed lies unpacked, to be used in the repository's place.
$EMULATOR_PATH: a PATH with a compiler for the emulation where $PATH has none.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import re
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

REPOSITORY = Path(__file__).parents[2]
EMULATOR = REPOSITORY / "tvm_mobilenet" / "parity" / "cuda_emulator"
SCRIPTS = os.environ.get("GPU_SCRIPTS", str(REPOSITORY / "benchmarks"))
sys.path[:0] = [SCRIPTS, str(Path(__file__).parent)]

import gpu_carried  # noqa: E402  of benchmarks/

gpu_carried.use(None)

import gpu  # noqa: E402
import gpu_steps  # noqa: E402
import torch  # noqa: E402

from tvm_mobilenet.cli import main as command_line  # noqa: E402
from tvm_mobilenet.parity import cuda_emulate  # noqa: E402
from tvm_mobilenet.profiling import gpu as timing  # noqa: E402
from tvm_mobilenet.profiling import gpu_bench, gpu_network  # noqa: E402
from tvm_mobilenet.runtime import nvrtc  # noqa: E402
from tvm_mobilenet.tuning import gpu_measure  # noqa: E402


def small() -> torch.nn.Module:
    """A network of two kernels."""
    torch.manual_seed(0)
    layers = [torch.nn.Conv2d(3, 16, 3, 2, 1), torch.nn.ReLU(), torch.nn.Conv2d(16, 8, 1)]
    return torch.nn.Sequential(*layers)


class Event:
    """A CUDA event by the CPU's clock."""

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        self.at = time.perf_counter()

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, end: Event) -> float:
        return 1e3 * (end.at - self.at)


class Stream:
    """Everything happens at once."""

    def wait_stream(self, other: Stream) -> None:
        pass


def compiled(source: str, arch: str, *, folder: Path) -> nvrtc.Image:
    """In place of machine code the path of a library for the emulated driver."""
    place = folder / hashlib.sha256(source.encode()).hexdigest()[:16]
    if not place.is_dir():
        made = Path(tempfile.mkdtemp(dir=folder))
        path = os.environ.get("EMULATOR_PATH")
        with (
            mock.patch.dict(os.environ, {"PATH": path, "CXX": ""} if path else {}),
            mock.patch.object(cuda_emulate, "_DIRECTORY", EMULATOR),  # nobody packs it
        ):
            cuda_emulate.build_kernels(source, made)
        with contextlib.suppress(OSError):  # another process was first
            made.rename(place)
    return nvrtc.Image(arch, str(place / "kernels.so").encode() + b"\0", "")


def compile_emulated(folder: Path, *arguments: Any) -> str:
    """In a worker, which starts without the stand-ins."""
    nvrtc.compile_source = functools.partial(compiled, folder=folder)
    return gpu_measure.compile_repeated(*arguments)


def invented_times(
    calls: Mapping[str, timing.Call],
    *,
    blocks: int,
    block_ms: float,
    folder: Path,
    real: Any = timing.block_times,
) -> dict[str, tuple[list[float], int]]:
    """Of kernels by their fingerprints, of networks by their numbers: the analytic one is slowest.

    All run once. Contestants of other names are timed.
    """
    if not all(re.fullmatch(r"\d|[0-9a-f]{16}", name) for name in calls):
        return real(calls, blocks=blocks, block_ms=block_ms)
    for call in calls.values():
        call()
    if len(calls) == 1 and "logs" not in sys.argv:  # only the analytic choice is tuned alone
        (folder / f"{next(iter(calls))}.analytic").touch()

    def microseconds(name: str) -> float:
        if len(name) == 1:
            return 99.0 if name == "0" else 98.0
        analytic = (folder / f"{name}.analytic").exists()
        return 30.0 if analytic else 10.0 + int(name[:4], 16) / 1e4

    return {name: (blocks * [microseconds(name)], 1) for name in calls}


def main(folder: Path, arguments: list[str]) -> int:
    """Put the stand-ins in their places and run."""
    cuda = torch.cuda
    gpu.missing_here = lambda need_gpu: []  # torch.cuda.is_available would mislead the exporter
    cuda.get_device_name = lambda number: "emulated, on a CPU"
    cuda.synchronize = lambda: None
    cuda.Event, cuda.Stream, cuda.current_stream = Event, Stream, Stream
    cuda.stream = cuda.graph = lambda argument: contextlib.nullcontext()
    cuda.CUDAGraph = lambda: SimpleNamespace(replay=lambda: None)

    def no_compiler(module: torch.nn.Module, mode: str) -> torch.nn.Module:
        raise RuntimeError(f"no compiler for {mode}")

    torch.compile = no_compiler
    nvrtc.compile_source = functools.partial(compiled, folder=folder)
    timing.interleaved = functools.partial(timing.interleaved, blocks=2, block_ms=0.1)
    timing.latency = functools.partial(timing.latency, runs=2)
    timing.block_times = functools.partial(invented_times, folder=folder)
    gpu_bench.DEVICE, gpu_measure.MOST_RUNS = "cpu", 2
    gpu_measure.compile_repeated = functools.partial(compile_emulated, folder)
    if arguments[0] == "tvm-mobilenet":
        # torch.cuda.is_available would mislead the exporter
        gpu_bench.check_device = gpu_network.check_device = lambda target: None
        return command_line(arguments[1:])
    gpu.MODELS["small"] = gpu_steps.MODELS["small"] = ("gpu_dry_run:small", {"resolution": 16})
    return gpu.main(["run", "--models", "small", "--trials", "2", *arguments])


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
