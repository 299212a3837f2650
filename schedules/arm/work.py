"""How much work is worth a second thread, on ARM Cortex-A."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..spec import Spec

if TYPE_CHECKING:
    from tvm_mobilenet.targets import TargetSpec

# As on x86, where it was measured: below this many predicted cycles an operator is faster alone.
WORTH_A_THREAD = 10_000
# One core of this class streams about this many bytes per cycle through L2 and beyond.
BYTES_PER_CYCLE = 4


def predicted_cycles(spec: Spec, target: TargetSpec) -> float:
    """Roofline estimate for one core: the larger of FMLA issue and memory traffic."""
    per_cycle = target.lanes * target.fma_units
    return max(spec.mult_adds / per_cycle, spec.min_bytes / BYTES_PER_CYCLE)


def worth_threads(spec: Spec, target: TargetSpec) -> bool:
    """Whether ``spec`` should run on several threads."""
    return target.cores > 1 and predicted_cycles(spec, target) > WORTH_A_THREAD
