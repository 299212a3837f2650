"""The networks that the MobileNet paper compares with (tables 8 and 9), counted by `cost`.

The paper quotes their figures from elsewhere, each in a convention of its own. Each test says
which digits the count confirms and, where it cannot, why.
"""

from __future__ import annotations

import itertools

import torch
from torch import nn

from tvm_mobilenet.models.cost import Cost, cost


def conv(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    layer = nn.Conv2d(inputs, outputs, kernel, stride, (kernel - 1) // 2, groups=groups)
    return nn.Sequential(layer, nn.ReLU())


def halve() -> nn.MaxPool2d:
    return nn.MaxPool2d(3, 2, ceil_mode=True)


class Branches(nn.Module):
    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x):
        return torch.cat([branch(x) for branch in self.branches], 1)


def count(layers: list[nn.Module], resolution: int) -> Cost:
    return cost(nn.Sequential(*layers), (1, 3, resolution, resolution))


def millions_without_dense(counted: Cost) -> float:
    return sum(row.mult_adds for row in counted.kinds if row.kind != "dense") / 1e6


def head(*sizes: int) -> list[nn.Module]:
    layers: list[nn.Module] = [nn.Flatten()]
    for inputs, outputs in itertools.pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return layers[:-1]


def test_vgg_16():
    with torch.device("meta"):
        layers: list[nn.Module] = []
        channels = 3
        for repeats, width in ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512)):
            for _ in range(repeats):
                layers.append(conv(channels, width, 3))
                channels = width
            layers.append(nn.MaxPool2d(2))
        counted = count(layers + head(512 * 7 * 7, 4096, 4096, 1000), 224)
    assert f"{counted.parameters / 1e6:.0f}" == "138"
    # Printed 15300, three digits: the convolutions alone (15347); 15470 with its dense layers.
    assert f"{millions_without_dense(counted):.3g}" == "1.53e+04"
    assert f"{counted.mult_adds / 1e6:.0f}" == "15470"


def test_alexnet():
    with torch.device("meta"):
        layers = [
            nn.Conv2d(3, 96, 11, 4),
            nn.MaxPool2d(3, 2),
            conv(96, 256, 5, groups=2),
            nn.MaxPool2d(3, 2),
            conv(256, 384, 3),
            conv(384, 384, 3, groups=2),
            conv(384, 256, 3, groups=2),
            nn.MaxPool2d(3, 2),
        ]
        counted = count(layers + head(256 * 6 * 6, 4096, 4096, 1000), 227)
    assert f"{counted.mult_adds / 1e6:.2g}" == "7.2e+02"
    # Printed 60, as its own authors say ("60 million"): 60.97 cut, not rounded.
    assert int(counted.all_parameters / 1e6) == 60


def test_squeezenet():
    def fire(inputs: int, squeeze: int, expand: int) -> nn.Sequential:
        both = Branches(conv(squeeze, expand, 1), conv(squeeze, expand, 3))
        return nn.Sequential(conv(inputs, squeeze, 1), both)

    with torch.device("meta"):
        counted = count(
            [
                nn.Conv2d(3, 96, 7, 2),
                halve(),
                fire(96, 16, 64),
                fire(128, 16, 64),
                fire(128, 32, 128),
                halve(),
                fire(256, 32, 128),
                fire(256, 48, 192),
                fire(384, 48, 192),
                fire(384, 64, 256),
                halve(),
                fire(512, 64, 256),
                conv(512, 1000, 1),
                nn.AdaptiveAvgPool2d(1),
            ],
            227,
        )
    # Printed 1.25, with biases; and 1700 M, which is multiplications and additions counted apart.
    assert f"{counted.all_parameters / 1e6:.2f}" == "1.25"
    assert f"{2 * counted.mult_adds / 1e6:.2g}" == "1.7e+03"


def test_googlenet():
    def inception(n: int, a: int, b: int, bb: int, c: int, cc: int, d: int) -> Branches:
        return Branches(
            conv(n, a, 1),
            nn.Sequential(conv(n, b, 1), conv(b, bb, 3)),
            nn.Sequential(conv(n, c, 1), conv(c, cc, 5)),
            nn.Sequential(nn.MaxPool2d(3, 1, 1), conv(n, d, 1)),
        )

    with torch.device("meta"):
        counted = count(
            [
                conv(3, 64, 7, 2),
                halve(),
                conv(64, 64, 1),
                conv(64, 192, 3),
                halve(),
                inception(192, 64, 96, 128, 16, 32, 32),
                inception(256, 128, 128, 192, 32, 96, 64),
                halve(),
                inception(480, 192, 96, 208, 16, 48, 64),
                inception(512, 160, 112, 224, 24, 64, 64),
                inception(512, 128, 128, 256, 24, 64, 64),
                inception(512, 112, 144, 288, 32, 64, 64),
                inception(528, 256, 160, 320, 32, 128, 128),
                halve(),
                inception(832, 256, 160, 320, 32, 128, 128),
                inception(832, 384, 192, 384, 48, 128, 128),
                nn.AdaptiveAvgPool2d(1),
                *head(1024, 1000),
            ],
            224,
        )
    # Printed 1550 and 6.8 (the sum of the rounded table in GoogLeNet's own paper). No choice of
    # what to count gives them: already the convolutions alone are above.
    assert counted.mult_adds == 1_582_671_872
    assert counted.parameters == 6_990_272
    assert millions_without_dense(counted) > 1550.5
