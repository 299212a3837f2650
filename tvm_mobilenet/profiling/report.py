"""The MobileNet paper's questions, answered on this machine: what do Mult-Adds cost in time?"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvm_mobilenet.errors import InputError, NothingMeasuredError, ParityError
from tvm_mobilenet.profiling.separable import CONV, RUNS, V1, Block, measure_blocks, total

if TYPE_CHECKING:
    from tvm_mobilenet.profiling.bench import Cell

SHALLOW = "mobilenet_v1_shallow"
BUSY = (
    "the machine was busy while blocks were compared: full convolutions, which run longer, lose "
    "more by that than separable ones; measure again with another --keep file"
)
DISTURBANCES = 3  # up to so many networks have a line of their own
PEER = "onnxruntime"
BESIDE_PEER = ((V1, 1.0, 224), (CONV, 1.0, 224))  # the two that are held against each other
OTHERS = (CONV, SHALLOW, "mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_large")
# ImageNet top-1 in percent by (model, alpha, resolution), of the papers alone: V1's tables 4 to 9
# (arXiv 1704.04861), V2's table 4 (1801.04381), V3's table 3 (1905.02244).
PAPER_ACCURACY: Mapping[tuple[str, float, int], float] = {
    (V1, 1.0, 224): 70.6,
    (V1, 0.75, 224): 68.4,
    (V1, 0.5, 224): 63.7,
    (V1, 0.25, 224): 50.6,
    (V1, 1.0, 192): 69.1,
    (V1, 1.0, 160): 67.2,
    (V1, 1.0, 128): 64.4,
    (V1, 0.5, 160): 60.2,
    (CONV, 1.0, 224): 71.7,
    (SHALLOW, 1.0, 224): 65.3,
    ("mobilenet_v2", 1.0, 224): 72.0,
    ("mobilenet_v3_large", 1.0, 224): 75.2,
    ("mobilenet_v3_small", 1.0, 224): 67.4,
}

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Network:
    """One network as measured here; times of one inference at batch 1.

    `memory_mib` is what loading and running it adds to a process, None where the system does not
    tell; `share_of_peak` its Mult-Adds a second over those of the FMA peak.
    """

    model: str
    alpha: float
    resolution: int
    mult_adds: int
    parameters: int
    ms: float  # median
    p10_ms: float
    p90_ms: float
    share_of_peak: float | None
    library_mib: float
    memory_mib: float | None
    notes: tuple[str, ...] = ()  # what was not as it should be while it was timed
    onnxruntime_ms: float | None = None  # median of ONNX Runtime, in turns with ours

    @property
    def label(self) -> str:
        """The name as in tables."""
        return _label(self.model, self.alpha, self.resolution)

    @property
    def accuracy(self) -> float | None:
        """ImageNet top-1 in percent from the network's paper, None where that does not give it."""
        return PAPER_ACCURACY.get((self.model, self.alpha, self.resolution))

    @property
    def times_onnxruntime(self) -> float | None:
        """How many times as fast as ONNX Runtime it is; None where that was not timed."""
        return None if self.onnxruntime_ms is None else self.onnxruntime_ms / self.ms

    def row(self, *, on_front: bool) -> dict[str, Any]:
        """Flat, with the derived figures: time per Mult-Add and throughput."""
        measured = {field.name: getattr(self, field.name) for field in fields(self)}
        return {
            "network": self.label,
            **measured,
            "notes": list(self.notes),
            "us_per_million_mult_adds": 1e3 * self.ms / (self.mult_adds / 1e6),
            "images_per_s": 1e3 / self.ms,
            "times_onnxruntime": self.times_onnxruntime,
            "accuracy": self.accuracy,
            "on_front": on_front,
        }


@dataclass(frozen=True)
class Report:
    """Everything measured; `blocks` is empty when the two networks for it could not be compared."""

    cpu: str
    target: str
    threads: int
    runs: int
    networks: tuple[Network, ...]
    blocks: tuple[Block, ...]
    failures: tuple[str, ...] = ()  # networks that could not be measured, and why
    blocks_note: str = ""  # what was not as it should be while the blocks were timed

    @property
    def notes(self) -> tuple[str, ...]:
        """What to bear in mind when reading the figures; many disturbances are one line."""
        disturbed = [network for network in self.networks if network.notes]
        if len(disturbed) <= DISTURBANCES:
            told = [f"{network.label}: {note}" for network in disturbed for note in network.notes]
        else:
            count = f"{len(disturbed)} of {len(self.networks)} networks"
            told = [f"{count} were disturbed while they were timed, such as {disturbed[0].label}: "]
            told[0] += "; ".join(disturbed[0].notes)
        return (*self.failures, *told, *filter(None, [self.blocks_note]))

    def rows(self) -> list[dict[str, Any]]:
        """One flat row a network, the one with the fewest Mult-Adds first.

        `on_front`: no other network of known accuracy is both as fast and as accurate.
        """
        known = [(n.ms, n.accuracy) for n in self.networks if n.accuracy is not None]
        front = pareto_front(known)
        ordered = sorted(self.networks, key=lambda network: network.mult_adds)
        return [
            network.row(on_front=(network.ms, network.accuracy) in front) for network in ordered
        ]

    def document(self) -> dict[str, Any]:
        """Everything as JSON values; `report(keep=...)` reads it back."""
        return {
            "cpu": self.cpu,
            "target": self.target,
            "threads": self.threads,
            "runs": self.runs,
            "networks": self.rows(),
            "blocks": [block.row() for block in self.blocks],
            "blocks_note": self.blocks_note,
            "separable": self.separable(),
            "whole_networks": self.whole_networks(),
            "notes": list(self.notes),
        }

    def separable(self) -> dict[str, float] | None:
        """All blocks together: less work, less time, their quotient, and the rates of both."""
        if not self.blocks:
            return None
        row = total(self.blocks).row()
        told = ("fewer_mult_adds", "less_time", "kept", "conv_gflops", "separable_gflops")
        return {key: row[key] for key in told}

    def whole_networks(self) -> dict[str, float | None] | None:
        """The full-convolution network over MobileNetV1, here and in ONNX Runtime; None: not both.

        `conv_times_onnxruntime` says whether our full convolutions are a fair opponent: below 1
        they are slower than ONNX Runtime's, and separable ones look better than they are.
        """
        named = {(n.model, n.alpha, n.resolution): n for n in self.networks}
        separable, conv = (named.get(size) for size in BESIDE_PEER)
        if separable is None or conv is None:
            return None
        theirs = conv.onnxruntime_ms, separable.onnxruntime_ms
        return {
            "fewer_mult_adds": conv.mult_adds / separable.mult_adds,
            "conv_ms": conv.ms,
            "separable_ms": separable.ms,
            "less_time": conv.ms / separable.ms,
            "onnxruntime_conv_ms": theirs[0],
            "onnxruntime_separable_ms": theirs[1],
            "onnxruntime_less_time": None
            if theirs[0] is None or theirs[1] is None
            else theirs[0] / theirs[1],
            "conv_times_onnxruntime": conv.times_onnxruntime,
            "separable_times_onnxruntime": separable.times_onnxruntime,
        }


def sizes(quick: bool = False) -> list[tuple[str, float, int]]:
    """The networks of a report as (model, alpha, resolution)."""
    from tvm_mobilenet.profiling.subject import GRID_ALPHAS, GRID_RESOLUTIONS

    if quick:
        return [(V1, 1.0, 224), (V1, 0.25, 128), (CONV, 1.0, 224), (SHALLOW, 1.0, 224)]
    grid = [(V1, alpha, resolution) for alpha in GRID_ALPHAS for resolution in GRID_RESOLUTIONS]
    return grid + [(model, 1.0, 224) for model in OTHERS]


def report(
    *,
    threads: int = 1,
    target: str = "native",
    runs: int = RUNS,
    quick: bool = False,
    keep: Path | None = None,
    progress: Progress | None = None,
) -> Report:
    """Build and time the paper's networks on this machine, 21 of them, `quick` four.

    keep: a file for what was measured, written as a whole after every network; networks that it
    has already are not measured again.
    A network that fails is left out, and `Report.failures` says why; when the very first one does,
    its error is raised: InputError, ParityError, NothingMeasuredError, MissingToolError. InputError
    also for a `keep` that is no report of the same processor, target, threads and runs.
    """
    from tvm_mobilenet.profiling import kept_report, machine
    from tvm_mobilenet.runtime import library

    say = progress or (lambda message: None)
    done = Report(machine.cpu_name(), target, threads, runs, (), ())
    if keep is not None and keep.exists():
        done = kept_report.read(keep, done)
    wanted = sizes(quick)
    kept = {(n.model, n.alpha, n.resolution): n for n in done.networks}
    todo = [size for size in wanted if size not in kept]
    if len(todo) < len(wanted):
        say(f"{keep}: has {len(wanted) - len(todo)} of {len(wanted)} networks")
    start = time.perf_counter()
    for i, size in enumerate(todo):
        place = f"{i + 1 + len(wanted) - len(todo)} of {len(wanted)}, {_label(*size)}"
        say(f"{place}: building and timing{_time_left(start, i, len(todo))}")
        try:
            network = measure_network(*size, threads=threads, target=target, runs=runs)
        except (InputError, ParityError, NothingMeasuredError) as error:
            if not done.networks:
                raise
            done = replace(done, failures=(*done.failures, f"{_label(*size)}: {error}"))
            continue
        say(f"{place}: {network.ms:.3f} ms")
        done = replace(done, networks=(*done.networks, network))
        if keep is not None:
            kept_report.write(done, keep)
    if not done.blocks:
        watch = machine.Watch(tuple(library.usable_cpus()))
        try:
            blocks = measure_blocks(target=target, threads=threads, runs=runs, progress=say)
        except (InputError, ParityError) as error:
            done = replace(done, failures=(*done.failures, f"block by block: {error}"))
        else:
            note = "" if watch.crowding(threads) is None else BUSY
            done = replace(done, blocks=tuple(blocks), blocks_note=note)
            if keep is not None:
                kept_report.write(done, keep)
    # a file may have more than was asked for now
    return replace(
        done, networks=tuple(n for n in done.networks if (n.model, n.alpha, n.resolution) in wanted)
    )


def measure_network(
    model: str, alpha: float, resolution: int, *, threads: int, target: str, runs: int
) -> Network:
    """Build and time one built-in network, those of `BESIDE_PEER` in turns with ONNX Runtime.

    Raises as `bench` does.
    """
    from tvm_mobilenet.profiling.bench import bench

    [cell] = bench(
        [model],
        (PEER,) if (model, alpha, resolution) in BESIDE_PEER else (),
        (threads,),
        alpha=alpha,
        resolution=resolution,
        runs=runs,
        target=target,
    ).cells
    return network_of(model, cell)


def network_of(model: str, cell: Cell) -> Network:
    """What a bench of one built-in model says about it."""
    from tvm_mobilenet.api import cost
    from tvm_mobilenet.profiling.contestants import OURS

    ours = cell.of(OURS)
    assert ours is not None  # else bench had raised
    peer = cell.of(PEER)
    absent = (f"{left.contestant} was not timed: {left.reason}" for left in cell.left_out)
    return Network(
        model=model,
        alpha=cell.alpha,
        resolution=cell.resolution,
        mult_adds=cell.mult_adds,
        parameters=cost(model, alpha=cell.alpha, resolution=cell.resolution).parameters,
        ms=ours.ms.median,
        p10_ms=ours.ms.p10,
        p90_ms=ours.ms.p90,
        share_of_peak=ours.share_of_peak,
        library_mib=ours.model_mib,
        memory_mib=ours.session_memory_mib,
        notes=(*cell.notes, *absent),
        onnxruntime_ms=None if peer is None else peer.ms.median,
    )


def pareto_front(points: Sequence[tuple[float, float]]) -> set[tuple[float, float]]:
    """The (ms, accuracy) that no other is both as fast and as accurate as, one of both strictly."""
    return {
        (ms, accuracy)
        for ms, accuracy in points
        if not any(
            other_ms <= ms and other >= accuracy and (other_ms, other) != (ms, accuracy)
            for other_ms, other in points
        )
    }


def _label(model: str, alpha: float, resolution: int) -> str:
    return f"{model} {alpha:g}/{resolution}"


def _time_left(start: float, done: int, todo: int) -> str:
    """How long the rest may take, from what the networks so far took."""
    if not done:
        return ""
    seconds = (time.perf_counter() - start) / done * (todo - done)
    return f" (some {max(1, round(seconds / 60))} min to go)"
