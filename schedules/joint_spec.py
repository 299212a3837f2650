"""Specifications of operators that are made of others, whose results are not kept between."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, TypeAlias

from .single_spec import (
    FLOAT_BYTES,
    ConvSpec,
    DenseSpec,
    PoolSpec,
    Precision,
    ScaleSpec,
    stored_bytes,
)


class _Joint:
    """Batch, lanes and, unless said otherwise, precision are those of one ``part``."""

    part: ClassVar[str]

    @property
    def _part(self) -> ConvSpec | DenseSpec | PoolSpec:
        found: ConvSpec | DenseSpec | PoolSpec = getattr(self, self.part)
        return found

    @property
    def batch(self) -> int:
        return self._part.batch

    @property
    def lanes(self) -> int:
        return self._part.lanes

    @property
    def precision(self) -> Precision:
        return self._part.precision


@dataclass(frozen=True)
class SeparableSpec(_Joint):
    """A depthwise convolution and the pointwise one that alone reads its result.

    Buffers, in call order: the depthwise one's input, weight and bias, the pointwise one's weight,
    bias and, only if ``pointwise.residual``, residual; its output.
    """

    depthwise: ConvSpec
    pointwise: ConvSpec

    part: ClassVar[str] = "depthwise"
    kind: ClassVar[str] = "separable"
    weight_arguments: ClassVar[tuple[int, ...]] = (1, 3)

    @property
    def precision(self) -> Precision:
        return self.pointwise.precision

    @property
    def mult_adds(self) -> int:
        return self.depthwise.mult_adds + self.pointwise.mult_adds

    @property
    def min_bytes(self) -> int:
        """Bytes moved if every tensor but the one between were read or written exactly once."""
        outputs = self.depthwise.out_channels * self.depthwise.out_pixels
        between = 2 * stored_bytes(self.depthwise.precision) * self.batch * outputs
        return self.depthwise.min_bytes + self.pointwise.min_bytes - between

    def __str__(self) -> str:
        after = str(self.pointwise).partition("->")[2]
        return f"{self.depthwise} ->{after}"


@dataclass(frozen=True)
class ScaledSpec(_Joint):
    """Channel scaling and the pointwise convolution that alone reads its result.

    Buffers, in call order: the scaling's map and factors, the pointwise convolution's weight, bias
    and, only if ``pointwise.residual``, residual; its output.
    """

    scale: ScaleSpec
    pointwise: ConvSpec

    part: ClassVar[str] = "pointwise"
    kind: ClassVar[str] = "scaled"
    weight_arguments: ClassVar[tuple[int, ...]] = (2,)

    @property
    def mult_adds(self) -> int:
        return self.pointwise.mult_adds

    @property
    def min_bytes(self) -> int:
        """Bytes moved if every tensor but the scaled map were read or written exactly once."""
        factors = self.batch * self.scale.channels
        return self.pointwise.min_bytes + stored_bytes(self.scale.precision) * factors

    def __str__(self) -> str:
        return f"scaled {self.pointwise}"


@dataclass(frozen=True)
class SqueezeSpec(_Joint):
    """Global average pooling and its share in a dense layer (the start of squeeze-excite).

    Of every ``group`` channels, and each of ``chunks`` equal pieces of the map, the means times
    their weights: sums that `ExciteSpec` adds up. Buffers: the pooling's map, the dense layer's
    weight, output ``(N, parts * O)`` in float32, ``parts`` of them behind each other, those of one
    group in a row.
    """

    pool: PoolSpec
    dense: DenseSpec  # its bias and activation come later
    group: int
    chunks: int = 1

    part: ClassVar[str] = "pool"
    kind: ClassVar[str] = "squeeze"
    weight_arguments: ClassVar[tuple[int, ...]] = (1,)

    @property
    def parts(self) -> int:
        return self.chunks * -(-self.pool.channels // self.group)

    @property
    def chunk_pixels(self) -> int:
        """Of every piece of the map but the last, which may be smaller."""
        return -(-self.pool.height * self.pool.width // self.chunks)

    @property
    def precision(self) -> Precision:
        return self.dense.precision

    @property
    def mult_adds(self) -> int:
        return self.dense.mult_adds

    @property
    def min_bytes(self) -> int:
        width, sums = stored_bytes(self.precision), self.parts * self.dense.out_features
        inputs = self.batch * self.pool.channels * self.pool.height * self.pool.width
        weights = self.dense.in_features * self.dense.out_features
        return width * (inputs + weights) + FLOAT_BYTES * self.batch * sums

    def __str__(self) -> str:
        return f"{self.pool}->{self.dense.out_features} in {self.parts}"


@dataclass(frozen=True)
class DepthwiseSqueezeSpec(_Joint):
    """A depthwise convolution and, of its result, what a `SqueezeSpec` gives.

    Buffers: the convolution's input, weight and bias, the dense layer's weight; two outputs, the
    sums and the convolution's result.
    """

    depthwise: ConvSpec
    squeeze: SqueezeSpec

    part: ClassVar[str] = "depthwise"
    kind: ClassVar[str] = "depthwise-squeeze"
    weight_arguments: ClassVar[tuple[int, ...]] = (1, 3)
    outputs: ClassVar[int] = 2

    @property
    def mult_adds(self) -> int:
        return self.depthwise.mult_adds + self.squeeze.mult_adds

    @property
    def min_bytes(self) -> int:
        """Bytes moved if every tensor were read or written exactly once."""
        pool = self.squeeze.pool
        pooled = stored_bytes(pool.precision) * pool.channels * pool.height * pool.width
        return self.depthwise.min_bytes + self.squeeze.min_bytes - self.batch * pooled

    def __str__(self) -> str:
        return f"{self.depthwise} ->{str(self.squeeze).partition('->')[2]}"


@dataclass(frozen=True)
class ExciteSpec(_Joint):
    """The rest of a dense layer whose sums a `SqueezeSpec` gives in ``parts``, and the next one.

    Buffers: the sums ``(N, parts * H)`` in float32, the first layer's bias, the second's weight and
    bias; its output.
    """

    first: DenseSpec
    second: DenseSpec
    parts: int

    part: ClassVar[str] = "second"
    kind: ClassVar[str] = "excite"
    weight_arguments: ClassVar[tuple[int, ...]] = (2,)

    @property
    def mult_adds(self) -> int:
        return self.second.mult_adds

    @property
    def min_bytes(self) -> int:
        hidden = self.first.out_features
        inputs = stored_bytes(self.precision) * self.batch * hidden
        sums = FLOAT_BYTES * (self.batch * self.parts + 1) * hidden
        return self.second.min_bytes - inputs + sums

    def __str__(self) -> str:
        first = f"{self.batch}x{self.parts}x{self.first.out_features} {self.first.activation}"
        return f"{first} ->{str(self.second).partition('->')[2]}"


Joint: TypeAlias = SeparableSpec | ScaledSpec | SqueezeSpec | DepthwiseSqueezeSpec | ExciteSpec
