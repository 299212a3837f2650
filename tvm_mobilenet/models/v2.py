"""MobileNetV2 (arXiv 1801.04381); state-dict keys are torchvision's."""

from __future__ import annotations

from torch import Tensor, nn

from tvm_mobilenet.models.layers import ConvNormActivation, MobileNet, make_divisible

STEM, LAST = 32, 1280
# (expansion, output channels, repeats, stride of the first), table 2 of the paper.
STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


class InvertedResidual(nn.Module):
    """Expand 1x1, depthwise 3x3, project 1x1 without activation; added to its input if it fits."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        self.residual = stride == 1 and inputs == outputs
        self.conv = nn.Sequential()
        if expansion != 1:
            self.conv.append(ConvNormActivation(inputs, hidden, kernel=1, activation=nn.ReLU6))
        self.conv.append(
            ConvNormActivation(hidden, hidden, stride=stride, groups=hidden, activation=nn.ReLU6)
        )
        self.conv.append(nn.Conv2d(hidden, outputs, 1, bias=False))
        self.conv.append(nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """NCHW in; NCHW out, height and width divided by the stride (rounded up)."""
        return x + self.conv(x) if self.residual else self.conv(x)


class MobileNetV2(MobileNet):
    """MobileNetV2 with width multiplier alpha; the last convolution is never thinned below 1280."""

    def __init__(self, alpha: float = 1.0, resolution: int = 224, classes: int = 1000) -> None:
        super().__init__(resolution)
        channels = make_divisible(STEM * alpha)
        self.features = nn.Sequential(
            ConvNormActivation(3, channels, stride=2, activation=nn.ReLU6)
        )
        for expansion, full, repeats, first_stride in STAGES:
            outputs = make_divisible(full * alpha)
            for index in range(repeats):
                stride = first_stride if index == 0 else 1
                self.features.append(InvertedResidual(channels, outputs, stride, expansion))
                channels = outputs
        last = make_divisible(LAST * max(1.0, alpha))
        self.features.append(ConvNormActivation(channels, last, kernel=1, activation=nn.ReLU6))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(last, classes))

    def forward(self, images: Tensor) -> Tensor:
        """Logits (batch, classes) of images (batch, 3, height, width)."""
        return self.classifier(self.pool(self.features(images)).flatten(1))
