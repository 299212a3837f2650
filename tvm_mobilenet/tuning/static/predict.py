"""Cycles of a candidate on a core that is not here.

Every block's cycles by llvm-mca, as often as it is executed, plus what the lines cost that miss L1
and L2, which llvm-mca does not see. It knows no prefetcher, no branch predictor and no memory: it
is for the order of candidates of one operator, and no latency. `benchmarks/static_tuning.py`
compares that order with measurements.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tvm_mobilenet.tuning.static import count, mca

if TYPE_CHECKING:
    from tvm import tirx

    from tvm_mobilenet.targets import TargetSpec

# Cycles of a line of 64 bytes where others are on their way at the same time: at the bandwidth of
# L2 (32 bytes a cycle) and of what is behind it (8 bytes a cycle).
L1_MISS, L2_MISS = 2.0, 8.0
_ISSUE_WIDTH = 4  # where the target does not say
_LEAST_SHARE = 0.001  # of the instructions: blocks that run less often are not analysed


@dataclass(frozen=True)
class Prediction:
    """Cycles of one run: of the code with its data in L1, and of the lines that it waits for."""

    code: float
    lines: float
    instructions: int

    @property
    def cycles(self) -> float:
        """Both together."""
        return self.code + self.lines


def predict(kernel: tirx.PrimFunc, target: TargetSpec, cpu: str = "") -> Prediction:
    """Of a kernel without a parallel loop. cpu: llvm-mca's name of the core (the target's).

    Raises InputError when llvm-mca does not know the core, MissingToolError without LLVM's
    programs, QEMU or a compiler for the target.
    """
    counts = count.counts(kernel, target)
    total = counts.instructions
    hot = [b for b in counts.blocks if b.count * len(b.instructions) >= _LEAST_SHARE * total]
    each = mca.cycles(
        [block.instructions for block in hot], target.mtriple, cpu or target.mca_cpu or target.mcpu
    )
    code = sum(block.count * cycles for block, cycles in zip(hot, each, strict=True))
    rest = total - sum(block.count * len(block.instructions) for block in hot)
    return Prediction(
        code + rest / (target.issue_width or _ISSUE_WIDTH),
        counts.l1_lines * L1_MISS + counts.l2_lines * L2_MISS,
        total,
    )
