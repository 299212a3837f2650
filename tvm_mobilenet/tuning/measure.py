"""Candidates -> seconds, through MetaSchedule's Builder and Runner.

Cold, as in a network
---------------------
Inside a network an operator finds its weights, and much of its input, outside of the nearest
caches: the rest of the network ran in between. A kernel that is repeated on the same buffers has
everything in L1 and L2, and the winner is another one. So what is built for a candidate is not the
kernel alone but a function that runs it on ``copies`` sets of buffers in turn, together larger
than L2 (`rotating`). It is one TensorIR function that calls the other: MetaSchedule's evaluators
measure it on any device, over RPC as well, with no Python between the runs. MetaSchedule's own
``enable_cpu_cache_flush`` writes everything back to memory, which is colder than a network is on a
CPU with a large L3.

Building and measuring take turns: a compiler on the other core would disturb what is measured.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import tvm
from tvm import tirx
from tvm.ir.utils import derived_object
from tvm.s_tir import meta_schedule as ms
from tvm.script.ir_builder import IRBuilder
from tvm.support.popen_pool import PopenPoolExecutor, StatusKind
from tvm.tirx.script import builder as T

from tvm_mobilenet.tuning.store import PLACEHOLDER_SECONDS

if TYPE_CHECKING:
    from tvm_mobilenet.targets import TargetSpec

REPEATS = 20  # timed runs of a candidate, each over all copies: short next to building it
REMOTE_REPEATS = 10  # the device may be slow, or emulated
MOST_COPIES = 256
_LINE = 16  # floats in a cache line: every copy of a buffer starts at one
BUILD_TIMEOUT = 60.0  # seconds; the largest kernels take one
RUN_TIMEOUT = 30.0

# (module, TVM's target, path of the library, what links) -> the path
Compile = Callable[[tuple[Any, Any, str, Any]], str]


@dataclass(frozen=True)
class Measurement:
    """Seconds of one cold run: lower quartile, least and median of the repeats; or why not.

    The lower quartile, because whatever else runs on the machine can only add.
    """

    seconds: float | None
    spread: tuple[float, float] | None
    error: str | None = None


class Measurer:
    """Measures kernels; keeps worker processes until `close`."""

    def __init__(self, builder: Any, runner: Any, target: TargetSpec, *, cold: bool = True) -> None:
        """builder, runner: MetaSchedule's interfaces; see `local_runner` and `LibraryBuilder`.

        cold=False repeats on the same buffers, as MetaSchedule's own searches do.
        """
        self._cold = cold
        self.builder, self.runner = builder, runner
        self._target, self._tvm_target = target, target.tvm_target()
        self.spent = {"building": 0.0, "measuring": 0.0}  # seconds

    def measure(
        self,
        functions: Sequence[tirx.PrimFunc],
        on_result: Callable[[int, Measurement], None] = lambda place, measurement: None,
    ) -> list[Measurement]:
        """One measurement for each kernel; whatever happens to one costs only that one.

        on_result: told of each as soon as it is there, with its kernel's place.
        """
        sets = [copies_of(f, self._target) if self._cold else 1 for f in functions]
        start = time.monotonic()
        modules = [rotating(f, n) for f, n in zip(functions, sets, strict=True)]
        built = self.builder.build(
            [ms.builder.BuilderInput(module, self._tvm_target) for module in modules]
        )
        self.spent["building"] += time.monotonic() - start
        start = time.monotonic()
        results = [Measurement(None, None, first_line(b.error_msg)) for b in built]
        whole = [i for i, b in enumerate(built) if b.artifact_path is not None]
        inputs = [
            ms.runner.RunnerInput(
                str(built[i].artifact_path),
                "cpu" if self._target.kind == "llvm" else self._target.kind,
                ms.arg_info.ArgInfo.from_entry_func(modules[i], remove_preproc=False),
            )
            for i in whole
        ]
        for i, result in enumerate(results):
            if i not in whole:
                on_result(i, result)
        for i, future in zip(whole, self._run(inputs), strict=True):
            results[i] = _summary(future.result(), sets[i])
            Path(str(built[i].artifact_path)).unlink(missing_ok=True)
            on_result(i, results[i])
        self.spent["measuring"] += time.monotonic() - start
        return results

    def _run(self, inputs: list[Any]) -> Iterator[Any]:
        """Futures in order. LocalRunner's are all done before it returns: it gets one at a time."""
        if isinstance(self.runner, ms.runner.LocalRunner):
            return (future for entry in inputs for future in self.runner.run([entry]))
        return iter(self.runner.run(inputs))

    def close(self) -> None:
        """End the workers and remove what was built."""
        for part in (self.builder, self.runner):
            if hasattr(part, "close"):
                part.close()
            elif hasattr(part, "pool"):  # MetaSchedule's LocalRunner ends nothing by itself
                part.pool.shutdown(wait=False)


@derived_object
class LibraryBuilder(ms.builder.PyBuilder):
    """Compiles to shared libraries in processes that are kept, ``workers`` at a time.

    MetaSchedule's LocalBuilder starts new ones for every batch: 3 s of importing each.
    """

    def __init__(
        self, workers: int, compiler: Any = None, compile_module: Compile | None = None
    ) -> None:
        """compiler: what links (`fcompile` of TVM's export_library); None: this machine's own.

        compile_module: makes the library, in a worker; None: tvm.compile for a CPU.
        """
        super().__init__()
        self._compile = compile_module or _build
        self.folder = tempfile.mkdtemp(prefix="tvm-mobilenet-tune-")
        self.compiler = compiler
        self.count = 0
        self.pool = PopenPoolExecutor(workers, timeout=BUILD_TIMEOUT, initializer=leave_interrupts)

    def close(self) -> None:
        """End the processes and remove what they built."""
        self.pool.shutdown(wait=False)
        shutil.rmtree(self.folder, ignore_errors=True)

    def build(self, build_inputs: list[Any]) -> list[Any]:
        """MetaSchedule's interface: one BuilderResult for each BuilderInput."""
        return list(self.built(build_inputs))

    def built(self, build_inputs: Sequence[Any]) -> Generator[Any, None, None]:
        """The same one by one, in order, while those behind are still built."""
        work = []
        for entry in build_inputs:
            self.count += 1
            path = f"{self.folder}/{self.count}.so"
            work.append((entry.mod, entry.target, path, self.compiler))
        for done in self.pool.map_with_error_catching(self._compile, work):
            if done.status == StatusKind.COMPLETE:
                yield ms.builder.BuilderResult(done.value, None)
            elif done.status == StatusKind.TIMEOUT:
                reason = f"building took more than {BUILD_TIMEOUT:.0f} s"
                yield ms.builder.BuilderResult(None, reason)
            else:
                yield ms.builder.BuilderResult(None, f"building: {done.value}")


def local_runner(cpus: Sequence[int], timeout: float = RUN_TIMEOUT) -> Any:
    """MetaSchedule's LocalRunner, its one worker pinned to ``cpus`` with a thread on each."""
    pinned = tuple(cpus)
    return ms.runner.LocalRunner(
        timeout_sec=timeout,
        evaluator_config=ms.runner.EvaluatorConfig(number=1, repeat=REPEATS, min_repeat_ms=0),
        initializer=lambda: pin(pinned),
    )


def remote_runner(tracker: str, key: str, threads: int, on_loss: Callable[[str], None]) -> Any:
    """Every device of a key at an RPC tracker; see `remote.runner`."""
    from tvm_mobilenet.remote.runner import runner

    return runner(
        tracker,
        key,
        timeout_sec=RUN_TIMEOUT,
        threads=threads,
        evaluator_config=ms.runner.EvaluatorConfig(
            number=1, repeat=REMOTE_REPEATS, min_repeat_ms=0
        ),
        on_loss=on_loss,
    )


def leave_interrupts() -> None:
    """Ctrl-C is for the process that started this one, which then ends it."""
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)


def pin(cpus: Sequence[int]) -> None:
    """Run this worker process, and TVM's threads in it, on the given CPUs only."""
    import os

    from tvm_mobilenet.runtime.library import use_threads

    leave_interrupts()
    os.sched_setaffinity(0, cpus)
    use_threads(len(cpus), exactly=True)


def rotating(function: tirx.PrimFunc, copies: int) -> tvm.IRModule:
    """A module whose ``main`` runs ``function`` on each of ``copies`` sets of its buffers."""
    shapes = [[int(extent) for extent in p.ty.shape] for p in function.params]
    sizes = [-(-prod(shape) // _LINE) * _LINE for shape in shapes]
    with IRBuilder() as ib:
        with T.prim_func(s_tir=True):
            T.func_attr({"global_symbol": "main", "tirx.noalias": True})
            whole = [
                T.arg(f"b{i}", T.buffer((copies * n,), "float32")) for i, n in enumerate(sizes)
            ]
            with T.sblock("root"):
                T.reads()
                T.writes()
                with T.serial(0, copies) as turn:
                    arguments = [
                        T.tvm_stack_make_array(
                            T.address_of(buffer[turn * size]),
                            T.tvm_stack_make_shape(*shape),
                            0,
                            len(shape),
                            tirx.const(0, "float32"),
                            0,
                        )
                        for buffer, size, shape in zip(whole, sizes, shapes, strict=True)
                    ]
                    T.evaluate(T.call_cpacked("kernel", *arguments))
        main = ib.get()
    return tvm.IRModule({"main": main, "kernel": function.with_attr("global_symbol", "kernel")})


def copies_of(function: tirx.PrimFunc, target: TargetSpec) -> int:
    """How many sets of buffers make twice the L2 cache, at least two."""
    size = sum(4 * prod(int(extent) for extent in p.ty.shape) for p in function.params)
    return max(2, min(MOST_COPIES, -(-2 * target.l2_kib * 1024 // size)))


def _build(work: tuple[Any, Any, str, Any]) -> str:
    module, target, path, compiler = work
    tvm.compile(module, target=target).export_library(path, fcompile=compiler)
    return path


def _summary(result: Any, copies: int) -> Measurement:
    """MetaSchedule's RunnerResult; a placeholder time is a failure, whoever made it."""
    if result.error_msg is not None:
        return Measurement(None, None, first_line(result.error_msg))
    times = np.array([float(s) for s in result.run_secs])
    if not len(times) or not (times.min() > 0 and times.max() < PLACEHOLDER_SECONDS):
        return Measurement(None, None, f"the runner returned no times: {times[:3]}")
    low, quartile, median = np.percentile(times / copies, [0, 25, 50])
    return Measurement(float(quartile), (float(low), float(median)))


def first_line(message: Any) -> str:
    """The telling line of an error: the last one of a traceback."""
    lines = [line.strip() for line in str(message or "").splitlines() if line.strip()]
    return (lines[-1] if lines else "failed without a message")[:300]
