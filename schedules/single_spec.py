"""Specifications of the operators that a network's own become, one each.

Blocked layout
--------------
Activations between convolutions are flat arrays of shape ``(batch, C*H*W)``: blocks of ``lanes``
channels (the target's vector width), each block stored as ``[H*W][lanes]``. The last block is
*ragged*: it is only as wide as the channels that are left, so nothing is padded and the array has
exactly ``C*H*W`` elements. For ``H*W == 1`` the blocked layout is the plain channel order.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, TypeAlias, get_args

FLOAT_BYTES = 4

# float32: exact. tf32: float32 in memory, factors of products rounded to 10 bits of mantissa.
# float16: activations and weights in memory; biases, sums and activation functions are float32.
Precision: TypeAlias = Literal["float32", "tf32", "float16"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)


def storage(precision: Precision) -> str:
    """Type of activations and weights in memory: ``float32`` or ``float16``."""
    return "float16" if precision == "float16" else "float32"


def stored_bytes(precision: Precision) -> int:
    """Bytes of one activation or weight in memory."""
    return 2 if storage(precision) == "float16" else FLOAT_BYTES


@dataclass(frozen=True)
class Activation:
    """Element-wise function at the end of an operator.

    ``name`` is one of ``none``, ``clip`` (``lower``, ``upper``; ReLU is ``clip(0, inf)``),
    ``hardswish``, ``hardsigmoid`` (``clip(alpha*x + beta, 0, 1)``), ``sigmoid``.
    """

    name: str = "none"
    lower: float = 0.0
    upper: float = float("inf")
    alpha: float = 1.0 / 6.0
    beta: float = 0.5

    NAMES: ClassVar[tuple[str, ...]] = ("none", "clip", "hardswish", "hardsigmoid", "sigmoid")

    def __post_init__(self) -> None:
        if self.name not in self.NAMES:
            raise ValueError(f"unknown activation {self.name!r}; known: {', '.join(self.NAMES)}")

    def __str__(self) -> str:
        if self.name == "clip":
            if (self.lower, self.upper) == (0.0, float("inf")):
                return "relu"
            if (self.lower, self.upper) == (0.0, 6.0):
                return "relu6"
            return f"clip[{self.lower:g},{self.upper:g}]"
        return self.name


NONE = Activation()
RELU = Activation("clip")
RELU6 = Activation("clip", upper=6.0)


def channel_blocks(channels: int, lanes: int) -> list[int]:
    """Widths of the blocks of the blocked layout, e.g. 24 channels of 16 lanes: ``[16, 8]``."""
    full, tail = divmod(channels, lanes)
    return [lanes] * full + ([tail] if tail else [])


@dataclass(frozen=True)
class ConvSpec:
    """2-D convolution + bias (+ residual) + activation, float32.

    Buffers, in call order: input ``(N, C, H, W)`` or blocked ``(N, C*H*W)`` as ``input_layout``
    says; weight ``(O, C/groups, KH, KW)``; bias ``(O,)``; residual ``(N, O*OH*OW)`` blocked, only
    if ``residual``; output ``(N, O*OH*OW)`` blocked. The activation is applied last.
    """

    batch: int
    in_channels: int
    in_height: int
    in_width: int
    out_channels: int
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)  # top, left, bottom, right
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    lanes: int = 16
    input_layout: str = "blocked"  # or "nchw"
    activation: Activation = NONE
    residual: bool = False
    precision: Precision = "float32"

    weight_arguments: ClassVar[tuple[int, ...]] = (1,)  # positions in the call

    @property
    def out_height(self) -> int:
        return self._out(self.in_height, 0)

    @property
    def out_width(self) -> int:
        return self._out(self.in_width, 1)

    @property
    def out_pixels(self) -> int:
        """Of one image."""
        return self.out_height * self.out_width

    def _out(self, size: int, axis: int) -> int:
        span = self.dilation[axis] * (self.kernel[axis] - 1) + 1
        padded = size + self.padding[axis] + self.padding[axis + 2]
        return (padded - span) // self.stride[axis] + 1

    @property
    def kind(self) -> str:
        """``depthwise``, ``pointwise``, ``stem`` (reads the network's NCHW input) or ``conv``."""
        if self.groups > 1:
            return "depthwise"
        if self.input_layout == "nchw":
            return "stem"
        if self.kernel == self.stride == (1, 1) and not any(self.padding):
            return "pointwise"
        return "conv"

    @property
    def mult_adds(self) -> int:
        per_output = self.in_channels // self.groups * self.kernel[0] * self.kernel[1]
        return self.batch * self.out_channels * self.out_height * self.out_width * per_output

    @property
    def min_bytes(self) -> int:
        """Bytes moved if every tensor were read or written exactly once."""
        inputs = self.batch * self.in_channels * self.in_height * self.in_width
        outputs = self.batch * self.out_channels * self.out_height * self.out_width
        per_output = self.in_channels // self.groups * self.kernel[0] * self.kernel[1]
        weights = self.out_channels * per_output
        stored = weights + outputs * (2 if self.residual else 1)
        if self.input_layout != "nchw":  # that is float32, and so is the bias
            stored, inputs = stored + inputs, 0
        floats = inputs + self.out_channels
        return stored_bytes(self.precision) * stored + FLOAT_BYTES * floats

    def __str__(self) -> str:
        text = (
            f"{self.batch}x{self.in_channels}x{self.in_height}x{self.in_width}"
            f"->{self.out_channels} {self.kernel[0]}x{self.kernel[1]}/{self.stride[0]}"
        )
        if self.residual:
            text += " +res"
        return text if self.activation == NONE else f"{text} {self.activation}"


@dataclass(frozen=True)
class DenseSpec:
    """Fully connected layer + activation: ``(N, I) x (O, I)^T + (O,) -> (N, O)``.

    ``float32_output``: the result is float32 at float16, too, being the network's own.
    """

    batch: int
    in_features: int
    out_features: int
    lanes: int = 16
    activation: Activation = NONE
    precision: Precision = "float32"
    float32_output: bool = False

    kind: ClassVar[str] = "dense"
    weight_arguments: ClassVar[tuple[int, ...]] = (1,)

    @property
    def mult_adds(self) -> int:
        return self.batch * self.in_features * self.out_features

    @property
    def min_bytes(self) -> int:
        width, results = stored_bytes(self.precision), self.batch * self.out_features
        stored = self.in_features * (self.out_features + self.batch)
        result_width = FLOAT_BYTES if self.float32_output else width
        return width * stored + result_width * results + FLOAT_BYTES * self.out_features

    def __str__(self) -> str:
        text = f"{self.batch}x{self.in_features}->{self.out_features}"
        return text if self.activation == NONE else f"{text} {self.activation}"


@dataclass(frozen=True)
class PoolSpec:
    """Global average pooling: blocked ``(N, C*H*W)`` -> ``(N, C)``, float32."""

    batch: int
    channels: int
    height: int
    width: int
    lanes: int = 16
    precision: Precision = "float32"

    kind: ClassVar[str] = "pool"
    weight_arguments: ClassVar[tuple[int, ...]] = ()
    mult_adds: ClassVar[int] = 0

    @property
    def min_bytes(self) -> int:
        width = stored_bytes(self.precision)
        return width * self.batch * self.channels * (self.height * self.width + 1)

    def __str__(self) -> str:
        return f"{self.batch}x{self.channels}x{self.height}x{self.width}"


@dataclass(frozen=True)
class ScaleSpec:
    """Multiply each channel by its own factor (the end of squeeze-excite), float32.

    Buffers: blocked ``(N, C*H*W)``, factors ``(N, C)``, output blocked ``(N, C*H*W)``.
    """

    batch: int
    channels: int
    height: int
    width: int
    lanes: int = 16
    activation: Activation = NONE
    precision: Precision = "float32"

    kind: ClassVar[str] = "squeeze-excite"
    weight_arguments: ClassVar[tuple[int, ...]] = ()
    mult_adds: ClassVar[int] = 0

    @property
    def min_bytes(self) -> int:
        width = stored_bytes(self.precision)
        return width * self.batch * self.channels * (2 * self.height * self.width + 1)

    def __str__(self) -> str:
        return f"{self.batch}x{self.channels}x{self.height}x{self.width}"


@dataclass(frozen=True)
class ElementwiseSpec:
    """``activation(x)`` or ``activation(x op y)`` on equal shapes, whatever their layout.

    Buffers: ``operands`` inputs and one output, each of ``shape``.
    """

    shape: tuple[int, ...]
    op: str = "identity"  # or "add", "multiply"
    lanes: int = 16
    activation: Activation = NONE
    precision: Precision = "float32"

    kind: ClassVar[str] = "elementwise"
    weight_arguments: ClassVar[tuple[int, ...]] = ()
    mult_adds: ClassVar[int] = 0

    @property
    def operands(self) -> int:
        return 1 if self.op == "identity" else 2

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def min_bytes(self) -> int:
        return stored_bytes(self.precision) * self.size * (self.operands + 1)

    def __str__(self) -> str:
        return f"{'x'.join(map(str, self.shape))} {self.op} {self.activation}"


@dataclass(frozen=True)
class LayoutSpec:
    """Change of layout: ``pack`` NCHW ``(N, C, H, W)`` -> blocked, or ``unpack`` back."""

    batch: int
    channels: int
    height: int
    width: int
    direction: str = "pack"  # or "unpack"
    lanes: int = 16
    precision: Precision = "float32"

    kind: ClassVar[str] = "layout"
    weight_arguments: ClassVar[tuple[int, ...]] = ()
    mult_adds: ClassVar[int] = 0

    @property
    def min_bytes(self) -> int:
        both = FLOAT_BYTES + stored_bytes(self.precision)  # outside of the network it is float32
        return both * self.batch * self.channels * self.height * self.width

    def __str__(self) -> str:
        return f"{self.direction} {self.batch}x{self.channels}x{self.height}x{self.width}"
