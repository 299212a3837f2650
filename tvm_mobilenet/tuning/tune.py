"""`tune`: the tuning run as one function, from a model's name to records on disk."""

from __future__ import annotations

import dataclasses
import errno
import itertools
import os
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvm_mobilenet.errors import InputError, UsageError
from tvm_mobilenet.tuning.device import Local, Remote
from tvm_mobilenet.tuning.finalists import Finalists
from tvm_mobilenet.tuning.measure import LibraryBuilder, Measurer, local_runner, remote_runner
from tvm_mobilenet.tuning.records import SHIPPED, setting_of
from tvm_mobilenet.tuning.session import Limits, Place, Session
from tvm_mobilenet.tuning.store import os_errors_named

if TYPE_CHECKING:
    import torch

    from tvm_mobilenet.profiling.statistics import Ratio
    from tvm_mobilenet.targets import TargetSpec
    from tvm_mobilenet.tuning.gpu_finalists import GpuFinalists
    from tvm_mobilenet.tuning.report import Outcome
    from tvm_mobilenet.tuning.sketch import SketchOutcome

DEFAULT_SECONDS = 300.0


def tune(
    model: str | Path | torch.nn.Module,
    *,
    target: str = "native",
    trials: int | None = None,
    seconds: float | None = None,
    logs: Path | None = None,
    threads: int | None = None,
    rpc_tracker: str | None = None,
    rpc_key: str | None = None,
    seed: int = 0,
    info: Callable[[str], None] = lambda message: None,
    warn: Callable[[str], None] = lambda message: None,
    progress: Callable[[int, int, str], None] = lambda done, total, label: None,
    **options: Any,
) -> Outcome:
    """Find the fastest knobs for every operator of a model and record them for `build`.

    options: those of `frontend.load_model` (alpha, resolution, batch, classes, weights, exporter).
    trials: candidates in all, those of earlier runs included. seconds: for the whole run, the
    finalists' race included. Neither: DEFAULT_SECONDS. threads: how many the records are for
    (None: the target's cores, at most those of this machine). rpc_tracker, rpc_key: measure on
    the devices of that key at the tracker "HOST:PORT" instead of on this machine.

    Raises InputError for a model, target or directory that cannot be used or a target whose code
    cannot run here; NothingMeasuredError when not one candidate could be measured.
    """
    from tvm_mobilenet import frontend

    if trials is not None and trials < 1:
        raise UsageError(f"--trials {trials}: at least 1 is needed")
    if trials is None and seconds is None:
        seconds = DEFAULT_SECONDS
    place, device = _place(target, threads, rpc_tracker, rpc_key, logs)
    info(f"importing {model if isinstance(model, str | Path) else type(model).__name__}")
    imported = frontend.load_model(model, **options)
    info("starting the builder and the runner")
    label, spec = label_of(imported.name, options), place.target
    measurer = Measurer(*_builder_and_runner(place, device, warn), spec)
    with closing(measurer), Finalists(imported, label, spec, device, info, warn) as finalists:
        session = Session(
            imported, label, place, measurer, seed=seed, info=info, warn=warn, progress=progress
        )
        return run(session, finalists, trials, seconds, info)


def run(
    session: Session,
    finalists: Finalists | GpuFinalists,
    trials: int | None,
    seconds: float | None,
    info: Callable[[str], None],
) -> Outcome:
    """Search, choose inside the network, write the records. Arguments and errors as of `tune`."""
    if session.reused:
        info(f"{session.reused} measurements of earlier runs are used again")
    recorded = session.recorded()
    try:
        left = None if seconds is None else max(0.0, seconds - finalists.expected_seconds(recorded))
        stopped = session.search(Limits(trials, left))
        info(f"{stopped}: {session.trials} trials")
        start = time.monotonic()
        settled = finalists.settle(session.searches, recorded)
    except KeyboardInterrupt:
        info(f"{session.kept} measurements are kept: the same command goes on from here")
        raise
    session.clock.lap("choosing inside the network", start)
    return session.finish(settled, stopped)


def tune_sketch(
    model: str | Path | torch.nn.Module,
    *,
    target: str = "native",
    trials: int | None = None,
    seconds: float | None = None,
    logs: Path | None = None,
    threads: int | None = None,
    rpc_tracker: str | None = None,
    rpc_key: str | None = None,
    seed: int = 0,
    info: Callable[[str], None] = lambda message: None,
    warn: Callable[[str], None] = lambda message: None,
    progress: Callable[[int, int, str], None] = lambda done, total, label: None,
    **options: Any,
) -> tuple[list[SketchOutcome], Ratio | None]:
    """Search MetaSchedule's generated space for the functions of a model without a template.

    As `tune`, but ``trials`` are for each function, and ``seconds`` for searching, in equal parts.
    Returns an outcome for each function (none when every operator has a template) and the speed-up
    of the network with the schedules that were kept over the one without; None when none was raced.
    """
    from tvm_mobilenet import frontend
    from tvm_mobilenet.tuning import sketch

    place, device = _place(target, threads, rpc_tracker, rpc_key, logs)
    imported = frontend.load_model(model, **options)
    functions = sketch.functions_of(imported, place)
    if not functions:
        return [], None
    measurer = Measurer(*_builder_and_runner(place, device, warn), place.target)
    each = trials or (sketch.TRIALS_PER_FUNCTION if seconds is None else sketch.MOST_TRIALS)
    outcomes: list[SketchOutcome] = []
    start = time.monotonic()
    with closing(measurer):
        for number, (name, function) in enumerate(functions.items()):
            info(f"searching {name}, at most {each} trials")
            done = itertools.count(number * each + 1)

            def on_trial(seconds: float | None, done: Iterator[int] = done) -> None:
                progress(next(done), each * len(functions), "trials")

            share = None if seconds is None else seconds * (number + 1) / len(functions)
            outcomes.append(
                sketch.tune_function(
                    name,
                    function,
                    place,
                    measurer.builder,
                    measurer.runner,
                    trials=each,
                    until=None if share is None else start + share,
                    seed=seed,
                    on_trial=on_trial,
                )
            )
    info("racing the network with what was found against the one without")
    return sketch.race(imported, place, device, outcomes)


def _place(
    target: str,
    threads: int | None,
    rpc_tracker: str | None,
    rpc_key: str | None,
    logs: Path | None,
) -> tuple[Place, Local | Remote]:
    """Where records go and what measures."""
    from tvm_mobilenet import targets
    from tvm_mobilenet.profiling import machine

    device: Local | Remote
    if (rpc_tracker is None) != (rpc_key is None):
        raise UsageError("--rpc-tracker and --rpc-key go together")
    if rpc_tracker is None or rpc_key is None:
        spec, cpus = local_target(target, threads)
        name, device = machine.cpu_name(), Local(cpus)
    else:
        spec = targets.load(target)
        spec = dataclasses.replace(spec, cores=threads or spec.cores)
        name, device = f"RPC key {rpc_key}", Remote(rpc_tracker, rpc_key, spec.cores, _linker(spec))
    place = Place(spec, setting_of(spec, spec.cores, name), logs or SHIPPED)
    make_directory(place.directory)
    return place, device


def local_target(name: str, threads: int | None) -> tuple[TargetSpec, tuple[int, ...]]:
    """A target whose code runs here, with as many cores as threads, and the CPUs to use.

    Rules ask for the cores to decide about threads. Raises InputError for a target that this
    machine cannot run, UsageError for more threads than it has CPUs.
    """
    from tvm_mobilenet import targets
    from tvm_mobilenet.profiling import machine

    target = targets.load(name)
    _refuse_foreign(target)
    cpus = machine.pick_cpus(threads or min(target.cores, _usable_cores()))
    return dataclasses.replace(target, cores=len(cpus)), cpus


def local_measurer(target: TargetSpec, cpus: tuple[int, ...]) -> Measurer:
    """Builds on every core of this machine, measures on the given CPUs."""
    return Measurer(LibraryBuilder(_usable_cores()), local_runner(cpus), target)


def _builder_and_runner(
    place: Place, device: Local | Remote, warn: Callable[[str], None]
) -> tuple[Any, Any]:
    """Builds on every core of this machine; measures here or on every device of the key."""
    if isinstance(device, Local):
        return LibraryBuilder(_usable_cores()), local_runner(device.cpus)
    runner = remote_runner(device.tracker, device.key, device.threads, warn)
    return LibraryBuilder(_usable_cores(), device.compiler), runner


def _linker(target: TargetSpec) -> Any:
    """What links for a target: None for this kind of machine."""
    from tvm_mobilenet.deploy.toolchain import find, is_cross

    return find(target).link_library if is_cross(target) else None


def _refuse_foreign(target: TargetSpec) -> None:
    """InputError when this machine cannot run the target's code."""
    from tvm_mobilenet.deploy.builder import why_not_here

    if reason := why_not_here(target):
        raise InputError(f"{target.name}: cannot be measured here: {reason}")


def _usable_cores() -> int:
    from tvm_mobilenet.targets.native import count_cores

    return count_cores()


def make_directory(directory: Path) -> None:
    """The directory of logs: made before anything is measured, so that nothing is lost later."""
    with os_errors_named(directory):
        directory.mkdir(parents=True, exist_ok=True)
        if not os.access(directory, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, "Permission denied")


def label_of(name: str, options: dict[str, Any]) -> str:
    """The network's name with what changes its operators."""
    from tvm_mobilenet.models import BUILTIN

    if name not in BUILTIN:
        return name
    alpha, resolution = options.get("alpha", 1.0), options.get("resolution", 224)
    batch = options.get("batch", 1)
    return f"{name} {float(alpha)}/{resolution}" + (f" batch {batch}" if batch > 1 else "")
