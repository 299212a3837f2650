"""Kernels of a GPU -> seconds: each many times in a CUDA graph, in turns with the analytic choice.

MetaSchedule's runner measures one call after another, each started by the CPU; at batch 1 that
takes longer than most kernels do, and hides what tells candidates apart. In a network all kernels
are launches of one CUDA graph. So what is built for a candidate is a small network of TVM's Relax:
the kernel over and over on the same tensors, recorded by the same pass, loaded by the same runtime
as a bundle. Caches are warm, as they are in a network whose maps fit L2; MetaSchedule's evaluator
would flush them.

Worker processes make libraries with machine code inside; this process alone touches the GPU, and
measures while they build the next. The clock of a GPU drifts with its temperature: every candidate
takes turns with its operator's analytic choice, and its time is told at the clock at which that
choice was measured first.
"""

from __future__ import annotations

import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import numpy as np
import tvm
from tvm.s_tir import meta_schedule as ms

from tvm_mobilenet.errors import InputError
from tvm_mobilenet.profiling import gpu
from tvm_mobilenet.schedules import plain
from tvm_mobilenet.schedules.base import fingerprint, rules_for, scheduled
from tvm_mobilenet.schedules.spec import from_json
from tvm_mobilenet.tuning import check
from tvm_mobilenet.tuning.measure import LibraryBuilder, Measurement, first_line

if TYPE_CHECKING:
    from tvm import tirx

    from tvm_mobilenet.profiling.gpu import Call
    from tvm_mobilenet.runtime.cuda import CudaModule
    from tvm_mobilenet.schedules.base import Scheduled
    from tvm_mobilenet.targets import TargetSpec
    from tvm_mobilenet.tuning.check import Job

MOST_RUNS = 50  # of a kernel in a graph
GRAPH_SECONDS, LAUNCH_SECONDS = 2e-4, 2e-6  # about, of a graph; of a kernel at least
BLOCKS, BLOCK_MS = 9, 2.0  # of a candidate, in turns with the analytic choice
CODE = ".cuda"  # the directory of a library's machine code


@dataclass(frozen=True)
class Beside:
    """What a kernel takes turns with: its operator's analytic choice, and the seconds that took
    when it was measured first; None: this is the first time.
    """

    kernel: tirx.PrimFunc
    seconds: float | None


class GpuMeasurer:
    """Measures kernels on the first GPU; keeps worker processes until `close`."""

    def __init__(self, target: TargetSpec, workers: int) -> None:
        self._target, self._tvm_target, self.workers = target, target.tvm_target(), workers
        self.builder = LibraryBuilder(
            workers, compile_module=partial(compile_repeated, target, MOST_RUNS)
        )
        self.spent = {"building": 0.0, "measuring": 0.0}  # seconds
        self._kept: dict[str, Any] = {}  # what was built of kernels that are met again
        self._loaded: tuple[str, Call] | None = None  # the last one of these

    def measure(
        self,
        functions: Sequence[tirx.PrimFunc],
        on_result: Callable[[int, Measurement], None] = lambda place, measurement: None,
        beside: Sequence[Beside] = (),
    ) -> list[Measurement]:
        """One measurement for each kernel: the median of blocks of runs, their least and largest.

        beside: for each kernel what it takes turns with. on_result: told of each as soon as it is
        there. Raises InputError when the GPU stopped working, after that was told.
        """
        self._keep([each.kernel for each in beside])
        fresh = [f for f in functions if fingerprint(f) not in self._kept]
        results = []
        with closing(self.builder.built(self._inputs(fresh))) as built:  # nothing is built any more
            for place, function in enumerate(functions):
                start = time.monotonic()
                kept = self._kept.get(fingerprint(function))
                library = kept or next(built)
                self._lap("building", start)
                start = time.monotonic()
                result = self._measured(function, library, beside[place] if beside else None)
                results.append(result)
                on_result(place, result)
                if result.error is not None:
                    check_alive(result.error)
                if kept is None and library.artifact_path is not None:
                    _remove(Path(str(library.artifact_path)))
                self._lap("measuring", start)
        return results

    def rounds(self, functions: Sequence[tirx.PrimFunc], blocks: int) -> np.ndarray:
        """Seconds of kernels of one operator that take turns: (kernels, blocks).

        Raises InputError or RuntimeError when one cannot be run.
        """
        self._keep(functions)
        start = time.monotonic()
        names = [fingerprint(function) for function in functions]
        kernels = {n: (f, self._kept[n]) for n, f in zip(names, functions, strict=True)}
        times = self._times(kernels, blocks)
        self._lap("measuring", start)
        return np.array([times[name] for name in names])

    def errors(self, jobs: Sequence[Job]) -> list[float | str]:
        """As `device.Device.errors`, but against the analytic choice, which the network's parity
        proves: a plain function has no threads that a GPU could run.
        """
        pairs = [(_analytic(job), check.kernel_of(job)) for job in jobs]
        self._keep([kernel.function for pair in pairs for kernel in pair])
        found: list[float | str] = []
        operator = None
        for job, (analytic, tuned) in zip(jobs, pairs, strict=True):
            try:
                if job.operator != operator:
                    arguments = check.random_arguments(plain.build(from_json(job.operator)))
                    expected = self._outputs(job, analytic, arguments)
                    operator = job.operator
                got = self._outputs(job, tuned, arguments)
                found.append(max(map(check.difference, expected, got)))
            except (RuntimeError, InputError) as error:
                check_alive(first_line(error))
                found.append(first_line(error))
        return found

    def close(self) -> None:
        """End the workers and remove what was built."""
        self._loaded = None
        self.builder.close()

    def _keep(self, functions: Iterable[tirx.PrimFunc]) -> None:
        """Build kernels that are met again, if that was not done."""
        start = time.monotonic()
        missing = {fingerprint(f): f for f in functions if fingerprint(f) not in self._kept}
        built = list(self.builder.built(self._inputs(missing.values())))
        self._kept |= dict(zip(missing, built, strict=True))
        self._lap("building", start)

    def _inputs(self, functions: Iterable[tirx.PrimFunc]) -> list[Any]:
        modules = (tvm.IRModule({"kernel": function}) for function in functions)
        return [ms.builder.BuilderInput(module, self._tvm_target) for module in modules]

    def _lap(self, name: str, since: float) -> None:
        self.spent[name] += time.monotonic() - since

    def _measured(
        self, function: tirx.PrimFunc, library: Any, beside: Beside | None
    ) -> Measurement:
        kernels = {fingerprint(function): (function, library)}
        if beside is not None and beside.seconds is not None:
            analytic = fingerprint(beside.kernel)
            kernels[analytic] = beside.kernel, self._kept[analytic]
        try:
            times = self._times(kernels, BLOCKS)
        except (RuntimeError, InputError) as error:
            return Measurement(None, None, first_line(error))
        seconds = times[fingerprint(function)]
        if beside is not None and beside.seconds is not None:
            # block by block, at the clock that the analytic choice had the first time
            seconds = seconds / times[analytic] * beside.seconds
        return Measurement(float(np.median(seconds)), (float(seconds.min()), float(seconds.max())))

    def _times(
        self, kernels: Mapping[str, tuple[tirx.PrimFunc, Any]], blocks: int
    ) -> dict[str, np.ndarray]:
        """By fingerprint the seconds of a run, block by block."""
        calls = {name: self._call(name, *kernel) for name, kernel in kernels.items()}
        found = gpu.block_times(calls, blocks=blocks, block_ms=BLOCK_MS)
        return {
            name: np.array(found[name][0]) * 1e-6 / runs_of(function, self._target, MOST_RUNS)
            for name, (function, _) in kernels.items()
        }

    def _call(self, name: str, function: tirx.PrimFunc, library: Any) -> Call:
        """Starts a graph of the kernel; the analytic choice stays loaded while it is met again."""
        if self._loaded is not None and self._loaded[0] == name:
            return self._loaded[1]
        call = _load(library).enqueuer(*_inputs_of(function))
        if name in self._kept:
            self._loaded = name, call
        return call

    def _outputs(
        self, job: Job, kernel: Scheduled, arguments: Sequence[np.ndarray]
    ) -> list[np.ndarray]:
        spec = from_json(job.operator)
        module = _load(self._kept[fingerprint(kernel.function)])
        (output,) = module(*check.packed(spec, kernel, arguments))
        others = getattr(spec, "outputs", 1) - 1  # are among the inputs, see `repeated`
        return [*(module.inputs()[-others:] if others else []), output]


def check_alive(error: str) -> None:
    """InputError when the GPU does not answer any more: after some errors none of its memory does.

    error: what went wrong last.
    """
    import torch

    try:
        torch.cuda.synchronize()
    except RuntimeError as gone:
        raise InputError(
            f"the GPU stopped working: {error}; all measurements are kept, and the same command "
            "goes on behind this one"
        ) from gone


def runs_of(function: tirx.PrimFunc, target: TargetSpec, most: int) -> int:
    """How often a graph runs a kernel: about GRAPH_SECONDS, by its bytes."""
    assert target.gpu is not None
    sizes = (prod(shape) * np.dtype(dtype).itemsize for shape, dtype in _tensors(function))
    seconds = LAUNCH_SECONDS + sum(sizes) / (target.gpu.bandwidth_gb_s * 1e9)
    return min(most, max(4, round(GRAPH_SECONDS / seconds)))


def compile_repeated(
    target: TargetSpec, most_runs: int, work: tuple[tvm.IRModule, Any, str, Any]
) -> str:
    """`measure.Compile`: the module's ``kernel``, `runs_of` times on the same tensors as ``main``.

    Machine code lies beside the library. Raises as `ptxas.compile_without_spills`.
    """
    from tvm import relax

    from tvm_mobilenet.compiler_pass.cuda_kernels import PIPELINE, PROGRAMMATIC
    from tvm_mobilenet.compiler_pass.pipeline import pass_config
    from tvm_mobilenet.deploy.cuda import source_only
    from tvm_mobilenet.parity.cuda_launches import cuda_source
    from tvm_mobilenet.runtime.ptxas import compile_without_spills

    assert target.gpu is not None
    module, tvm_target, path, _ = work
    kernel = module["kernel"]
    if target.gpu.programmatic_launch:
        kernel = kernel.with_attr(PROGRAMMATIC, True)
    context = tvm.transform.PassContext(config=pass_config(target, cuda_graph=True))
    with tvm_target, source_only(target), context:
        executable = relax.build(
            repeated(kernel, runs_of(kernel, target, most_runs), tvm_target),
            target=tvm_target,
            relax_pipeline=None,
            tir_pipeline=PIPELINE,
            exec_mode="compiled",
        )
    executable.export_library(path)
    _, image = compile_without_spills(cuda_source(executable), target.gpu.arch)
    directory = Path(path).with_suffix(CODE)
    directory.mkdir()
    (directory / f"{image.arch}.cubin").write_bytes(image.code)
    return path


def repeated(kernel: tirx.PrimFunc, runs: int, target: tvm.target.Target) -> tvm.IRModule:
    """The kernel that often as a network, lowered as far as the virtual machine.

    A CUDA graph has all launches but the last, whose result is the network's. What a kernel writes
    beside its last argument is a parameter here.
    """
    from tvm import relax
    from tvm.relax.backend.cuda import pipeline

    *inputs, output = [relax.TensorType(*tensor) for tensor in _tensors(kernel)]
    builder = relax.BlockBuilder()
    parameters = [relax.Var(f"x{i}", each) for i, each in enumerate(inputs)]
    # no parameter is an input that changes: TVM records launches on others only
    with builder.function("main", parameters, attrs={"num_input": 0}):
        function = builder.add_func(kernel.with_attr("global_symbol", "kernel"), "kernel")
        for _ in range(runs):
            result = builder.emit(relax.call_tir(function, parameters, output))
        builder.emit_func_output(result)
    passes = [*pipeline.dataflow_lower_passes(target), *pipeline.finalize_passes(target)]
    return tvm.transform.Sequential(passes)(builder.get())


def _tensors(function: tirx.PrimFunc) -> list[tuple[list[int], str]]:
    """Shape and type of each parameter; the last one is the result."""
    return [([int(n) for n in p.ty.shape], str(p.ty.dtype)) for p in function.params]


def _inputs_of(function: tirx.PrimFunc) -> list[np.ndarray]:
    """Random values: zeros would let the GPU's clock rise."""
    values = np.random.default_rng(0).standard_normal(2**16, "float32")
    return [np.resize(values.astype(dtype), shape) for shape, dtype in _tensors(function)[:-1]]


def _analytic(job: Job) -> Scheduled:
    spec = from_json(job.operator)
    rule = next(rule for rule in rules_for(job.target) if rule.takes(spec, job.target))
    return scheduled(rule, spec, rule.analytic(spec, job.target), "analytic")


def _load(library: Any) -> CudaModule:
    """A builder's result on the GPU. Raises InputError where it failed."""
    from tvm_mobilenet.runtime.cuda import CudaModule
    from tvm_mobilenet.runtime.manifest import file_digest

    if library.artifact_path is None:
        raise InputError(first_line(library.error_msg))
    path = Path(str(library.artifact_path))
    with _interrupted_after():
        return CudaModule(path, file_digest(path), path.with_suffix(CODE))


@contextmanager
def _interrupted_after() -> Iterator[None]:
    """Ctrl-C waits: TVM asks Python for machine code, and what is raised there looks like a library
    that cannot be loaded: a candidate that failed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    pressed: list[tuple[int, FrameType | None]] = []
    before = signal.signal(signal.SIGINT, lambda *arguments: pressed.append(arguments))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if pressed and callable(before):
            before(*pressed[0])


def _remove(library: Path) -> None:
    shutil.rmtree(library.with_suffix(CODE), ignore_errors=True)
    library.unlink(missing_ok=True)
