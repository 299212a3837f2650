"""Weights from a seed that behave like trained ones: useful for latency, parity and tests.

Batch-norm statistics are measured, layer by layer, on synthetic images and then perturbed, so
activations keep their range through any depth and different images give different logits.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

IMAGES, SIZE = 4, 128  # the calibration batch: the last layers still see 4x4 maps


def initialise(module: nn.Module, seed: int) -> None:
    """Set every parameter and buffer of an image network (3 channels) in float32 from seed.

    Uses uniform draws, float64 and rounding, so the result does not depend on the machine, on
    threads or on PyTorch's global generator.
    """
    draw = _Draw(seed)
    with torch.no_grad():
        for layer in module.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                # He et al. 2015: keeps the second moment through a ReLU.
                bound = math.sqrt(6.0 / layer.weight[0].numel())
                layer.weight.copy_(draw.between(-bound, bound, layer.weight.shape))
                if layer.bias is not None:
                    layer.bias.copy_(draw.between(-0.1, 0.1, layer.bias.shape))
            elif isinstance(layer, nn.BatchNorm2d):
                layer.weight.copy_(draw.between(0.5, 1.5, layer.weight.shape))
                layer.bias.copy_(draw.between(-0.5, 0.5, layer.bias.shape))
                layer.reset_running_stats()
        _calibrate(module, draw)


class _Draw:
    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)

    def between(self, low: float, high: float, shape: torch.Size | tuple[int, ...]) -> Tensor:
        """Uniform values; exact to the bit everywhere, which normal draws are not."""
        return torch.rand(shape, generator=self._generator) * (high - low) + low


def _calibrate(module: nn.Module, draw: _Draw) -> None:
    """Set batch norms' statistics to near what reaches them; bfloat16 hides summation order."""

    def measure(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(layer, nn.BatchNorm2d)
        variance, mean = torch.var_mean(inputs[0], (0, 2, 3), correction=0)
        # A channel that varied little here must not explode on images of another kind or size.
        variance = variance.clamp(min=0.2 * float(variance.mean())) + 0.1 * mean.square()
        mean = mean + draw.between(-0.2, 0.2, mean.shape) * variance.sqrt()
        variance = variance * draw.between(0.75, 1.25, variance.shape)
        assert layer.running_mean is not None and layer.running_var is not None
        layer.running_mean.copy_(mean.bfloat16())
        layer.running_var.copy_(variance.bfloat16())

    module.double()
    hooks = [
        layer.register_forward_pre_hook(measure)
        for layer in module.modules()
        if isinstance(layer, nn.BatchNorm2d)
    ]
    try:
        module(_images(draw))
    finally:
        for hook in hooks:
            hook.remove()
        module.float()


def _images(draw: _Draw) -> Tensor:
    """Noise of several scales, contrasts and brightnesses, as photographs have; float64."""
    scales = [
        functional.interpolate(
            draw.between(-1.0, 1.0, (IMAGES, 3, size, size)).double(), SIZE, mode="nearest"
        )
        for size in (2, 8, 32, SIZE)
    ]
    contrast = torch.linspace(0.1, 2.0, IMAGES, dtype=torch.float64).view(-1, 1, 1, 1)
    unit_variance = torch.stack(scales).sum(0) * math.sqrt(3.0 / len(scales))
    return contrast * unit_variance + draw.between(-1.0, 1.0, (IMAGES, 3, 1, 1)).double()
