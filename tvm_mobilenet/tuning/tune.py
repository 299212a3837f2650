"""`tune`: the tuning run as one function, from a model's name to records on disk."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvm_mobilenet.errors import InputError, UsageError
from tvm_mobilenet.tuning.finalists import Finalists
from tvm_mobilenet.tuning.records import SHIPPED, setting_of
from tvm_mobilenet.tuning.session import Limits, Place, Session

if TYPE_CHECKING:
    import torch

    from tvm_mobilenet.targets import TargetSpec
    from tvm_mobilenet.tuning.device import Remote
    from tvm_mobilenet.tuning.measure import Measurer
    from tvm_mobilenet.tuning.report import Outcome

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
    from tvm_mobilenet import frontend, targets
    from tvm_mobilenet.profiling import machine
    from tvm_mobilenet.tuning.device import Local, Remote

    if trials is not None and trials < 1:
        raise UsageError(f"--trials {trials}: at least 1 is needed")
    if trials is None and seconds is None:
        seconds = DEFAULT_SECONDS
    if (rpc_tracker is None) != (rpc_key is None):
        raise UsageError("--rpc-tracker and --rpc-key go together")
    device: Local | Remote
    if rpc_tracker is None or rpc_key is None:
        spec, cpus = local_target(target, threads)
        name, device = machine.cpu_name(), Local(cpus)
    else:
        spec = targets.load(target)
        spec = dataclasses.replace(spec, cores=threads or spec.cores)
        name, device = f"RPC key {rpc_key}", Remote(rpc_tracker, rpc_key, spec.cores, _linker(spec))
    place = Place(spec, setting_of(spec, spec.cores, name), logs or SHIPPED)
    _check_writable(place.directory)
    info(f"importing {model if isinstance(model, str | Path) else type(model).__name__}")
    imported = frontend.load_model(model, **options)
    info("starting the builder and the runner")
    label = _label(imported.name, options)
    measurer = (
        local_measurer(spec, device.cpus)
        if isinstance(device, Local)
        else _remote_measurer(spec, device, warn)
    )
    with closing(measurer), Finalists(imported, label, spec, device, info, warn) as finalists:
        session = Session(
            imported, label, place, measurer, seed=seed, info=info, warn=warn, progress=progress
        )
        if session.reused:
            info(f"{session.reused} measurements of earlier runs are used again")
        left = None if seconds is None else max(0.0, seconds - finalists.expected_seconds())
        stopped = session.search(Limits(trials, left))
        info(f"{stopped}: {session.trials} trials")
        start = time.monotonic()
        settled = finalists.settle(session.searches)
        session.clock.lap("choosing inside the network", start)
    return session.finish(settled, stopped)


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
    from tvm_mobilenet.tuning.measure import LibraryBuilder, Measurer, local_runner

    return Measurer(LibraryBuilder(_usable_cores()), local_runner(cpus), target)


def _remote_measurer(target: TargetSpec, device: Remote, warn: Callable[[str], None]) -> Measurer:
    """Builds on every core of this machine, measures on every device of the key."""
    from tvm_mobilenet.tuning.measure import LibraryBuilder, Measurer, remote_runner

    runner = remote_runner(device.tracker, device.key, device.threads, warn)
    return Measurer(LibraryBuilder(_usable_cores(), device.compiler), runner, target)


def _linker(target: TargetSpec) -> Any:
    """What links for a target: None for this kind of machine."""
    from tvm_mobilenet.deploy.toolchain import find, is_cross

    return find(target).link_library if is_cross(target) else None


def _refuse_foreign(target: TargetSpec) -> None:
    """InputError when this machine cannot run the target's code."""
    from tvm_mobilenet.deploy.library import cpu_features
    from tvm_mobilenet.runtime import host

    reason = host.why_not_here(host.architecture(target.mtriple), cpu_features(target))
    if reason:
        raise InputError(f"{target.name}: cannot be measured here: {reason}")


def _usable_cores() -> int:
    from tvm_mobilenet.targets.native import count_cores

    return count_cores()


def _check_writable(directory: Path) -> None:
    above = next(p for p in (directory, *directory.parents) if p.exists())
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        raise InputError(f"{directory}: nothing can be written there; give another --logs DIR")


def _label(name: str, options: dict[str, Any]) -> str:
    """The network's name with what changes its operators."""
    from tvm_mobilenet.models import BUILTIN

    if name not in BUILTIN:
        return name
    alpha, resolution = options.get("alpha", 1.0), options.get("resolution", 224)
    batch = options.get("batch", 1)
    return f"{name} {float(alpha)}/{resolution}" + (f" batch {batch}" if batch > 1 else "")
