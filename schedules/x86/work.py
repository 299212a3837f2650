"""How much work is worth a second thread, on x86."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..spec import Spec

if TYPE_CHECKING:
    from tvm_mobilenet.targets import TargetSpec

# Waking a waiting thread and joining it costs some thousand cycles; below this much work
# (cycles of one core, predicted) an operator is faster alone.
WORTH_A_THREAD = 10_000
# One core streams about this many bytes per cycle through L2 and beyond.
BYTES_PER_CYCLE = 8


def predicted_cycles(spec: Spec, target: TargetSpec) -> float:
    """Roofline estimate for one core: the larger of FMA issue and memory traffic."""
    per_cycle = target.lanes * target.fma_units
    return max(spec.mult_adds / per_cycle, spec.min_bytes / BYTES_PER_CYCLE)


def worth_threads(spec: Spec, target: TargetSpec) -> bool:
    """Whether ``spec`` should run on several threads."""
    return target.cores > 1 and predicted_cycles(spec, target) > WORTH_A_THREAD
