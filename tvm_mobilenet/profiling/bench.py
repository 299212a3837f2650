"""Latency against other runtimes: each model and number of threads is one contest.

`contest` has how everyone is timed, `contestants` who, `subject` what, `statistics` the ratios.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from tvm_mobilenet.errors import InputError, NothingMeasuredError, ParityError, UsageError
from tvm_mobilenet.profiling import contest, machine, peak, statistics
from tvm_mobilenet.profiling.contest import Entry, LeftOut, Outcome
from tvm_mobilenet.profiling.contestants import OURS, PEAK, check_peers, contestant
from tvm_mobilenet.profiling.process import ContestantError, ContestantProcess
from tvm_mobilenet.profiling.statistics import Ratio, Spread
from tvm_mobilenet.profiling.subject import Prepared, Subject, prepare, subjects

if TYPE_CHECKING:
    from tvm_mobilenet.targets import TargetSpec

DEFAULT_PEERS = ("onnxruntime", "torch")
DEFAULT_RUNS = 50

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Measurement:
    """One contestant in one cell. Times are of one call, whatever the batch."""

    contestant: str
    version: str
    settings: str
    runs: int
    ms: Spread
    round_medians_ms: tuple[float, ...]
    speed_up: Ratio | None  # best peer's median / this median; None when no peer was timed
    gflops: float
    share_of_peak: float | None
    error: float  # relative L2 against PyTorch in float64
    load_seconds: float
    memory_mib: float | None  # resident after the runs, of the whole process
    peak_memory_mib: float | None
    session_memory_mib: float | None  # without the interpreter, numpy and the input
    model_mib: float  # size of what was loaded: bundle's library, ONNX file, ...
    preempted: int


@dataclass(frozen=True)
class Cell:
    """One model, batch size and number of threads, with everyone who was timed on it."""

    model: str
    alpha: float
    resolution: int
    batch: int
    threads: int
    cpus: tuple[int, ...]
    mult_adds: int
    peak_gflops: float | None
    best_peer: str | None
    measurements: tuple[Measurement, ...]
    left_out: tuple[LeftOut, ...]
    order: tuple[tuple[str, ...], ...]  # who was timed when, round by round
    disturbance: machine.Disturbance
    notes: tuple[str, ...]

    def of(self, name: str) -> Measurement | None:
        """One contestant's measurement; None when it was not timed."""
        return next((m for m in self.measurements if m.contestant == name), None)


@dataclass(frozen=True)
class Summary:
    """Our speed-up over the best peer of each cell, over all cells of one kind."""

    threads: int
    batch: int
    cells: int
    geometric_mean: float
    worst: float
    worst_model: str


@dataclass(frozen=True)
class BenchReport:
    """All cells of one run."""

    cpu: str
    runs: int
    cells: tuple[Cell, ...]
    summaries: tuple[Summary, ...]


def bench(
    models: Sequence[str | Path],
    against: Sequence[str] = DEFAULT_PEERS,
    threads: Sequence[int] = (1,),
    batches: Sequence[int] = (1,),
    *,
    alpha: float = 1.0,
    resolution: int = 224,
    classes: int = 1000,
    weights: Path | None = None,
    grid: bool = False,
    runs: int = DEFAULT_RUNS,
    bundle: Path | None = None,
    target: str = "native",
    logs: Path | None = None,
    ours: bool = True,
    seed: int = 0,
    on_cell: Callable[[Cell], None] | None = None,
    progress: Progress | None = None,
) -> BenchReport:
    """Time our build of `models` against other runtimes.

    `models`, `alpha`, `resolution`, `classes`, `weights`: as `frontend.load_model`; `grid` takes
    the paper's 16 (alpha, resolution) instead. `against`: names of `contestants.PEERS`. `runs`: at
    least this many timed runs each, after warm-up. `bundle`: a built one instead of building for
    `target`, once for each number of threads, with the tuning records of `logs` (see `build`);
    `ours=False` times the peers alone. `on_cell` gets each cell when it is done.

    A peer that is missing, fails or computes something else is named in `Cell.left_out`, and the
    rest go on. Raises UsageError; InputError for a model, target or bundle that cannot be used;
    MissingToolError without a C++ compiler; NothingMeasuredError.
    """
    check_peers(against)
    todo = subjects(
        models,
        alpha=alpha,
        resolution=resolution,
        classes=classes,
        weights=weights,
        batches=batches,
        grid=grid,
    )
    if bundle is not None and len(todo) != 1:
        raise UsageError("--bundle is one model at one size: give one MODEL and one --batch")
    if bundle is not None and not ours:
        raise UsageError("a bundle is ours, and ours is not to be timed: leave one of both out")
    if not (ours or against):
        raise UsageError("there is nobody to time")
    if runs < 1:
        raise UsageError(f"--runs {runs}: at least 1 is needed")
    cpus = {count: machine.pick_cpus(count) for count in threads}
    say = progress or (lambda message: None)

    from tvm_mobilenet import targets
    from tvm_mobilenet.tuning.records import applicable

    here = targets.detect()
    if bundle is not None:
        _check_bundle(bundle, todo[0])
    elif ours:
        applicable(targets.load(target), 1, logs)  # refuse what is unusable before any work
    cells = []
    with tempfile.TemporaryDirectory(prefix="tvm-mobilenet-bench-") as root:
        peaks = {n: peak.build(here, n, Path(root) / f"peak-{n}.so") for n in threads}
        for subject in todo:
            name = f"{subject.label}, batch {subject.batch}"
            left: list[LeftOut] = []
            with tempfile.TemporaryDirectory(dir=root) as directory:
                folder = Path(directory)
                bundles: dict[int, Path | None] = dict.fromkeys(threads, bundle)
                if ours and bundle is None:
                    say(f"{name}: building our bundle")
                    for count in threads:  # peers plan for their threads, too
                        output = folder / f"bundle-{count}"
                        bundles[count] = _build(subject, output, target, count, logs, left)
                built = None if None in bundles.values() else bundles[threads[0]]
                say(f"{name}: exporting for the others")
                program = any(contestant(peer).from_program for peer in against)
                prepared = prepare(subject, folder, bundle=built, program=program, seed=seed)
                wanted = [*([OURS] if built is not None else []), *dict.fromkeys(against)]
                entries = _convert(prepared, wanted, folder, left, _within(name, say))
                for count in threads:
                    where = f"{name}, {count} thread{'s'[: count > 1]}"
                    fma = Entry(PEAK, peaks[count], peak.arguments(here, count), None)
                    outcome = contest.hold(
                        [*(_with_bundle(entry, bundles[count]) for entry in entries), fma],
                        cpus[count],
                        runs=runs,
                        seed=seed,
                        logs=folder,
                        progress=_within(where, say),
                    )
                    cells.append(_cell(prepared, cpus[count], outcome, left, here))
                    if on_cell is not None:
                        on_cell(cells[-1])
    if not any(cell.measurements for cell in cells):
        reasons = {f"{entry.contestant}: {entry.reason}" for c in cells for entry in c.left_out}
        raise NothingMeasuredError(f"nothing was measured; {'; '.join(sorted(reasons))}")
    return BenchReport(machine.cpu_name(), runs, tuple(cells), _summaries(cells))


def _check_bundle(bundle: Path, subject: Subject) -> None:
    """InputError for what is no whole bundle of the subject's input, before peers are loaded."""
    from tvm_mobilenet.runtime import manifest

    contents = manifest.read(bundle)
    manifest.check_files(bundle, contents, hashes=True)
    has = [tensor.shape for tensor in contents.inputs]
    wanted = [info.shape for info in subject.load().inputs]
    if has != wanted:
        raise InputError(
            f"{bundle}: was built for inputs {has}, {subject.label} at batch {subject.batch} takes "
            f"{wanted}; give the --resolution and --batch that it was built with"
        )


def _within(where: str, say: Progress) -> Progress:
    return lambda message: say(f"{where}: {message}")


def _with_bundle(entry: Entry, bundle: Path | None) -> Entry:
    """Our entry with the bundle for a number of threads; others as they are."""
    return replace(entry, artifact=bundle) if entry.name == OURS and bundle else entry


def _build(
    subject: Subject,
    output: Path,
    target: str,
    threads: int,
    logs: Path | None,
    left: list[LeftOut],
) -> Path | None:
    """Our bundle; None, with the reason in `left`, when it cannot be built."""
    from tvm_mobilenet import deploy

    try:
        built = deploy.build(
            subject.model,
            target=target,
            output=output,
            alpha=subject.alpha,
            resolution=subject.resolution,
            classes=subject.classes,
            weights=subject.weights,
            batch=subject.batch,
            threads=threads,
            logs=logs,
        )
    except (InputError, ParityError) as error:
        left.append(LeftOut(OURS, "failed", str(error), exit_code=error.exit_code))
        return None
    return built.path


def _convert(
    prepared: Prepared, names: Sequence[str], folder: Path, left: list[LeftOut], say: Progress
) -> list[Entry]:
    """Each contestant with its own form of the model; who has none is added to `left`."""
    entries = []
    for name in names:
        kind = contestant(name)
        if missing := kind.missing():
            reason = f"{', '.join(missing)} not installed"
            left.append(LeftOut(name, "missing", reason, kind.install, exit_code=4))
            continue
        place = folder / name
        place.mkdir()
        say(f"converting for {name}")
        try:
            with ContestantProcess(machine.pick_cpus(1), 1, place / "convert.log") as process:
                artifact = process.call(
                    "convert",
                    timeout=contest.LOAD_TIMEOUT,
                    name=name,
                    source=prepared.source,
                    folder=place,
                )
        except ContestantError as error:
            left.append(LeftOut(name, "failed", f"conversion: {error}"))
        else:
            entries.append(Entry(name, artifact, prepared.inputs, prepared.expected))
    return entries


def _cell(
    prepared: Prepared,
    cpus: tuple[int, ...],
    outcome: Outcome,
    left: Sequence[LeftOut],
    here: TargetSpec,
) -> Cell:
    import numpy as np

    subject, timings = prepared.subject, dict(outcome.timings)
    spreads = {name: statistics.spread(timing.nanoseconds) for name, timing in timings.items()}
    limit = None
    if PEAK in timings:
        del timings[PEAK]
        limit = peak.flops(here, len(cpus)) / spreads[PEAK].median / 1e6
    peers = [name for name in timings if name != OURS]
    best = min(peers, key=lambda name: spreads[name].median, default=None)
    measurements = []
    for name, timing in timings.items():
        gflops = 2 * prepared.mult_adds / spreads[name].median / 1e6
        ratio = None
        if best is not None:
            ratio = statistics.speed_up(timings[best].nanoseconds, timing.nanoseconds)
        measurements.append(
            Measurement(
                contestant=name,
                version=timing.opened.version,
                settings=timing.opened.settings,
                runs=timing.nanoseconds.size,
                ms=spreads[name],
                round_medians_ms=tuple(np.median(timing.nanoseconds, axis=1) / 1e6),
                speed_up=ratio,
                gflops=gflops,
                share_of_peak=limit and gflops / limit,
                error=timing.error,
                load_seconds=timing.opened.load_seconds,
                memory_mib=_mib(timing.memory.resident),
                peak_memory_mib=_mib(timing.memory.peak),
                session_memory_mib=_mib(timing.memory.session),
                model_mib=_size(timing.entry.artifact) / 2**20,
                preempted=timing.preempted,
            )
        )
    measurements.sort(key=lambda m: (m.contestant != OURS, m.ms.median))
    return Cell(
        model=subject.label,
        alpha=subject.alpha,
        resolution=subject.resolution,
        batch=subject.batch,
        threads=len(cpus),
        cpus=cpus,
        mult_adds=prepared.mult_adds,
        peak_gflops=limit,
        best_peer=best,
        measurements=tuple(measurements),
        left_out=(*left, *outcome.left_out),
        order=outcome.order,
        disturbance=outcome.disturbance,
        notes=outcome.disturbance.notes(),
    )


def _mib(size: int | None) -> float | None:
    return None if size is None else size / 2**20


def _size(artifact: Path) -> int:
    """Bytes of what a contestant loads: the bundle's library, else files of the same stem."""
    if artifact.is_dir():
        from tvm_mobilenet.runtime.manifest import LIBRARY

        return (artifact / LIBRARY).stat().st_size
    stem = artifact.name.removesuffix(artifact.suffix)
    return sum(p.stat().st_size for p in artifact.parent.iterdir() if p.stem == stem)


def _summaries(cells: Sequence[Cell]) -> tuple[Summary, ...]:
    groups: dict[tuple[int, int], list[tuple[float, str]]] = {}
    for cell in cells:
        ours = cell.of(OURS)
        if ours is not None and ours.speed_up is not None:
            groups.setdefault((cell.threads, cell.batch), []).append(
                (ours.speed_up.value, cell.model)
            )
    return tuple(
        Summary(
            threads,
            batch,
            len(found),
            statistics.geometric_mean([value for value, _ in found]),
            *min(found),
        )
        for (threads, batch), found in groups.items()
    )
