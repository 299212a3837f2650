"""`tune --static`: the search with predictions in the place of measurements."""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvm_mobilenet.errors import InputError, ParityError, UsageError
from tvm_mobilenet.schedules.base import Recorded, fingerprint
from tvm_mobilenet.schedules.spec import Spec, to_json
from tvm_mobilenet.tuning.finalists import Settled
from tvm_mobilenet.tuning.measure import Measurement, first_line
from tvm_mobilenet.tuning.records import SHIPPED, STATIC, setting_of
from tvm_mobilenet.tuning.session import Limits, Place, Session
from tvm_mobilenet.tuning.static.mca import cycles
from tvm_mobilenet.tuning.static.predict import predict

if TYPE_CHECKING:
    import torch
    from tvm import tirx

    from tvm_mobilenet.targets import TargetSpec
    from tvm_mobilenet.tuning.report import Outcome

SECONDS_PER_CYCLE = 1e-9  # a nominal clock: only ratios mean anything
# What a candidate must be predicted to gain over the analytic choice, and the kinds of operators
# where this beat that choice on both sets of `benchmarks/static_tuning.py`. Pointwise it lost on
# the held-out one; the stem is not predicted at all (rho 0.06), and dense layers wait for weights.
LEAST_GAIN = 0.05
EARNED = ("depthwise",)
PREDICTION_SECONDS = 300.0  # for one kernel: QEMU is slow


class Predictor:
    """What a Session measures with, without measuring: in processes of their own."""

    def __init__(self, target: TargetSpec, workers: int) -> None:
        from tvm.support.popen_pool import PopenPoolExecutor

        from tvm_mobilenet.tuning.measure import leave_interrupts

        self._target = target
        self.spent = {"predicting": 0.0}
        self._pool = PopenPoolExecutor(
            workers, timeout=PREDICTION_SECONDS, initializer=leave_interrupts
        )

    def measure(
        self,
        functions: Sequence[tirx.PrimFunc],
        on_result: Callable[[int, Measurement], None] = lambda place, measurement: None,
    ) -> list[Measurement]:
        """As `measure.Measurer.measure`; seconds are cycles at 1 GHz."""
        from tvm.support.popen_pool import StatusKind

        start = time.monotonic()
        results = []
        work = [(function, self._target) for function in functions]
        for i, done in enumerate(self._pool.map_with_error_catching(_cycles, work)):
            if done.status == StatusKind.COMPLETE:
                seconds = done.value * SECONDS_PER_CYCLE
                results.append(Measurement(seconds, (seconds, seconds)))
            else:
                results.append(Measurement(None, None, first_line(done.value) or "timeout"))
            on_result(i, results[-1])
        self.spent["predicting"] += time.monotonic() - start
        return results

    def close(self) -> None:
        """End the processes."""
        self._pool.shutdown(wait=False)


def _cycles(work: tuple[Any, TargetSpec]) -> float:
    return predict(*work).cycles


def tune_static(
    model: str | Path | torch.nn.Module,
    *,
    target: str,
    trials: int | None = None,
    seconds: float | None = None,
    logs: Path | None = None,
    threads: int | None = None,
    seed: int = 0,
    info: Callable[[str], None] = lambda message: None,
    warn: Callable[[str], None] = lambda message: None,
    progress: Callable[[int, int, str], None] = lambda done, total, label: None,
    **options: Any,
) -> Outcome:
    """As `tune.tune`, without a device: candidates are predicted, for one thread.

    What is predicted to be at least LEAST_GAIN faster than the analytic choice is recorded, as
    ``static``, once the network with it has passed the parity gate under QEMU.

    Raises InputError for a core that LLVM has no model of (Cortex-A7), UsageError for more than one
    thread, MissingToolError without llvm-mca, QEMU or a compiler for the target, ParityError when
    the network's numbers are wrong.
    """
    from tvm_mobilenet import frontend, targets
    from tvm_mobilenet.deploy.builder import find_compiler
    from tvm_mobilenet.deploy.emulate import emulator
    from tvm_mobilenet.targets.native import count_cores
    from tvm_mobilenet.tuning.tune import DEFAULT_SECONDS, label_of, make_directory

    spec = targets.load(target)
    if (threads or 1) > 1:
        raise UsageError("--static predicts for one thread: leave out --threads, or give 1")
    if not spec.qemu_cpu:
        raise InputError(f"{target}: --static is for targets that QEMU can model; measure here")
    # whatever is missing is said before any long work
    core = spec.mca_cpu or spec.mcpu
    cycles([["nop"]], spec.mtriple, core)
    emulator(spec.mtriple, spec.qemu_cpu)
    find_compiler(spec)
    spec = dataclasses.replace(spec, cores=1)
    place = Place(spec, setting_of(spec, 1, f"llvm-mca {core}"), logs or SHIPPED)
    make_directory(place.directory)
    if trials is None and seconds is None:
        seconds = DEFAULT_SECONDS
    imported = frontend.load_model(model, **options)
    label = label_of(imported.name, options)
    predictor: Any = Predictor(spec, count_cores())
    with closing(predictor):
        session = Session(
            imported,
            label,
            place,
            predictor,
            seed=seed,
            space=STATIC,
            kinds=EARNED,
            info=info,
            warn=warn,
            progress=progress,
        )
        stopped = session.search(Limits(trials, seconds))
    chosen = {}
    for search in session.searches:
        if search.best is None or search.baseline is None:
            continue
        candidate, predicted = search.best
        if (predicted.seconds or search.baseline) <= search.baseline * (1.0 - LEAST_GAIN):
            chosen[search.task.operator] = candidate
    if chosen:
        info(f"proving the network with {len(chosen)} operators changed, under QEMU")
        _prove(imported, spec, chosen, info)
    return session.finish(Settled(chosen), f"{stopped}; times are predicted, at 1 GHz")


def _prove(imported: Any, target: TargetSpec, chosen: dict[str, Any], info: Any) -> None:
    """Raises ParityError unless the network with these candidates computes what PyTorch does."""
    from tvm_mobilenet.deploy.builder import compile_and_prove

    def records(spec: Spec, rule: str) -> Recorded | None:
        candidate = chosen.get(to_json(spec))
        if candidate is None or candidate.rule.name != rule:
            return None
        kernel = candidate.rule.build(spec, candidate.knobs)
        return Recorded(dataclasses.asdict(candidate.knobs), fingerprint(kernel), static=True)

    with tempfile.TemporaryDirectory(prefix="tvm-mobilenet-static-") as folder:
        proven = compile_and_prove(
            imported, target, Path(folder) / "m.so", records=records, threads=1, progress=info
        )
    if not (proven.parity.checked and proven.parity.passed):
        raise ParityError(f"nothing was recorded: {proven.parity.summary()}")
