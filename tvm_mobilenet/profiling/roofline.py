"""The least time that this machine could need for an operator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tvm_mobilenet.profiling.limits import Limits

COMPUTE = "compute"


@dataclass(frozen=True)
class Roof:
    """The least times of an operator in microseconds, after the roofline model.

    `compute`: its FLOPs at the FMA peak; `memory`: its bytes at the bandwidth of where they are.
    `bound` is what sets the higher of the two: "compute", or the level of memory that costs most.
    """

    compute: float
    memory: float
    bound: str

    @property
    def microseconds(self) -> float:
        """The higher of the two."""
        return max(self.compute, self.memory)


def roof(
    flops: int, weight_bytes: int, activation_bytes: int, all_weight_bytes: int, limits: Limits
) -> Roof:
    """The roof of one operator (Williams et al. 2009, with a bandwidth for each stream of data).

    Its weights come round once an inference, so their working set is all weights of the network;
    its activations were just written by the operator before, so they are their own working set.
    """
    weights = limits.microseconds(weight_bytes, max(weight_bytes, all_weight_bytes))
    activations = limits.microseconds(activation_bytes, activation_bytes)
    levels = {name: weights[name] + activations[name] for name in weights}
    compute, memory = flops / limits.gflops / 1e3, sum(levels.values())
    costliest = max(levels, key=lambda name: levels[name])
    return Roof(compute, memory, COMPUTE if compute >= memory else costliest)
