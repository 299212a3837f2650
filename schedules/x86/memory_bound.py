"""Pooling, channel scaling, element-wise operators and changes of layout on x86."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..spec import ElementwiseSpec, LayoutSpec, PoolSpec, ScaleSpec, Spec
from ..templates import memory_bound as template
from ..templates.memory_bound import MemoryKnobs
from .work import worth_threads

if TYPE_CHECKING:
    from tvm_mobilenet.targets import TargetSpec


@dataclass(frozen=True)
class MemoryBound:
    """One pass over memory: the only choice is whether threads pay."""

    name: str
    spec_class: type
    build: Callable[..., Any]
    knobs_class: type = MemoryKnobs

    def takes(self, spec: Spec, target: TargetSpec) -> bool:
        return isinstance(spec, self.spec_class)

    def analytic(self, spec: Any, target: TargetSpec) -> MemoryKnobs:
        return MemoryKnobs(parallel=worth_threads(spec, target))

    def space(self, spec: Any, target: TargetSpec) -> Iterable[MemoryKnobs]:
        return [MemoryKnobs(False)] + [MemoryKnobs(True)] * (target.cores > 1)


POOL: Any = MemoryBound("pool", PoolSpec, template.build_pool)
SCALE: Any = MemoryBound("scale", ScaleSpec, template.build_scale)
ELEMENTWISE: Any = MemoryBound("elementwise", ElementwiseSpec, template.build_elementwise)
LAYOUT: Any = MemoryBound("layout", LayoutSpec, template.build_layout)
