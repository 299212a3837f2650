"""`tune` on a GPU: random knobs of every operator, timed alone; kept if the network is faster.

MetaSchedule's runner measures with cold caches in processes of a CPU; a network on a GPU is one
CUDA graph whose maps are warm in L2, and a kernel's time there is that of many launches in a row.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import random
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvm_mobilenet.errors import InputError, NothingMeasuredError
from tvm_mobilenet.profiling.gpu_network import device_name, loaded, prove

if TYPE_CHECKING:
    import numpy as np

    from tvm_mobilenet.frontend import ImportedModel
    from tvm_mobilenet.targets import TargetSpec
    from tvm_mobilenet.tuning.records import Record

RUNS = 100  # of a kernel in a measurement
LEAST_GAIN = 1.02  # of a kernel alone, over the analytic choice
TRIALS_PER_OPERATOR = 24


@dataclass(frozen=True)
class GpuTask:
    """One operator: the medians of its analytic choice and of the best knobs found, in seconds."""

    symbol: str
    rule: str
    trials: int
    failed: int  # more than the GPU has
    analytic_seconds: float
    best_seconds: float | None
    kept: bool

    @property
    def gain(self) -> float:
        """How many times as fast as the analytic choice."""
        return self.analytic_seconds / self.best_seconds if self.best_seconds else 1.0


@dataclass(frozen=True)
class GpuOutcome:
    """A tuning run. network_gain: with the records over without; parity: with them."""

    network: str
    device: str
    precision: str
    tasks: tuple[GpuTask, ...]
    stopped: str
    records: int
    network_gain: float | None
    parity: str | None
    directory: Path


def tune(
    imported: ImportedModel,
    target: TargetSpec,
    logs: Path,
    *,
    trials: int = TRIALS_PER_OPERATOR,
    seconds: float | None = None,
    seed: int = 0,
    progress: Callable[[int, int, str], None] = lambda done, total, label: None,
) -> GpuOutcome:
    """Time random knobs of every operator alone; record those that beat the analytic choice.

    trials: of each operator, at most. seconds: no operator is begun after them. Records go to
    ``logs``, and only if the network with them is proven, and faster in turns with itself without
    them. Raises NothingMeasuredError when no knobs ran, ParityError as `gpu_network.prove`.
    """
    from tvm_mobilenet.compiler_pass.schedule_operators import spec_of
    from tvm_mobilenet.tuning.records import directory_of

    start, stopped = time.monotonic(), "all operators were searched"
    with loaded(imported, target) as network:
        kernels = network.compiled.kernels
        operators = {o.symbol: o for o in network.compiled.operators if spec_of(kernels[o.symbol])}
    tasks: list[GpuTask] = []
    records: list[Record] = []
    for number, (symbol, operator) in enumerate(operators.items()):
        if seconds is not None and time.monotonic() - start > seconds:
            stopped = "the time was over"
            break
        progress(number, len(operators), symbol)
        spec = spec_of(kernels[symbol])
        rule = str(operator.schedule)
        task, record = _search(
            symbol, spec, rule, target, trials, random.Random(f"{seed} {symbol}")
        )
        tasks.append(task)
        if record is not None:
            records.append(dataclasses.replace(record, seed=seed))
    if not any(task.best_seconds for task in tasks):
        raise NothingMeasuredError(f"{imported.name}: no knobs of any operator could be measured")
    gain, parity = _race(imported, target, records) if records else (None, None)
    directory = logs / directory_of(target)
    if gain is None or gain <= 1:
        records = []
        tasks = [dataclasses.replace(task, kept=False) for task in tasks]
    else:
        from tvm_mobilenet.tuning.records import update_records

        directory.mkdir(parents=True, exist_ok=True)
        update_records(directory, records)
    return GpuOutcome(
        imported.name,
        device_name(),
        target.precision,
        tuple(tasks),
        stopped,
        len(records),
        gain,
        parity,
        directory,
    )


def _search(
    symbol: str, spec: Any, rule_name: str, target: TargetSpec, trials: int, choice: random.Random
) -> tuple[GpuTask, Record | None]:
    """The best of some random knobs of one operator, and the record that it deserves."""
    import numpy as np

    from tvm_mobilenet.schedules.base import fingerprint, rules_for, scheduled
    from tvm_mobilenet.schedules.spec import to_json
    from tvm_mobilenet.tuning import records

    rule = next(r for r in rules_for(target) if r.name == rule_name)
    analytic = rule.analytic(spec, target)
    space = [knobs for knobs in rule.space(spec, target) if knobs != analytic]
    times = {}
    drawn = choice.sample(space, min(trials, len(space)))
    for knobs in drawn:
        with contextlib.suppress(RuntimeError, InputError):  # more than the GPU has
            times[knobs] = _seconds(scheduled(rule, spec, knobs, "tuned").function, target)
    before = _seconds(scheduled(rule, spec, analytic, "analytic").function, target)
    best = min(times, key=lambda knobs: np.median(times[knobs]), default=None)
    after = None if best is None else float(np.median(times[best]))
    kept = after is not None and float(np.median(before)) / after > LEAST_GAIN
    task = GpuTask(
        symbol,
        rule_name,
        len(drawn),
        len(drawn) - len(times),
        float(np.median(before)),
        after,
        kept,
    )
    if not kept or best is None or after is None:
        return task, None
    return task, records.Record(
        operator=to_json(spec),
        rule=rule.name,
        knobs=dataclasses.asdict(best),
        fingerprint=fingerprint(scheduled(rule, spec, best, "tuned").function),
        setting=records.setting_of(target, target.cores, device_name()),
        seconds=after,
        spread=(float(times[best].min()), float(times[best].max())),
        baseline_seconds=float(np.median(before)),
        in_network=None,
        time=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        seed=0,
        space="template",
    )


def _seconds(function: Any, target: TargetSpec) -> np.ndarray:
    """Five measurements of a kernel, compiled as in a network."""
    import numpy as np
    import tvm

    from tvm_mobilenet.compiler_pass.launch_bounds import PIPELINE
    from tvm_mobilenet.compiler_pass.pipeline import pass_config
    from tvm_mobilenet.runtime.cuda import compiling

    assert target.gpu is not None
    device = tvm.cuda(0)
    named = tvm.IRModule({"main": function.with_attr("global_symbol", "main")})
    context = tvm.transform.PassContext(config=pass_config(target, False))
    with compiling(target.gpu.arch), context:
        library = tvm.compile(named, target=target.tvm_target(), tir_pipeline=PIPELINE)
    shapes = [([int(n) for n in p.ty.shape], str(p.ty.dtype)) for p in function.params]
    values = [tvm.runtime.tensor(np.ones(*shape), device) for shape in shapes]
    timer = library.mod.time_evaluator("main", device, number=RUNS, repeat=5)
    return np.array(timer(*values).results)


def _race(imported: ImportedModel, target: TargetSpec, records: list[Record]) -> tuple[float, str]:
    """The network with the records over that without, in turns; and its parity."""
    import numpy as np

    from tvm_mobilenet.profiling import gpu
    from tvm_mobilenet.tuning.records import directory_of, update_records

    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder) / directory_of(target)
        directory.mkdir()
        update_records(directory, records)
        parity = prove(imported, target, Path(folder))
        with (
            loaded(imported, target) as plain,
            loaded(imported, target, logs=Path(folder)) as tuned,
        ):
            feeds = [np.ones(i.shape, i.dtype) for i in imported.inputs]
            calls = {"plain": plain.module.enqueuer(*feeds), "tuned": tuned.module.enqueuer(*feeds)}
            timings = gpu.interleaved(calls)
    return timings["plain"].p50_us / timings["tuned"].p50_us, parity
