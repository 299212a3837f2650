"""What depthwise separable convolutions save in work, and what of that in time, by block."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from tvm_mobilenet.profiling.compare import Timed

V1, CONV = "mobilenet_v1", "mobilenet_v1_conv"
RUNS = 50

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Block:
    """One block of MobileNetV1 as a full convolution and as depthwise + pointwise."""

    name: str
    conv_mult_adds: int
    separable_mult_adds: int
    conv_us: float  # median over the runs
    separable_us: float

    def row(self) -> dict[str, Any]:
        """Flat; `kept` is the part of the saved work that became saved time, as a ratio.

        It is above 1 where full convolutions run further from the machine's limit than separable
        ones do: `conv_gflops` and `separable_gflops` tell.
        """
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
            "conv_gflops": 2 * self.conv_mult_adds / self.conv_us / 1e3,
            "separable_gflops": 2 * self.separable_mult_adds / self.separable_us / 1e3,
        }


def total(blocks: Sequence[Block]) -> Block:
    """All blocks as one; there must be some."""
    return Block(
        "all",
        sum(block.conv_mult_adds for block in blocks),
        sum(block.separable_mult_adds for block in blocks),
        sum(block.conv_us for block in blocks),
        sum(block.separable_us for block in blocks),
    )


def measure_blocks(
    *, target: str = "native", threads: int = 1, runs: int = RUNS, progress: Progress | None = None
) -> list[Block]:
    """Build MobileNetV1 in both forms and run them in turns; raises as `build` and `compare` do."""
    from tvm_mobilenet import deploy
    from tvm_mobilenet.profiling.compare import run_in_turns
    from tvm_mobilenet.runtime import manifest

    say = progress or (lambda message: None)
    with tempfile.TemporaryDirectory(prefix="tvm-mobilenet-") as folder:
        paths = [Path(folder) / model for model in (CONV, V1)]
        for path in paths:
            say(f"building {path.name} for the comparison block by block")
            deploy.build(path.name, target=target, output=path, threads=threads)
        say("full convolutions against separable ones, in turns")
        sides = run_in_turns(paths, threads, runs)
        operators = [manifest.read(path).document["operators"] for path in paths]
    conv, separable = (by_block(*side) for side in zip(operators, sides, strict=True))
    return pair_blocks(conv, separable)


def pair_blocks(
    conv: Mapping[str, tuple[int, float]], separable: Mapping[str, tuple[int, float]]
) -> list[Block]:
    """The blocks that both have, given Mult-Adds and microseconds by name."""
    return [
        Block(name, conv[name][0], separable[name][0], conv[name][1], separable[name][1])
        for name in conv
        if name in separable and separable[name][0]
    ]


def by_block(operators: Sequence[Mapping[str, Any]], timed: Timed) -> dict[str, tuple[int, float]]:
    """Mult-Adds and microseconds by block (`blocks.N` in ONNX nodes), in order of execution."""
    import numpy as np

    work: dict[str, int] = {}
    times: dict[str, np.ndarray] = {}
    pairs = zip(operators, timed.operators, timed.nanoseconds, strict=True)
    for operator, described, nanoseconds in pairs:
        head, _, rest = str(described["name"]).partition(".")
        if head == "blocks":
            name = f"block {int(rest.split('.')[0]) + 1}"
            work[name] = work.get(name, 0) + int(operator["mult_adds"])
            times[name] = times.get(name, 0) + nanoseconds
    return {name: (work[name], float(np.median(times[name])) / 1e3) for name in work}
