"""Pooling, channel scaling, element-wise operators and changes of layout on ARM Cortex-A.

x86's rules, but unrolled: pairs of neighbouring vectors load and store by one instruction (LDP and
STP), and LLVM does not unroll these loops for ARM by itself.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tvm import tirx

from ..emit import native_bounds
from ..spec import ElementwiseSpec, LayoutSpec, PoolSpec, ScaleSpec
from ..templates import memory_bound as template
from ..templates.memory_bound import MemoryKnobs
from ..x86.memory_bound import MemoryBound

if TYPE_CHECKING:
    from tvm_mobilenet.targets import TargetSpec

UNROLL = 8


@dataclass(frozen=True)
class _MemoryBound(MemoryBound):
    def analytic(self, spec: Any, target: TargetSpec) -> MemoryKnobs:
        return MemoryKnobs(super().analytic(spec, target).parallel, UNROLL)

    def space(self, spec: Any, target: TargetSpec) -> Iterable[MemoryKnobs]:
        return [
            MemoryKnobs(knobs.parallel, unroll)
            for knobs in super().space(spec, target)
            for unroll in (4, UNROLL)
        ]


@native_bounds()
def _build_scale(spec: ScaleSpec, knobs: MemoryKnobs) -> tirx.PrimFunc:
    return template.build_scale(spec, knobs)


@native_bounds()
def _build_elementwise(spec: ElementwiseSpec, knobs: MemoryKnobs) -> tirx.PrimFunc:
    return template.build_elementwise(spec, knobs)


POOL: Any = _MemoryBound("pool", PoolSpec, template.build_pool)
SCALE: Any = _MemoryBound("scale", ScaleSpec, _build_scale)
ELEMENTWISE: Any = _MemoryBound("elementwise", ElementwiseSpec, _build_elementwise)
LAYOUT: Any = _MemoryBound("layout", LayoutSpec, template.build_layout)
