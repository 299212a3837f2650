"""Depthwise and pointwise convolution in one pass, on x86: strips that stay in cache."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..spec import FLOAT_BYTES, SeparableSpec, Spec
from ..templates import separable as template
from ..templates.separable import SeparableKnobs
from .convolution import (
    POINTWISE,
    predicted_cycles,
    register_tiles,
    weight_bytes,
    weights_stay_near,
)
from .depthwise import DEPTHWISE
from .work import worth_threads

if TYPE_CHECKING:
    from tvm_mobilenet.targets import TargetSpec

# Bytes per cycle that one core gets from L2 while it computes.
L2_BYTES_PER_CYCLE = 32
# Bytes of input per predicted cycle that prefetching hides behind the pointwise half.
HIDDEN_BYTES_PER_CYCLE = 10
# Cycles to start a strip: its buffer, its edges.
STRIP_OVERHEAD = 300


class _Separable:
    """Rows of a strip and register tile together, by predicted cycles of the busiest thread.

    Measured at MobileNetV1 1.0/224 on one thread of an AVX-512 machine, against the two operators
    one after the other: 1.12, 1.20, 1.05 and 1.05 times as fast on the first four pairs.
    """

    name = "separable"
    knobs_class = SeparableKnobs
    build = staticmethod(template.build)
    pack_weight = staticmethod(template.pack_weight)

    def takes(self, spec: Spec, target: TargetSpec) -> bool:
        return isinstance(spec, SeparableSpec)

    def pays(self, spec: SeparableSpec, target: TargetSpec) -> bool:
        """Where one pass saves a trip to the outer caches or a meeting of threads.

        Not where each strip would read more weights than stay near, nor, on one thread, where
        the input comes faster in a pass of its own: from L2, or because there is too little
        arithmetic to hide it behind.
        """
        if not weights_stay_near(spec.pointwise, target):
            return False
        if worth_threads(spec, target):
            return spec.batch * spec.depthwise.out_height >= 2 * target.cores
        first, second = spec.depthwise, spec.pointwise
        read = FLOAT_BYTES * first.in_channels * first.in_height * first.in_width
        cycles = second.mult_adds / spec.batch / (target.lanes * target.fma_units)
        return read > target.l2_kib * 1024 // 2 and read < HIDDEN_BYTES_PER_CYCLE * cycles

    def analytic(
        self, spec: SeparableSpec, target: TargetSpec, vectors: int | None = None
    ) -> SeparableKnobs:
        choices = self._choices(spec, target)
        choices = {c: cycles for c, cycles in choices.items() if vectors in (None, c[1][1])}
        rows, tile = min(choices, key=lambda choice: (choices[choice], choice))
        return SeparableKnobs(
            rows=rows,
            depthwise_pixels=DEPTHWISE.analytic(spec.depthwise, target).pixels,
            pixels=tile[0],
            vectors=tile[1],
            unroll=POINTWISE.analytic(spec.pointwise, target).unroll,
            parallel=worth_threads(spec, target),
            prefetch=True,
        )

    def predicted(self, spec: SeparableSpec, knobs: SeparableKnobs, target: TargetSpec) -> float:
        """Cycles by which tuning orders candidates until it has measured some."""
        return self._cycles(spec, knobs.rows, (knobs.pixels, knobs.vectors), target)

    def space(self, spec: SeparableSpec, target: TargetSpec) -> Iterable[SeparableKnobs]:
        choices = self._choices(spec, target)
        best, analytic = min(choices.values()), self.analytic(spec, target)
        return [
            replace(
                analytic,
                rows=rows,
                pixels=pixels,
                vectors=vectors,
                unroll=unroll,
                prefetch=prefetch,
            )
            for (rows, (pixels, vectors)), cycles in choices.items()
            if cycles <= 1.15 * best
            for unroll in (1, 2, 4)
            for prefetch in (False, True)
        ]

    def _choices(
        self, spec: SeparableSpec, target: TargetSpec
    ) -> dict[tuple[int, tuple[int, int]], float]:
        """Predicted cycles by strip height and register tile."""
        second = spec.pointwise
        row_bytes = FLOAT_BYTES * second.in_channels * second.in_width
        # beyond, a row leaves L1 before the pointwise half reads it
        most = max(1, target.l1d_kib * 1024 * 4 // 3 // row_bytes)
        return {
            (rows, tile): self._cycles(spec, rows, tile, target)
            for rows in _heights(second.in_height)
            if rows <= most
            for tile in register_tiles(target)
        }

    @staticmethod
    def _cycles(spec: SeparableSpec, rows: int, tile: tuple[int, int], target: TargetSpec) -> float:
        """Predicted cycles of the busiest thread."""
        first = spec.depthwise
        threads = target.cores if worth_threads(spec, target) else 1
        strip = replace(spec.pointwise, batch=1, in_height=rows)
        depthwise = strip.in_channels * strip.in_width * rows * first.kernel[0] * first.kernel[1]
        cycles = STRIP_OVERHEAD + weight_bytes(spec.pointwise) / L2_BYTES_PER_CYCLE
        cycles += depthwise / (target.lanes * target.fma_units)
        cycles += predicted_cycles(strip, tile, target)
        strips = spec.batch * -(-spec.pointwise.in_height // rows)
        return -(-strips // threads) * cycles


def _heights(height: int) -> list[int]:
    """Heights of a strip that give all strips nearly equal work."""
    return sorted({-(-height // strips) for strips in range(1, height + 1)})


SEPARABLE: Any = _Separable()
