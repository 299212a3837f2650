"""MetaSchedule's generated search space, for functions without a template and for comparison.

Everything here is TVM's: space generation from the function's own loops, evolutionary search over
traces, cost model, task scheduler. Ours are the builder and runner that it is given, the check of
the winner's numbers, the race inside the network, and the record. It knows nothing of blocked
layouts, edge tiles or prefetch, takes many more trials than a template and measures warm: kernels
repeat on the same buffers, for MetaSchedule makes their arguments itself.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import logging
import sys
import tempfile
import time
import types
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import tvm
from tvm import tirx
from tvm.ir.utils import derived_object
from tvm.s_tir import meta_schedule as ms

from tvm_mobilenet.compiler_pass.lower_operators import lower_operators
from tvm_mobilenet.compiler_pass.schedule_rest import (
    apply_trace,
    lower_rest,
    operator_of,
    rest_of,
)
from tvm_mobilenet.errors import NothingMeasuredError
from tvm_mobilenet.schedules import fallback
from tvm_mobilenet.schedules.base import Recorded, fingerprint
from tvm_mobilenet.tuning.check import TOLERANCE, difference
from tvm_mobilenet.tuning.measure import first_line
from tvm_mobilenet.tuning.network import compile_network, ratio, time_networks
from tvm_mobilenet.tuning.records import SKETCH, Record, identity_of, update_records
from tvm_mobilenet.tuning.replay import Memory, ReplayBuilder, ReplayRunner
from tvm_mobilenet.tuning.store import PLACEHOLDER_SECONDS

if TYPE_CHECKING:
    from tvm_mobilenet.frontend import ImportedModel
    from tvm_mobilenet.tuning.device import Device
    from tvm_mobilenet.tuning.session import Place

TRIALS_PER_FUNCTION = 32  # unless told otherwise
MOST_TRIALS = 1000  # when only the time is limited
_ITERATION = 16
_LEAST_POPULATION, _MOST_POPULATION = 64, 512


@dataclass(frozen=True)
class SketchOutcome:
    """One function: seconds of a warm run with the fallback's schedule and with the best found.

    ``reused``: trials of earlier runs that were not repeated. ``tuned``: whether its record stayed
    after the race inside the network.
    """

    function: str
    operator: str
    trials: int
    reused: int
    failed: int
    first_failure: str | None
    baseline_seconds: float
    best_seconds: float | None
    tuned: bool
    fault: str | None  # what was wrong with the best one's numbers
    record: Record | None = dataclasses.field(default=None, repr=False)


def functions_of(
    imported: ImportedModel, place: Place, *, everything: bool = False
) -> dict[str, tirx.PrimFunc]:
    """The network's functions without a template; with ``everything`` TVM's lowering of all of it.

    The latter is for comparison: blocked layouts are ours, so no build can use what is found.
    """
    with place.target.tvm_target():
        mod = imported.mod
        if not everything:
            mod, _ = lower_operators(mod, place.target.lanes)
        return rest_of(lower_rest(mod))


def tune_function(
    name: str,
    function: tirx.PrimFunc,
    place: Place,
    builder: Any,
    runner: Any,
    *,
    trials: int = TRIALS_PER_FUNCTION,
    until: float | None = None,
    seed: int = 0,
    on_trial: Callable[[float | None], None] = lambda seconds: None,
) -> SketchOutcome:
    """Search one function's generated space; the outcome has a record if it beats the fallback.

    until: `time.monotonic()` at which the search ends, with the batch that it is at. on_trial: told
    the seconds of each trial, None for a failed one. Measurements of earlier runs are used again,
    see `replay`. Raises NothingMeasuredError when the fallback itself could not be measured.
    """
    target = place.target.tvm_target()
    baseline = measured_alone(fallback.schedule(function, place.target), builder, runner, target)
    if isinstance(baseline, str):
        raise NothingMeasuredError(f"{name}: {baseline}")
    with tempfile.TemporaryDirectory(prefix="tvm-mobilenet-sketch-") as folder:
        logging.getLogger("tvm.s_tir.meta_schedule").setLevel(logging.ERROR)
        watch, memory = _Watch(on_trial, until), Memory(operator_of(function), place, seed)
        database = ms.database.MemoryDatabase()
        with _without_intrinsics():
            context = ms.TuneContext(
                mod=tvm.IRModule({"main": function.with_attr("global_symbol", "main")}),
                target=target,
                # float32 on any CPU; by the target's name TVM would add int8 intrinsics
                space_generator=ms.space_generator.PostOrderApply(
                    sch_rules="llvm", postprocs="llvm", mutator_probs="llvm"
                ),
                # TVM's defaults (512 and 50) take a minute to fill before the first trial
                search_strategy=ms.search_strategy.EvolutionarySearch(
                    population_size=max(_LEAST_POPULATION, min(_MOST_POPULATION, 2 * trials)),
                    init_min_unmeasured=min(50, trials),
                ),
                task_name=name,
                rand_state=seed + 1,  # 0 would be a random one
                num_threads=1,
            )
        try:
            with _numpy_seeded(seed):
                ms.tune.tune_tasks(
                    tasks=[context],
                    task_weights=[1.0],
                    work_dir=folder,
                    max_trials_global=trials,
                    num_trials_per_iter=min(_ITERATION, trials),
                    builder=ReplayBuilder(builder, memory),
                    runner=ReplayRunner(runner, memory),
                    database=database,
                    # not MetaSchedule's default callbacks: one deletes what was built
                    measure_callbacks=[ms.measure_callback.AddToDatabase(), watch],
                )
        except RuntimeError:
            if not watch.over:
                raise
        best = _best(database)
    return _settle(name, function, place, baseline, best, watch, memory)


@contextlib.contextmanager
def _numpy_seeded(seed: int) -> Iterator[None]:
    """MetaSchedule's cost model draws from numpy's global generator until it has learned."""
    before = np.random.get_state()
    np.random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(before)


@contextlib.contextmanager
def _without_intrinsics() -> Iterator[None]:
    """Keep TuneContext from importing all tensor intrinsics, 15 to 40 s: none is for float32."""
    name = "tvm.s_tir.tensor_intrin"
    if name in sys.modules:
        yield
        return
    sys.modules[name] = types.ModuleType(name)
    try:
        yield
    finally:
        del sys.modules[name]


def _best(database: Any) -> tuple[float, str] | None:
    """Seconds and trace of the fastest; MetaSchedule keeps failures too, as 1e10 s."""
    found = []
    for record in database.get_all_tuning_records():
        seconds = [float(s) for s in record.run_secs or ()]
        if seconds and max(seconds) < PLACEHOLDER_SECONDS:
            found.append((float(np.median(seconds)), tvm.ir.save_json(record.trace.as_json())))
    return min(found, key=lambda entry: entry[0], default=None)


def _settle(
    name: str,
    function: tirx.PrimFunc,
    place: Place,
    baseline: float,
    best: tuple[float, str] | None,
    watch: Any,
    memory: Memory,
) -> SketchOutcome:
    operator = operator_of(function)
    fault, record = None, None
    if best is not None and best[0] < baseline:
        kernel = apply_trace(function, best[1])
        fault = _fault(function, kernel, place.target.tvm_target())
        if fault is None:
            record = Record(
                operator=operator,
                rule=SKETCH,
                knobs={"trace": best[1]},
                fingerprint=fingerprint(tirx.PrimFunc(kernel.params, kernel.body)),
                setting=place.setting,
                seconds=best[0],
                spread=(best[0], best[0]),
                baseline_seconds=baseline,
                in_network=None,
                time=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
                seed=memory.seed,
                space=SKETCH,
            )
    failures = Counter(watch.failures)
    return SketchOutcome(
        function=name,
        operator=operator,
        trials=watch.trials,
        reused=memory.reused,
        failed=sum(failures.values()),
        first_failure=watch.failures[0] if watch.failures else None,
        baseline_seconds=baseline,
        best_seconds=None if best is None else best[0],
        tuned=record is not None,
        fault=fault,
        record=record,
    )


def race(
    imported: ImportedModel, place: Place, device: Device, outcomes: Sequence[SketchOutcome]
) -> tuple[list[SketchOutcome], Any]:
    """The whole network with the fallback's schedules and with those found; keeps what pays.

    While the network with them is slower, half of them is given up, those that gained least first.
    Returns the outcomes, ``tuned`` where a record was written, and the speed-up (None: no race).
    """
    found = [o.record for o in outcomes if o.record is not None]
    found.sort(key=lambda record: record.baseline_seconds - record.seconds, reverse=True)
    gain = None
    with tempfile.TemporaryDirectory(prefix="tvm-mobilenet-sketch-") as folder:
        base = None
        while found:
            kept = {r.operator: Recorded(r.knobs, r.fingerprint) for r in found}
            path = Path(folder)
            base = base or compile_network(imported, place.target, {}, path / "base.so")
            tuned = compile_network(
                imported, place.target, {}, path / f"{len(found)}.so", traces=kept.get
            )
            before, after = time_networks([base, tuned], imported, device)
            gain = ratio(before, after)
            if gain.value >= 1.0:
                break
            found = found[: len(found) // 2]
    beaten = {o.operator for o in outcomes} - {record.operator for record in found}
    setting = place.setting
    drop = [identity_of(op, setting, SKETCH) for op in beaten]
    update_records(place.directory, found, drop)
    return [dataclasses.replace(o, tuned=o.operator not in beaten) for o in outcomes], gain


def measured_alone(function: tirx.PrimFunc, builder: Any, runner: Any, target: Any) -> float | str:
    """Median seconds of a warm run through MetaSchedule's builder and runner, or why not."""
    module = tvm.IRModule({"main": function.with_attr("global_symbol", "main")})
    [built] = builder.build([ms.builder.BuilderInput(module, target)])
    if built.artifact_path is None:
        return first_line(built.error_msg)
    arguments = ms.arg_info.ArgInfo.from_prim_func(module["main"])
    entry = ms.runner.RunnerInput(str(built.artifact_path), "cpu", arguments)
    result = runner.run([entry])[0].result()
    if result.error_msg is not None:
        return first_line(result.error_msg)
    return float(np.median([float(s) for s in result.run_secs]))


def _fault(function: tirx.PrimFunc, kernel: tirx.PrimFunc, target: Any) -> str | None:
    """What is wrong with a scheduled function's numbers against the unscheduled one's."""
    generator = np.random.default_rng(0)
    shapes = [tuple(int(n) for n in p.ty.shape) for p in function.params]
    inputs = [generator.standard_normal(shape).astype("float32") for shape in shapes[:-1]]
    outputs = []
    for each in (function, kernel):
        module = tvm.IRModule({"main": each.with_attr("global_symbol", "main")})
        output = tvm.runtime.tensor(np.full(shapes[-1], np.nan, "float32"))
        tvm.compile(module, target=target).mod["main"](*map(tvm.runtime.tensor, inputs), output)
        outputs.append(output.numpy())
    error = difference(*outputs)
    if error <= TOLERANCE:  # NaN is not
        return None
    return f"its numbers differ from the unscheduled function's by {error:.1e}"


@derived_object
class _Watch(ms.measure_callback.PyMeasureCallback):
    """Counts trials and failures as they come; ends the search when its time is over."""

    def __init__(self, on_trial: Callable[[float | None], None], until: float | None) -> None:
        super().__init__()
        self.until, self.over = until, False
        self.trials = 0
        self.failures: list[str] = []
        self.on_trial = on_trial

    def apply(
        self,
        task_scheduler: Any,
        task_id: int,
        measure_candidates: Any,
        builder_results: Any,
        runner_results: Any,
    ) -> None:
        """MetaSchedule's interface: after each batch."""
        for built, ran in zip(builder_results, runner_results, strict=True):
            self.trials += 1
            error = built.error_msg or (ran.error_msg if ran is not None else "not run")
            if error:
                self.failures.append(first_line(error))
            seconds = None if error else float(np.median([float(s) for s in ran.run_secs]))
            self.on_trial(seconds)
        if self.until is not None and time.monotonic() >= self.until:
            self.over = True  # MetaSchedule itself knows only trials
            raise RuntimeError("the time for searching is over")
