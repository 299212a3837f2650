"""The built-in networks: shapes, torchvision's keys, what is refused, weights from a seed."""

from __future__ import annotations

import hashlib

import pytest
import torch
from torch import nn

from tvm_mobilenet import models
from tvm_mobilenet.errors import InputError
from tvm_mobilenet.models.layers import make_divisible
from tvm_mobilenet.models.v1 import thin


def on_shapes(name: str, batch: int, **options: float) -> torch.Size:
    """The output's shape, from PyTorch's meta device: nothing is computed."""
    module = models.architecture(name, **options)
    return module(torch.empty(module.input_shape(batch), device="meta")).shape


@pytest.mark.parametrize(
    ("name", "alpha", "resolution"),
    [
        ("mobilenet_v1", alpha, size)
        for alpha in (1.0, 0.75, 0.5, 0.25)
        for size in (224, 192, 160, 128)
    ]
    + [
        (name, alpha, size)
        for name in models.BUILTIN
        for alpha, size in ((0.05, 161), (0.35, 32), (1.0, 97))
    ],
)
def test_logits_have_the_shape_asked_for(name, resolution, alpha):
    assert on_shapes(name, 3, alpha=alpha, resolution=resolution, classes=7) == (3, 7)


@pytest.mark.parametrize(("name", "alpha"), [("mobilenet_v2", 1.4), ("mobilenet_v3_large", 1.25)])
def test_v2_and_v3_take_the_wide_alphas_of_their_papers(name, alpha):
    assert on_shapes(name, 1, alpha=alpha) == (1, 1000)


@pytest.mark.parametrize("name", models.BUILTIN)
@pytest.mark.parametrize("resolution", [32, 97])
def test_created_modules_run_in_float32_and_evaluation_mode(name, resolution):
    module = models.create(name, alpha=0.25, resolution=resolution, classes=10)
    assert not any(layer.training for layer in module.modules())
    with torch.no_grad():
        logits = module(torch.zeros(module.input_shape(2)))
    assert logits.shape == (2, 10)
    assert logits.dtype == torch.float32
    assert bool(logits.isfinite().all())


def test_v1_channels_are_rounded_as_in_the_reference_code():
    assert [thin(32, alpha) for alpha in (1.0, 0.75, 0.5, 0.25, 0.1)] == [32, 24, 16, 8, 8]
    assert thin(512, 0.3) == 153


def test_v2_and_v3_channels_are_rounded_as_in_the_reference_code():
    assert [make_divisible(c) for c in (32 * 0.35, 24 * 0.35, 16 * 0.75, 3, 90)] == [
        16,  # 11.2 -> 8 would lose more than a tenth
        8,
        16,
        8,
        88,
    ]


def test_v1_shapes_layer_by_layer_are_those_of_table_1():
    module = models.architecture("mobilenet_v1")
    x = module.stem(torch.empty(module.input_shape(), device="meta"))
    shapes = [tuple(x.shape[1:])]
    for block in module.blocks:
        x = block(x)
        shapes.append(tuple(x.shape[1:]))
    assert shapes == [
        (32, 112, 112),
        (64, 112, 112),
        (128, 56, 56),
        (128, 56, 56),
        (256, 28, 28),
        (256, 28, 28),
        *[(512, 14, 14)] * 6,
        (1024, 7, 7),
        (1024, 7, 7),
    ]


# Total parameters as torchvision documents them for its weights (num_params).
@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("mobilenet_v2", 3504872),
        ("mobilenet_v3_large", 5483032),
        ("mobilenet_v3_small", 2542856),
    ],
)
def test_parameter_totals_are_torchvisions(name, parameters):
    assert sum(p.numel() for p in models.architecture(name).parameters()) == parameters


BATCH_NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


@pytest.mark.parametrize(
    ("name", "number", "samples"),
    [
        (
            "mobilenet_v2",
            314,
            {
                "features.0.0.weight": (32, 3, 3, 3),
                **{f"features.0.1.{key}": None for key in BATCH_NORM},
                "features.1.conv.0.0.weight": (32, 1, 3, 3),
                "features.1.conv.0.1.running_mean": (32,),
                "features.1.conv.1.weight": (16, 32, 1, 1),
                "features.1.conv.2.running_var": (16,),
                "features.2.conv.0.0.weight": (96, 16, 1, 1),
                "features.2.conv.1.0.weight": (96, 1, 3, 3),
                "features.2.conv.2.weight": (24, 96, 1, 1),
                "features.2.conv.3.bias": (24,),
                "features.17.conv.2.weight": (320, 960, 1, 1),
                "features.18.0.weight": (1280, 320, 1, 1),
                "features.18.1.weight": (1280,),
                "classifier.1.weight": (1000, 1280),
                "classifier.1.bias": (1000,),
            },
        ),
        (
            "mobilenet_v3_large",
            312,
            {
                "features.0.0.weight": (16, 3, 3, 3),
                "features.1.block.0.0.weight": (16, 1, 3, 3),
                "features.1.block.1.0.weight": (16, 16, 1, 1),
                "features.2.block.0.0.weight": (64, 16, 1, 1),
                "features.4.block.1.0.weight": (72, 1, 5, 5),
                "features.4.block.2.fc1.weight": (24, 72, 1, 1),
                "features.4.block.2.fc1.bias": (24,),
                "features.4.block.2.fc2.weight": (72, 24, 1, 1),
                "features.4.block.3.1.running_var": (40,),
                "features.15.block.3.0.weight": (160, 960, 1, 1),
                "features.16.0.weight": (960, 160, 1, 1),
                "classifier.0.weight": (1280, 960),
                "classifier.3.weight": (1000, 1280),
            },
        ),
        (
            "mobilenet_v3_small",
            244,
            {
                "features.1.block.0.0.weight": (16, 1, 3, 3),
                "features.1.block.1.fc1.weight": (8, 16, 1, 1),
                "features.1.block.2.0.weight": (16, 16, 1, 1),
                "features.4.block.1.0.weight": (96, 1, 5, 5),
                "features.11.block.2.fc2.weight": (576, 144, 1, 1),
                "features.12.0.weight": (576, 96, 1, 1),
                "classifier.0.weight": (1024, 576),
                "classifier.3.bias": (1000,),
            },
        ),
    ],
)
def test_state_dict_keys_are_torchvisions(name, number, samples):
    state = models.architecture(name).state_dict()
    assert len(state) == number
    assert set(samples) <= set(state)
    for key, shape in samples.items():
        assert shape is None or tuple(state[key].shape) == shape, key


@pytest.mark.parametrize(
    ("name", "eps"),
    [
        ("mobilenet_v1", 1e-3),
        ("mobilenet_v2", 1e-5),
        ("mobilenet_v3_small", 1e-3),
        ("mobilenet_v3_large", 1e-3),
    ],
)
def test_batch_norm_epsilon_is_the_reference_codes(name, eps):
    modules = models.architecture(name).modules()
    assert {layer.eps for layer in modules if isinstance(layer, nn.BatchNorm2d)} == {eps}


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("mobilenet_v4", {}, "did you mean mobilenet_v"),
        ("resnet50", {}, "mobilenet_v1_shallow"),
        ("mobilenet_v1", {"alpha": 0.0}, "alpha 0.0"),
        ("mobilenet_v1", {"alpha": 1.5}, "at most 1.0"),
        ("mobilenet_v2", {"alpha": 1.5}, "at most 1.4"),
        ("mobilenet_v3_small", {"alpha": 1.5}, "at most 1.25"),
        ("mobilenet_v1", {"alpha": float("nan")}, "alpha nan"),
        ("mobilenet_v1", {"resolution": 0}, "resolution 0"),
        ("mobilenet_v1", {"resolution": 31}, "at least 32"),
        ("mobilenet_v1", {"classes": 0}, "classes 0"),
    ],
)
def test_bad_values_are_refused_in_one_line(name, options, said):
    with pytest.raises(InputError, match=said) as caught:
        models.create(name, **options)
    assert "\n" not in str(caught.value)


def test_batch_below_one_is_refused():
    with pytest.raises(InputError, match="batch 0"):
        models.architecture("mobilenet_v1").input_shape(0)


def fingerprint(module: nn.Module) -> str:
    digest = hashlib.sha256()
    for key, tensor in module.state_dict().items():
        digest.update(key.encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()[:16]


def test_seed_alone_decides_the_weights():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = fingerprint(models.create("mobilenet_v3_small", alpha=0.35, seed=5))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    again = models.create("mobilenet_v3_small", alpha=0.35, seed=5, resolution=32)
    assert fingerprint(again) == first
    assert fingerprint(models.create("mobilenet_v3_small", alpha=0.35, seed=6)) != first


def test_weights_of_a_seed_are_the_same_on_every_machine():
    # Change it only with the recipe: bundles and reports name weights by their seed.
    assert fingerprint(models.create("mobilenet_v1", alpha=0.25, seed=0)) == "db3b2eb711f2c437"


@pytest.mark.parametrize("name", models.BUILTIN)
def test_batch_norm_statistics_look_trained(name):
    module = models.create(name, alpha=0.25)
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            assert layer.running_mean.abs().max() > 0.01
            assert layer.running_var.std() > 0
            assert layer.running_var.min() > 1e-4
            assert layer.weight.std() > 0.1
            assert layer.bias.std() > 0.1


def pictures(resolution: int) -> torch.Tensor:
    """Two photographs, noise and a smooth pattern, normalised as for ImageNet."""
    from sklearn.datasets import load_sample_images

    photographs = [
        torch.tensor(image.copy()).permute(2, 0, 1).float() for image in load_sample_images().images
    ]
    resize = nn.functional.interpolate
    photographs = [resize(p[None] / 255, resolution, mode="area") for p in photographs]
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(1, 3, resolution, resolution, generator=generator)
    smooth = resize(torch.rand(1, 3, 5, 5, generator=generator), resolution, mode="bilinear")
    return (torch.cat([*photographs, noise, smooth]) - 0.45) / 0.225


@pytest.mark.parametrize(
    ("name", "alpha", "resolution"),
    [(name, 0.25, 97) for name in models.BUILTIN]
    + [("mobilenet_v1", 1.0, 224), ("mobilenet_v2", 1.0, 160), ("mobilenet_v3_large", 1.0, 224)],
)
def test_seeded_activations_keep_their_range_and_tell_images_apart(name, alpha, resolution):
    module = models.create(name, alpha=alpha, resolution=resolution)
    spreads = []
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.register_forward_hook(lambda *call: spreads.append(float(call[2].std())))
    with torch.no_grad():
        logits = module(pictures(resolution))
    assert min(spreads) > 0.2
    assert max(spreads) < 10
    assert logits.std(dim=1).min() > 0.1
    assert logits.abs().max() < 50
    correlation = torch.corrcoef(logits)[~torch.eye(len(logits), dtype=torch.bool)]
    assert correlation.max() < 0.995
