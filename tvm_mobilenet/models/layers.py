"""What the MobileNet families share: the base class, the convolution unit, channel rounding."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from tvm_mobilenet.errors import InputError


class MobileNet(nn.Module):
    """Base of the built-in networks: NCHW float32 images in, logits (batch, classes) out."""

    def __init__(self, resolution: int) -> None:
        super().__init__()
        self.resolution = resolution

    def input_shape(self, batch: int = 1) -> tuple[int, int, int, int]:
        """Shape (batch, 3, resolution, resolution) of the network's one input.

        Raises InputError when batch is below 1.
        """
        if batch < 1:
            raise InputError(f"batch {batch} must be at least 1")
        return (batch, 3, self.resolution, self.resolution)


class ConvNormActivation(nn.Sequential):
    """Convolution without bias ("0"), batch norm ("1") and activation ("2"), padded to keep size.

    The keys are those of torchvision's class of the same job. Output size: ceil(size / stride).
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int = 3,
        stride: int = 1,
        groups: int = 1,
        activation: type[nn.Module] | None = nn.ReLU,
        norm: Callable[[int], nn.Module] = nn.BatchNorm2d,
    ) -> None:
        padding = (kernel - 1) // 2
        layers: list[nn.Module] = [
            nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups, bias=False),
            norm(outputs),
        ]
        if activation is not None:
            layers.append(activation())
        super().__init__(*layers)


def make_divisible(channels: float, divisor: int = 8) -> int:
    """Nearest multiple of divisor, at least divisor, never below 90 % of channels.

    The rounding of the MobileNetV2 and V3 reference code and of torchvision.
    """
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * channels else rounded
