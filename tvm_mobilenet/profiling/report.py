"""The MobileNet paper's questions, answered on this machine: what do Mult-Adds cost in time?"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvm_mobilenet.errors import NothingMeasuredError

if TYPE_CHECKING:
    from tvm_mobilenet.profiling.bench import Cell
    from tvm_mobilenet.profiling.profile import Profile

V1, CONV, SHALLOW = "mobilenet_v1", "mobilenet_v1_conv", "mobilenet_v1_shallow"
OTHERS = (CONV, SHALLOW, "mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_large")
RUNS = 50
# ImageNet top-1 in percent by (model, alpha, resolution), of the papers alone: V1's tables 4 to 7
# (arXiv 1704.04861), V2's table 4 (1801.04381), V3's table 3 (1905.02244).
PAPER_ACCURACY: Mapping[tuple[str, float, int], float] = {
    (V1, 1.0, 224): 70.6,
    (V1, 0.75, 224): 68.4,
    (V1, 0.5, 224): 63.7,
    (V1, 0.25, 224): 50.6,
    (V1, 1.0, 192): 69.1,
    (V1, 1.0, 160): 67.2,
    (V1, 1.0, 128): 64.4,
    (CONV, 1.0, 224): 71.7,
    (SHALLOW, 1.0, 224): 65.3,
    ("mobilenet_v2", 1.0, 224): 72.0,
    ("mobilenet_v3_large", 1.0, 224): 75.2,
    ("mobilenet_v3_small", 1.0, 224): 67.4,
}

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Network:
    """One network on this machine; times of one inference at batch 1.

    `memory_mib` is what loading and running it adds to a process, None where the system does not
    tell; `accuracy` ImageNet top-1 in percent from its paper, None where that does not give it.
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
    accuracy: float | None
    on_front: bool  # no other network of known accuracy is both faster and at least as accurate

    @property
    def label(self) -> str:
        """The name as in tables."""
        return f"{self.model} {self.alpha:g}/{self.resolution}"

    def row(self) -> dict[str, Any]:
        """Flat, with the derived figures: time per Mult-Add and throughput."""
        return {
            "network": self.label,
            "model": self.model,
            "alpha": self.alpha,
            "resolution": self.resolution,
            "mult_adds": self.mult_adds,
            "parameters": self.parameters,
            "ms": self.ms,
            "p10_ms": self.p10_ms,
            "p90_ms": self.p90_ms,
            "us_per_million_mult_adds": 1e3 * self.ms / (self.mult_adds / 1e6),
            "images_per_s": 1e3 / self.ms,
            "share_of_peak": self.share_of_peak,
            "library_mib": self.library_mib,
            "memory_mib": self.memory_mib,
            "accuracy": self.accuracy,
            "on_front": self.on_front,
        }


@dataclass(frozen=True)
class Block:
    """One block of MobileNetV1 as a full convolution and as depthwise + pointwise."""

    name: str
    conv_mult_adds: int
    separable_mult_adds: int
    conv_us: float
    separable_us: float

    def row(self) -> dict[str, Any]:
        """Flat; `kept` is the part of the saved work that became saved time, as a ratio."""
        work = self.conv_mult_adds / self.separable_mult_adds
        time = self.conv_us / self.separable_us
        return {
            "block": self.name,
            "conv_mult_adds": self.conv_mult_adds,
            "separable_mult_adds": self.separable_mult_adds,
            "conv_us": self.conv_us,
            "separable_us": self.separable_us,
            "fewer_mult_adds": work,
            "less_time": time,
            "kept": time / work,
        }


@dataclass(frozen=True)
class Report:
    """Everything measured; `blocks` is empty when the two networks for it were left out."""

    cpu: str
    target: str
    threads: int
    runs: int
    networks: tuple[Network, ...]
    blocks: tuple[Block, ...]
    notes: tuple[str, ...]

    def rows(self) -> list[dict[str, Any]]:
        """One flat row a network, the one with the fewest Mult-Adds first."""
        ordered = sorted(self.networks, key=lambda network: network.mult_adds)
        return [network.row() for network in ordered]

    def document(self) -> dict[str, Any]:
        """Everything as JSON values."""
        return {
            "cpu": self.cpu,
            "target": self.target,
            "threads": self.threads,
            "runs": self.runs,
            "networks": self.rows(),
            "blocks": [block.row() for block in self.blocks],
            "separable": self.separable(),
            "notes": list(self.notes),
        }

    def separable(self) -> dict[str, float] | None:
        """All blocks together: how much less work, how much less time, and the quotient."""
        if not self.blocks:
            return None
        total = Block(
            "all",
            sum(block.conv_mult_adds for block in self.blocks),
            sum(block.separable_mult_adds for block in self.blocks),
            sum(block.conv_us for block in self.blocks),
            sum(block.separable_us for block in self.blocks),
        ).row()
        return {key: total[key] for key in ("fewer_mult_adds", "less_time", "kept")}


def report(
    *,
    threads: int = 1,
    target: str = "native",
    runs: int = RUNS,
    quick: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Build and time the paper's networks on this machine: some 20 s each, 21 of them.

    quick: four networks of V1 and its baselines instead of all. Raises as `bench` does.
    """
    from tvm_mobilenet.profiling.bench import bench

    say = progress or (lambda message: None)
    cells: list[Cell] = []
    common: dict[str, Any] = {"against": (), "threads": (threads,), "runs": runs, "target": target}
    if quick:
        cells += bench([V1, CONV, SHALLOW], progress=say, **common).cells
        cells += bench([V1], alpha=0.25, resolution=128, progress=say, **common).cells
    else:
        cells += bench([V1], grid=True, progress=say, **common).cells
        cells += bench(OTHERS, progress=say, **common).cells
    say("MobileNetV1 and its full convolutions, block by block")
    blocks = _blocks(target, threads, runs)
    return summarise(cells, blocks, target=target, threads=threads, runs=runs)


def summarise(
    cells: Sequence[Cell],
    blocks: Sequence[Block] = (),
    *,
    target: str,
    threads: int,
    runs: int,
) -> Report:
    """Put together what was measured; NothingMeasuredError when no network was."""
    from tvm_mobilenet.api import cost
    from tvm_mobilenet.profiling import machine
    from tvm_mobilenet.profiling.contestants import OURS

    timed = [(cell, ours) for cell in cells if (ours := cell.of(OURS)) is not None]
    if not timed:
        raise NothingMeasuredError("no network was timed")
    points = [
        (ours.ms.median, PAPER_ACCURACY.get((_model(cell), cell.alpha, cell.resolution)))
        for cell, ours in timed
    ]
    front = pareto_front([(ms, a) for ms, a in points if a is not None])
    networks = []
    for (cell, ours), (ms, accuracy) in zip(timed, points, strict=True):
        counted = cost(_model(cell), alpha=cell.alpha, resolution=cell.resolution)
        networks.append(
            Network(
                model=_model(cell),
                alpha=cell.alpha,
                resolution=cell.resolution,
                mult_adds=cell.mult_adds,
                parameters=counted.parameters,
                ms=ms,
                p10_ms=ours.ms.p10,
                p90_ms=ours.ms.p90,
                share_of_peak=ours.share_of_peak,
                library_mib=ours.model_mib,
                memory_mib=ours.session_memory_mib,
                accuracy=accuracy,
                on_front=accuracy is not None and (ms, accuracy) in front,
            )
        )
    notes = dict.fromkeys(note for cell in cells for note in cell.notes)
    left = [f"{c.model}: {entry.reason}" for c in cells for entry in c.left_out]
    return Report(
        machine.cpu_name(), target, threads, runs, tuple(networks), tuple(blocks), (*notes, *left)
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


def pair_blocks(conv: Profile, separable: Profile) -> list[Block]:
    """The blocks of MobileNetV1 in both forms, by their names (`blocks.N` in the ONNX nodes)."""
    full, split = _by_block(conv), _by_block(separable)
    return [
        Block(name, full[name][0] // 2, split[name][0] // 2, full[name][1], split[name][1])
        for name in full
        if name in split and split[name][0]
    ]


def _by_block(profile: Profile) -> dict[str, tuple[int, float]]:
    """FLOPs and microseconds by block, in order of execution."""
    found: dict[str, tuple[int, float]] = {}
    for operator in profile.operators:
        head, _, rest = operator.name.partition(".")
        if head == "blocks":
            name = f"block {int(rest.split('.')[0]) + 1}"
            flops, time = found.get(name, (0, 0.0))
            found[name] = (flops + operator.flops, time + operator.time)
    return found


def _blocks(target: str, threads: int, runs: int) -> list[Block]:
    from tvm_mobilenet import deploy
    from tvm_mobilenet.profiling.profile import profile

    with tempfile.TemporaryDirectory(prefix="tvm-mobilenet-report-") as folder:
        profiles = []
        for model in (CONV, V1):
            built = deploy.build(model, target=target, output=Path(folder) / model)
            profiles.append(profile(built.path, threads=threads, runs=runs, limits=False))
    return pair_blocks(*profiles)


def _model(cell: Cell) -> str:
    return cell.model.split(" ")[0]
