"""Latency on a GPU: ours and PyTorch's three ways in the same precision, in turns."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvm_mobilenet.errors import TvmMobilenetError
from tvm_mobilenet.profiling import gpu
from tvm_mobilenet.profiling.gpu_network import Progress, check_device, device_name, loaded, prove

if TYPE_CHECKING:
    import torch

    from tvm_mobilenet.frontend import ImportedModel
    from tvm_mobilenet.profiling.subject import Subject
    from tvm_mobilenet.targets import TargetSpec

OURS = "ours"
DEVICE = "cuda"  # PyTorch's name of it


@dataclass(frozen=True)
class GpuComparison:
    """One network at one batch size. Times are of an inference, whatever the batch.

    back_to_back: inferences one after another, without waiting; single: each waited for.
    not_measured: why a way of PyTorch, or the kernels' times, are not there.
    """

    launches: int
    back_to_back: Mapping[str, gpu.Timing]
    single: Mapping[str, gpu.Timing]
    speed_up_over_best_pytorch: float | None
    kernels: tuple[gpu.KernelTime, ...]
    not_measured: Mapping[str, str]


@dataclass(frozen=True)
class GpuCell:
    """A comparison, and that what was compared is right."""

    model: str
    batch: int
    precision: str
    parity: str
    comparison: GpuComparison


@dataclass(frozen=True)
class GpuBenchReport:
    """All cells of one run."""

    device: str
    cells: tuple[GpuCell, ...]


def bench(
    subjects: Sequence[Subject],
    target: TargetSpec,
    *,
    logs: Path | None = None,
    on_cell: Callable[[GpuCell], None] = lambda cell: None,
    progress: Progress = lambda text: None,
) -> GpuBenchReport:
    """Prove and time networks on this machine's GPU, at the target's precision, beside PyTorch.

    Raises InputError without a GPU or for a model that cannot be used, ParityError for outputs
    that are not PyTorch's.
    """
    check_device(target)
    cells = []
    for subject in subjects:
        where = f"{subject.label}, batch {subject.batch}, {target.precision}"
        progress(f"{where}: proving it")
        imported = subject.load()
        parity = prove(imported, target, logs)
        progress(f"{where}: timing it")
        comparison = compare(imported, target, partial(module_of, subject), logs=logs)
        cells.append(GpuCell(subject.label, subject.batch, target.precision, parity, comparison))
        on_cell(cells[-1])
    return GpuBenchReport(device_name(), tuple(cells))


def module_of(subject: Subject) -> torch.nn.Module:
    """The subject in PyTorch; InputError for an ONNX file."""
    from tvm_mobilenet.frontend.load import load_module

    return load_module(
        subject.model,
        alpha=subject.alpha,
        resolution=subject.resolution,
        classes=subject.classes,
        weights=subject.weights,
    ).module


def compare(
    imported: ImportedModel,
    target: TargetSpec,
    module: Callable[[], torch.nn.Module],
    *,
    logs: Path | None = None,
    with_compile: bool = True,
    progress: Progress = lambda text: None,
) -> GpuComparison:
    """Ours against PyTorch's three ways, in turns; and each kernel against the GPU's limits.

    with_compile: whether torch.compile is among them, which takes minutes to search.
    """
    import numpy as np

    assert target.gpu is not None
    with loaded(imported, target, logs=logs, progress=progress) as network:
        shape = imported.inputs[0].shape
        feeds = [
            np.random.default_rng(0).standard_normal(i.shape).astype(i.dtype)
            for i in imported.inputs
        ]
        ours = network.module.enqueuer(*feeds)
        try:
            theirs, failed = pytorch(module(), shape, target.precision, with_compile)
        except TvmMobilenetError as error:  # an ONNX file: nobody to compare with
            theirs, failed = {}, {"PyTorch": told(error)}
        calls = {OURS: ours, **theirs}
        timings = gpu.interleaved(calls)
        single = {name: gpu.latency(call) for name, call in calls.items()}
        launches = [dataclasses.asdict(launch) for launch in network.code.launches]
        operators, precision = network.compiled.operators, target.precision
        try:
            kernels = gpu.kernel_times(ours, launches, operators, target.gpu, precision)
        except Exception as error:  # the profiler needs rights that not every machine gives
            kernels, failed["kernel times"] = [], told(error)
    others = [timing.p50_us for name, timing in timings.items() if name != OURS]
    speed_up = min(others) / timings[OURS].p50_us if others else None
    return GpuComparison(len(launches), timings, single, speed_up, tuple(kernels), failed)


def pytorch(
    module: torch.nn.Module, shape: tuple[int, ...], precision: str, with_compile: bool = True
) -> tuple[dict[str, Callable[[], Any]], dict[str, str]]:
    """PyTorch eager in channels_last, that under a CUDA graph, torch.compile; why some are not."""
    import torch

    kind = torch.float16 if precision == "float16" else torch.float32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"
    torch.backends.cudnn.benchmark = True
    module = module.eval().to(DEVICE, kind, memory_format=torch.channels_last)  # type: ignore[call-overload]
    x = torch.randn(shape, device=DEVICE, dtype=kind).to(memory_format=torch.channels_last)

    def eager() -> Any:
        with torch.inference_mode():
            return module(x)

    def graph() -> Callable[[], Any]:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # warm up as CUDA graphs ask for
            for _ in range(3):
                eager()
        torch.cuda.current_stream().wait_stream(side)
        recorded = torch.cuda.CUDAGraph()
        with torch.cuda.graph(recorded):
            eager()
        return recorded.replay

    def compiled() -> Callable[[], Any]:
        torch.compiler.reset()  # what was compiled for another shape or precision
        optimised = torch.compile(module, mode="max-autotune")

        def call() -> Any:
            with torch.inference_mode():
                return optimised(x)

        call()  # compiles, which may fail
        return call

    made: dict[str, Callable[[], Callable[[], Any]]] = {
        "eager": lambda: eager,
        "eager, CUDA graph": graph,
    }
    if with_compile:
        made["torch.compile"] = compiled
    calls, failed = {}, {}
    for way, make in made.items():
        try:
            calls[way] = make()
            calls[way]()
        except Exception as error:  # one way fewer, and the table says so
            calls.pop(way, None)
            failed[way] = told(error)
    return calls, failed


def told(error: Exception) -> str:
    """What went wrong, in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:400]
