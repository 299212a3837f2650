"""Depthwise convolution on x86."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from ..spec import ConvSpec, Spec
from ..templates import depthwise as template
from ..templates.depthwise import DepthwiseKnobs
from .work import worth_threads

if TYPE_CHECKING:
    from tvm_mobilenet.targets import TargetSpec


class _Depthwise:
    """Tile width from the registers that the weights leave free."""

    name = "depthwise"
    knobs_class = DepthwiseKnobs
    build = staticmethod(template.build)
    pack_weight = staticmethod(template.pack_weight)

    def takes(self, spec: Spec, target: TargetSpec) -> bool:
        return isinstance(spec, ConvSpec) and spec.kind == "depthwise"

    def analytic(self, spec: ConvSpec, target: TargetSpec) -> DepthwiseKnobs:
        taps = spec.kernel[0] * spec.kernel[1]
        free = target.vector_registers - 2 - (taps if taps <= target.vector_registers // 2 else 0)
        most = max(2, min(8 if target.vector_registers >= 32 else 4, free))
        pixels = min(range(1, most + 1), key=lambda p: (self._cost(spec, p), -p))
        return DepthwiseKnobs(pixels, self._rows_per_item(spec, target))

    @staticmethod
    def _cost(spec: ConvSpec, pixels: int) -> float:
        """Loads per output row: each tile loads its input once, and has some fixed cost."""
        per_tile = spec.kernel[0] * ((pixels - 1) * spec.stride[1] + spec.kernel[1])
        full, rest = divmod(spec.out_width, pixels)
        tail = spec.kernel[0] * ((rest - 1) * spec.stride[1] + spec.kernel[1]) if rest else 0
        fixed = 8
        return full * (per_tile + fixed) + (tail + fixed if rest else 0)

    @staticmethod
    def _rows_per_item(spec: ConvSpec, target: TargetSpec) -> int:
        if not worth_threads(spec, target):
            return 0
        items = 4 * target.cores  # enough to balance the threads
        blocks = spec.batch * -(-spec.out_channels // spec.lanes)
        chunks = max(1, -(-items // blocks))
        return max(1, spec.out_height // chunks)

    def space(self, spec: ConvSpec, target: TargetSpec) -> Iterable[DepthwiseKnobs]:
        rows = {0, *(self._rows_per_item(spec, target),)}
        most = min(spec.out_width, 14 if target.vector_registers >= 32 else 8)
        return [DepthwiseKnobs(p, r) for p in range(1, most + 1) for r in sorted(rows)]


DEPTHWISE: Any = _Depthwise()
