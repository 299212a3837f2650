"""MobileNetV3-large and -small (arXiv 1905.02244); state-dict keys are torchvision's."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

from torch import Tensor, nn

from tvm_mobilenet.models.layers import ConvNormActivation, MobileNet, make_divisible

STEM = 16


class Bottleneck(NamedTuple):
    """One row of the paper's tables 1 and 2, before the width multiplier."""

    kernel: int
    expanded: int
    outputs: int
    squeeze_excite: bool
    activation: type[nn.Module]
    stride: int


_RE, _HS = nn.ReLU, nn.Hardswish
LARGE = (
    Bottleneck(3, 16, 16, False, _RE, 1),
    Bottleneck(3, 64, 24, False, _RE, 2),
    Bottleneck(3, 72, 24, False, _RE, 1),
    Bottleneck(5, 72, 40, True, _RE, 2),
    Bottleneck(5, 120, 40, True, _RE, 1),
    Bottleneck(5, 120, 40, True, _RE, 1),
    Bottleneck(3, 240, 80, False, _HS, 2),
    Bottleneck(3, 200, 80, False, _HS, 1),
    Bottleneck(3, 184, 80, False, _HS, 1),
    Bottleneck(3, 184, 80, False, _HS, 1),
    Bottleneck(3, 480, 112, True, _HS, 1),
    Bottleneck(3, 672, 112, True, _HS, 1),
    Bottleneck(5, 672, 160, True, _HS, 2),
    Bottleneck(5, 960, 160, True, _HS, 1),
    Bottleneck(5, 960, 160, True, _HS, 1),
)
SMALL = (
    Bottleneck(3, 16, 16, True, _RE, 2),
    Bottleneck(3, 72, 24, False, _RE, 2),
    Bottleneck(3, 88, 24, False, _RE, 1),
    Bottleneck(5, 96, 40, True, _HS, 2),
    Bottleneck(5, 240, 40, True, _HS, 1),
    Bottleneck(5, 240, 40, True, _HS, 1),
    Bottleneck(5, 120, 48, True, _HS, 1),
    Bottleneck(5, 144, 48, True, _HS, 1),
    Bottleneck(5, 288, 96, True, _HS, 2),
    Bottleneck(5, 576, 96, True, _HS, 1),
    Bottleneck(5, 576, 96, True, _HS, 1),
)
LAST_LARGE, LAST_SMALL = 1280, 1024

_norm = partial(nn.BatchNorm2d, eps=1e-3, momentum=0.01)


class SqueezeExcitation(nn.Module):
    """Scales each channel by a gate in [0, 1] computed from the channels' means."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc1 = nn.Conv2d(channels, squeezed, 1)
        self.fc2 = nn.Conv2d(squeezed, channels, 1)
        self.activation = nn.ReLU()
        self.scale_activation = nn.Hardsigmoid()

    def forward(self, x: Tensor) -> Tensor:
        """NCHW in, the same shape out."""
        gate = self.fc2(self.activation(self.fc1(self.avgpool(x))))
        return x * self.scale_activation(gate)


class InvertedResidual(nn.Module):
    """Expand 1x1, depthwise, squeeze-excite, project 1x1; added to its input where it fits."""

    def __init__(self, inputs: int, row: Bottleneck, alpha: float) -> None:
        super().__init__()
        expanded = make_divisible(row.expanded * alpha)
        outputs = make_divisible(row.outputs * alpha)
        self.residual = row.stride == 1 and inputs == outputs
        unit = partial(ConvNormActivation, activation=row.activation, norm=_norm)
        self.block = nn.Sequential()
        if expanded != inputs:
            self.block.append(unit(inputs, expanded, kernel=1))
        self.block.append(unit(expanded, expanded, row.kernel, row.stride, groups=expanded))
        if row.squeeze_excite:
            self.block.append(SqueezeExcitation(expanded, make_divisible(expanded // 4)))
        self.block.append(unit(expanded, outputs, kernel=1, activation=None))

    def forward(self, x: Tensor) -> Tensor:
        """NCHW in; NCHW out, height and width divided by the stride (rounded up)."""
        return x + self.block(x) if self.residual else self.block(x)


class MobileNetV3(MobileNet):
    """MobileNetV3 with width multiplier alpha, by default the large one."""

    def __init__(
        self,
        alpha: float = 1.0,
        resolution: int = 224,
        classes: int = 1000,
        *,
        rows: tuple[Bottleneck, ...] = LARGE,
        last: int = LAST_LARGE,
    ) -> None:
        super().__init__(resolution)
        channels = make_divisible(STEM * alpha)
        unit = partial(ConvNormActivation, activation=nn.Hardswish, norm=_norm)
        self.features = nn.Sequential(unit(3, channels, stride=2))
        for row in rows:
            self.features.append(InvertedResidual(channels, row, alpha))
            channels = make_divisible(row.outputs * alpha)
        self.features.append(unit(channels, 6 * channels, kernel=1))
        hidden = make_divisible(last * alpha)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(
            nn.Linear(6 * channels, hidden),
            nn.Hardswish(),
            nn.Dropout(0.2),
            nn.Linear(hidden, classes),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Logits (batch, classes) of images (batch, 3, height, width)."""
        return self.classifier(self.avgpool(self.features(images)).flatten(1))
