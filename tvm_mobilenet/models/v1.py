"""MobileNetV1 (arXiv 1704.04861, table 1) and the paper's two baselines: Conv and Shallow."""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn

from tvm_mobilenet.models.layers import ConvNormActivation, MobileNet

STEM = 32
# (output channels, stride) of each separable layer. The paper prints stride 2 for the last
# depthwise convolution, but its own shapes (7x7 in, 7x7 out) need stride 1.
HEAD = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2))
MIDDLE = ((512, 1),) * 5  # the 14x14x512 layers that Shallow MobileNet lacks
TAIL = ((1024, 2), (1024, 1))

_norm = partial(nn.BatchNorm2d, eps=1e-3)


def thin(channels: int, alpha: float) -> int:
    """Channels under width multiplier alpha, as the paper's reference code rounds them."""
    return max(int(channels * alpha), 8)


class DepthwiseSeparable(nn.Sequential):
    """3x3 depthwise convolution, then 1x1 pointwise; batch norm and ReLU after each."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.depthwise = ConvNormActivation(
            inputs, inputs, stride=stride, groups=inputs, norm=_norm
        )
        self.pointwise = ConvNormActivation(inputs, outputs, kernel=1, norm=_norm)


class FullConvolution(nn.Sequential):
    """What a depthwise separable layer replaces: one 3x3 convolution, batch norm, ReLU."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = ConvNormActivation(inputs, outputs, stride=stride, norm=_norm)


class MobileNetV1(MobileNet):
    """MobileNetV1, or a baseline of it by `block` (FullConvolution) or `shallow`."""

    def __init__(
        self,
        alpha: float = 1.0,
        resolution: int = 224,
        classes: int = 1000,
        *,
        block: type[DepthwiseSeparable] | type[FullConvolution] = DepthwiseSeparable,
        shallow: bool = False,
    ) -> None:
        super().__init__(resolution)
        channels = thin(STEM, alpha)
        self.stem = ConvNormActivation(3, channels, stride=2, norm=_norm)
        self.blocks = nn.Sequential()
        for full, stride in HEAD + (() if shallow else MIDDLE) + TAIL:
            outputs = thin(full, alpha)
            self.blocks.append(block(channels, outputs, stride))
            channels = outputs
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(channels, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (batch, classes) of images (batch, 3, height, width)."""
        features = self.blocks(self.stem(images))
        return self.classifier(self.pool(features).flatten(1))
