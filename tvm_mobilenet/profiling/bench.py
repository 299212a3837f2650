"""Latency against other runtimes, fair by construction.

Every contestant computes the same model on the same input, is first checked against PyTorch, lives
in a process of its own pinned to the same CPUs, and is timed in short blocks that alternate with
the others' in a seeded random order. The machine's FMA peak is measured the same way in the same
run. See `process.ContestantProcess` for what keeps idle contestants quiet.
"""

from __future__ import annotations

import dataclasses
import math
import random
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tvm_mobilenet.errors import NothingMeasuredError, TvmMobilenetError, UsageError
from tvm_mobilenet.profiling import machine, statistics
from tvm_mobilenet.profiling.contestants import OURS, PEAK, check_peers, contestant
from tvm_mobilenet.profiling.process import ContestantError, ContestantProcess
from tvm_mobilenet.profiling.statistics import Ratio, Spread
from tvm_mobilenet.profiling.subject import Prepared, Subject, prepare, subjects

if TYPE_CHECKING:
    import numpy as np

    from tvm_mobilenet.profiling.worker import Block, Memory, Opened

DEFAULT_PEERS = ("onnxruntime", "torch")
DEFAULT_RUNS = 50
ROUNDS = 16  # blocks a contestant; with 50 runs a block is 4 of them
BLOCK_SECONDS = 0.02  # a block is at least this long, so that short runs become many
WARM_UP_SECONDS = 0.01  # before each block: wakes the thread pool, refills the caches
WARM_UP_RUNS = 3
# Between float32 in another order of summation (1e-6, with Winograd 1e-5) and float16 or
# bfloat16 arithmetic (1e-3, 1e-2): relative L2 error of the outputs against float64 PyTorch.
TOLERANCE = 1e-4
LOAD_TIMEOUT = 900.0  # seconds; torch.compile takes a minute
BLOCK_TIMEOUT = 300.0

Progress = Callable[[str], None]


@dataclass(frozen=True)
class LeftOut:
    """A contestant that was not timed, and why."""

    contestant: str
    kind: Literal["missing", "failed", "different"]
    reason: str
    install: str | None = None  # the command that installs what is missing
    exit_code: int = 1


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
    peak_memory_mib: float | None  # resident, of the whole process
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
    `target` with the tuning records in `logs`; `ours=False` times the peers alone. `on_cell` gets
    each cell when it is done.

    A peer that is missing, fails or computes something else is named in `Cell.left_out`, and the
    rest go on. Raises UsageError, InputError as `load_model`, NothingMeasuredError.
    """
    check_peers(list(against))
    say = progress or (lambda message: None)
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
    if runs < 1:
        raise UsageError(f"--runs {runs}: at least 1 is needed")
    if not (ours or against):
        raise UsageError("there is nobody to time")
    cpus = {count: machine.pick_cpus(count) for count in threads}
    names = [*([OURS] if ours else []), *dict.fromkeys(against)]
    cells = []
    for subject in todo:
        with tempfile.TemporaryDirectory(prefix="tvm-mobilenet-bench-") as name:
            folder = Path(name)
            say(f"{subject.label}, batch {subject.batch}: preparing")
            left: list[LeftOut] = []
            path = bundle
            if ours and bundle is None:
                try:
                    path = _build(subject, folder, target, logs, say)
                except TvmMobilenetError as error:
                    left.append(LeftOut(OURS, "failed", str(error), exit_code=error.exit_code))
            prepared = prepare(subject, folder, bundle=path, seed=seed)
            artifacts = _convert(prepared, names, folder, left, say)
            for count in threads:
                cell = _measure(prepared, artifacts, left, folder, cpus[count], runs, seed, say)
                cells.append(cell)
                if on_cell is not None:
                    on_cell(cell)
    if not any(cell.measurements for cell in cells):
        reasons = {f"{left.contestant}: {left.reason}" for c in cells for left in c.left_out}
        raise NothingMeasuredError(f"nothing was measured; {'; '.join(sorted(reasons))}")
    return BenchReport(machine.cpu_name(), runs, tuple(cells), _summaries(cells))


def _build(subject: Subject, folder: Path, target: str, logs: Path | None, say: Progress) -> Path:
    from tvm_mobilenet import api

    say(f"{subject.label}, batch {subject.batch}: building our bundle")
    bundle = api.build(
        subject.model,
        target=target,
        output=folder / "bundle",
        alpha=subject.alpha,
        resolution=subject.resolution,
        classes=subject.classes,
        weights=subject.weights,
        batch=subject.batch,
        logs=logs,
    )
    return Path(bundle.path)


def _convert(
    prepared: Prepared, names: Sequence[str], folder: Path, left: list[LeftOut], say: Progress
) -> dict[str, Path]:
    """Each contestant's own form of the model; who has none is added to `left`."""
    artifacts = {}
    for name in names:
        if any(entry.contestant == name for entry in left):
            continue
        kind = contestant(name)
        if missing := kind.missing():
            reason = f"{', '.join(missing)} not installed"
            left.append(LeftOut(name, "missing", reason, kind.install))
            continue
        place = folder / name
        place.mkdir()
        say(f"{prepared.subject.label}, batch {prepared.subject.batch}: converting for {name}")
        try:
            with ContestantProcess(machine.pick_cpus(1), 1, place / "convert.log") as process:
                artifacts[name] = process.call(
                    "convert",
                    timeout=LOAD_TIMEOUT,
                    name=name,
                    source=prepared.source,
                    folder=place,
                )
        except ContestantError as error:
            left.append(LeftOut(name, "failed", f"conversion: {error}"))
    return artifacts


def _measure(
    prepared: Prepared,
    artifacts: dict[str, Path],
    left_before: Sequence[LeftOut],
    folder: Path,
    cpus: tuple[int, ...],
    runs: int,
    seed: int,
    say: Progress,
) -> Cell:
    """One cell: open everyone, check everyone, then time everyone in turns."""
    subject, threads = prepared.subject, len(cpus)
    where = f"{subject.label}, batch {subject.batch}, {threads} thread{'s'[: threads > 1]}"
    left = list(left_before)
    entrants: dict[str, _Entrant] = {}
    with ExitStack() as stack:
        for name in [*artifacts, PEAK]:
            say(f"{where}: loading {name}")
            artifact = artifacts.get(name, prepared.source.onnx)
            process = stack.enter_context(
                ContestantProcess(cpus, threads, folder / f"{name}.{threads}.log")
            )
            try:
                entrants[name] = _enter(name, process, artifact, prepared, threads, runs)
            except ContestantError as error:
                left.append(LeftOut(name, "failed", str(error)))
            except _Different as difference:
                left.append(LeftOut(name, "different", str(difference), exit_code=5))
            if name not in entrants:
                process.close()
        say(f"{where}: timing {', '.join(n for n in entrants if n != PEAK)}")
        watch = machine.Watch(cpus)
        order = _time_in_turns(entrants, left, seed)
        disturbance = watch.disturbance(sum(entrant.cpu_seconds for entrant in entrants.values()))
        for entrant in entrants.values():
            entrant.process.resume()
        memory: dict[str, Memory] = {
            name: entrant.process.call("memory", timeout=60.0) for name, entrant in entrants.items()
        }
    return _cell(prepared, cpus, entrants, memory, left, order, disturbance)


class _Different(Exception):
    """A contestant computes something else than PyTorch."""


@dataclass
class _Entrant:
    """A contestant that is loaded, checked and stopped, with its blocks so far."""

    process: ContestantProcess
    opened: Opened
    error: float
    artifact: Path
    warm_up: int
    runs: int
    blocks: list[Block] = dataclasses.field(default_factory=list)

    @property
    def cpu_seconds(self) -> float:
        return sum(block.cpu_seconds for block in self.blocks)

    @property
    def rounds(self) -> np.ndarray:
        """Nanoseconds, (rounds, runs)."""
        import numpy as np

        return np.array([block.nanoseconds for block in self.blocks], np.float64)


def _enter(
    name: str,
    process: ContestantProcess,
    artifact: Path,
    prepared: Prepared,
    threads: int,
    runs: int,
) -> _Entrant:
    """Load, check the outputs, find the block's length; leaves the process stopped."""
    opened = process.call(
        "open",
        timeout=LOAD_TIMEOUT,
        name=name,
        artifact=artifact,
        threads=threads,
        inputs=prepared.inputs,
    )
    outputs = process.call("outputs", timeout=BLOCK_TIMEOUT)
    error = 0.0 if name == PEAK else _error(outputs, prepared.expected)
    trial = process.call("block", timeout=BLOCK_TIMEOUT, warm_up=WARM_UP_RUNS, runs=3)
    process.pause()
    seconds = sorted(trial.nanoseconds)[1] / 1e9
    return _Entrant(
        process,
        opened,
        error,
        artifact,
        warm_up=max(WARM_UP_RUNS, math.ceil(WARM_UP_SECONDS / seconds)),
        runs=max(math.ceil(runs / ROUNDS), math.ceil(BLOCK_SECONDS / seconds)),
    )


def _error(outputs: Sequence[np.ndarray], expected: Sequence[np.ndarray]) -> float:
    """Largest relative L2 error of an output; _Different when it is above TOLERANCE."""
    import numpy as np

    if len(outputs) != len(expected):
        raise _Different(f"it has {len(outputs)} outputs where PyTorch has {len(expected)}")
    worst = 0.0
    for got, wanted in zip(outputs, expected, strict=True):
        if got.size != wanted.size:
            raise _Different(f"an output is {got.shape} where PyTorch's is {wanted.shape}")
        difference = got.astype(np.float64).reshape(wanted.shape) - wanted
        error = float(np.linalg.norm(difference) / np.linalg.norm(wanted))
        if not error <= TOLERANCE:  # also NaN
            raise _Different(
                f"its outputs differ from PyTorch's by {error:.1e} (relative L2; "
                f"at most {TOLERANCE:.0e} is float32)"
            )
        worst = max(worst, error)
    return worst


def _time_in_turns(
    entrants: dict[str, _Entrant], left: list[LeftOut], seed: int
) -> tuple[tuple[str, ...], ...]:
    """Fill every entrant's blocks, round by round; who fails is moved to `left`."""
    shuffle = random.Random(seed).shuffle
    rounds = []
    for _ in range(ROUNDS):
        names = list(entrants)
        shuffle(names)  # so that nobody always follows the same neighbour
        rounds.append(tuple(names))
        for name in names:
            entrant = entrants[name]
            entrant.process.resume()
            try:
                block = entrant.process.call(
                    "block", timeout=BLOCK_TIMEOUT, warm_up=entrant.warm_up, runs=entrant.runs
                )
            except ContestantError as error:
                left.append(LeftOut(name, "failed", str(error)))
                del entrants[name]
                entrant.process.close()
                continue
            entrant.process.pause()
            entrant.blocks.append(block)
    return tuple(rounds)


def _cell(
    prepared: Prepared,
    cpus: tuple[int, ...],
    entrants: dict[str, _Entrant],
    memory: dict[str, Memory],
    left: list[LeftOut],
    order: tuple[tuple[str, ...], ...],
    disturbance: machine.Disturbance,
) -> Cell:
    import numpy as np

    from tvm_mobilenet import targets
    from tvm_mobilenet.profiling import peak

    subject = prepared.subject
    spreads = {name: statistics.spread(entrant.rounds) for name, entrant in entrants.items()}
    peers = [name for name in entrants if name not in (OURS, PEAK)]
    best = min(peers, key=lambda name: spreads[name].median, default=None)
    peak_gflops = None
    if PEAK in entrants:
        flops = peak.flops(targets.detect(), len(cpus))
        peak_gflops = flops / spreads[PEAK].median / 1e6
    measurements = []
    for name, entrant in entrants.items():
        if name == PEAK:
            continue
        gflops = 2 * prepared.mult_adds / spreads[name].median / 1e6
        measurements.append(
            Measurement(
                contestant=name,
                version=entrant.opened.version,
                settings=entrant.opened.settings,
                runs=entrant.rounds.size,
                ms=spreads[name],
                round_medians_ms=tuple(np.median(entrant.rounds, axis=1) / 1e6),
                speed_up=None
                if best is None
                else statistics.speed_up(entrants[best].rounds, entrant.rounds),
                gflops=gflops,
                share_of_peak=peak_gflops and gflops / peak_gflops,
                error=entrant.error,
                load_seconds=entrant.opened.load_seconds,
                peak_memory_mib=_mib(memory[name].peak),
                session_memory_mib=_mib(memory[name].session),
                model_mib=_size(entrant.artifact) / 2**20,
                preempted=sum(block.preempted for block in entrant.blocks),
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
        peak_gflops=peak_gflops,
        best_peer=best,
        measurements=tuple(measurements),
        left_out=tuple(left),
        order=order,
        disturbance=disturbance,
        notes=disturbance.notes(),
    )


def _mib(size: int | None) -> float | None:
    return None if size is None else size / 2**20


def _size(artifact: Path) -> int:
    """Bytes of what a contestant loads: the bundle's library, else files of the same stem."""
    if artifact.is_dir():
        return (artifact / "model.so").stat().st_size
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
