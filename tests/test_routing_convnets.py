"""Roles in convolutional networks that no library names: torchvision's, written from modules."""

from __future__ import annotations

from collections.abc import Callable

import convnets
import pytest
import torch
from routing_check import CONV, HEAD, MATRIX, MLP_IN, MLP_OUT, VECTOR, Expected, check, runs
from torch import nn

import orthoopt

NORMS_AND_BIASES: Expected = {r".*\b(bn\d?|norm\d?)\.(weight|bias)": VECTOR, r".*\.bias": VECTOR}
FC: Expected = {r"fc\.weight": HEAD}
GROUPED = ("conv", "flatten heads(2)")
INVERTED: Expected = {
    r"features\.(0|3)\.0\.weight": CONV,
    r"features\.[12]\.\w+\.0\.0\.weight": CONV,  # expands
    r"features\.[12]\.\w+\.1\.0\.weight": VECTOR,  # depthwise
    r"features\.([03]\.1|[12]\.\w+\.[01]\.1)\.weight": VECTOR,  # norms
}
SQUEEZED: Expected = {
    **INVERTED,
    r"features\.[12]\.block\.2\.fc[12]\.weight": CONV,
    r"features\.[12]\.block\.3\.weight": CONV,  # projects
    r"features\.[12]\.block\.4\.weight": VECTOR,
}
NETWORKS: dict[str, tuple[Callable[[], nn.Module], Expected]] = {
    "ResNet, basic": (
        lambda: convnets.ResNet(convnets.BasicBlock),
        {
            r"(layer\d\.\d\.)?conv\d\.weight": CONV,
            r"layer\d\.0\.downsample\.0\.weight": CONV,
            r"layer\d\.0\.downsample\.1\.weight": VECTOR,
            **FC,
            **NORMS_AND_BIASES,
        },
    ),
    "ResNeXt": (
        lambda: convnets.ResNet(convnets.Bottleneck, groups=2, base_width=32),
        {
            r"(layer\d\.\d\.)?conv[13]\.weight": CONV,
            r"layer\d\.\d\.conv2\.weight": GROUPED,
            r"layer\d\.0\.downsample\.0\.weight": CONV,
            r"layer\d\.0\.downsample\.1\.weight": VECTOR,
            **FC,
            **NORMS_AND_BIASES,
        },
    ),
    "DenseNet": (
        convnets.DenseNet,
        {r"features\..*conv\d?\.weight": CONV, r"classifier\.weight": HEAD, **NORMS_AND_BIASES},
    ),
    "MobileNetV2": (
        lambda: convnets.MobileNet(squeeze=False, name="conv", deep_classifier=False),
        {
            **INVERTED,
            r"features\.[12]\.conv\.2\.weight": CONV,
            r"features\.[12]\.conv\.3\.weight": VECTOR,
            r"classifier\.1\.weight": HEAD,
            r".*\.bias": VECTOR,
        },
    ),
    "MobileNetV3": (
        lambda: convnets.MobileNet(squeeze=True, name="block", deep_classifier=True),
        {**SQUEEZED, r"classifier\.0\.weight": MATRIX, r"classifier\.3\.weight": HEAD, r".*\.bias": VECTOR},
    ),
    "EfficientNet": (
        lambda: convnets.MobileNet(squeeze=True, name="block", deep_classifier=False),
        {**SQUEEZED, r"classifier\.1\.weight": HEAD, r".*\.bias": VECTOR},
    ),
    "ConvNeXt": (
        convnets.ConvNeXt,
        {
            r"features\.(0\.0|2\.1)\.weight": CONV,
            r"features\.[13]\.\d\.block\.0\.weight": VECTOR,
            r"features\.[13]\.\d\.block\.2\.weight": VECTOR,
            r"features\.[13]\.\d\.block\.3\.weight": MLP_IN,
            r"features\.[13]\.\d\.block\.5\.weight": MLP_OUT,
            r"features\.[13]\.\d\.layer_scale": VECTOR,
            r"(features\.0\.1|features\.2\.0|classifier\.0)\.weight": VECTOR,
            r"classifier\.2\.weight": HEAD,
            r".*\.bias": VECTOR,
        },
    ),
    "VGG": (
        convnets.VGG,
        {
            r"features\.\d\.weight": CONV,
            r"classifier\.[03]\.weight": MATRIX,
            r"classifier\.6\.weight": HEAD,
            r".*\.bias": VECTOR,
        },
    ),
    "SqueezeNet": (
        convnets.SqueezeNet,
        {r"features\..*\.weight": CONV, r"classifier\.1\.weight": ("lm_head", "flatten"), r".*\.bias": VECTOR},
    ),
    "FCN": (
        convnets.FCN,
        {
            r"backbone\.0\.weight": CONV,
            r"classifier\.0\.weight": CONV,
            r"classifier\.1\.weight": VECTOR,
            r"classifier\.4\.weight": ("lm_head", "flatten"),
            r".*\.bias": VECTOR,
        },
    ),
    "Inception": (convnets.Inception, {r".*\.conv\.weight": CONV, **FC, **NORMS_AND_BIASES}),
}


@pytest.mark.parametrize("which", NETWORKS)
def test_every_layer_of_a_convnet(which: str) -> None:
    build, expected = NETWORKS[which]
    with torch.device("meta"):
        model = build()
    assert runs(model, (2, 3, 32, 32)).shape[:1] == (2,)
    check(model, expected)


@pytest.mark.parametrize(
    ("layer", "shape", "expected"),
    [
        (nn.Conv1d(4, 6, 3), (6, 4, 3), CONV),
        (nn.Conv3d(4, 6, 3), (6, 4, 3, 3, 3), CONV),
        (nn.Conv2d(8, 8, 3, groups=8), (8, 1, 3, 3), VECTOR),
        (nn.Conv2d(8, 16, 3, groups=8), (16, 1, 3, 3), VECTOR),  # two filters for each channel, none mixes channels
        (nn.Conv1d(8, 8, 4, groups=8), (8, 1, 4), VECTOR),
        (nn.Conv1d(8, 6, 3, groups=2), (6, 4, 3), GROUPED),
        (nn.Conv3d(8, 6, 3, groups=2), (6, 4, 3, 3, 3), GROUPED),
        (nn.Conv2d(8, 4, 3, groups=4), (4, 2, 3, 3), VECTOR),  # a row for each group
        (nn.ConvTranspose1d(4, 6, 2), (4, 6, 2), ("conv", "flatten transpose")),
        (nn.ConvTranspose2d(4, 6, 2), (4, 6, 2, 2), ("conv", "flatten transpose")),
        (nn.ConvTranspose3d(4, 6, 2), (4, 6, 2, 2, 2), ("conv", "flatten transpose")),
        (nn.ConvTranspose2d(8, 6, 2, groups=2), (8, 3, 2, 2), ("conv", "flatten heads(2) transpose")),
        (nn.ConvTranspose2d(8, 8, 2, groups=8), (8, 1, 2, 2), VECTOR),
    ],
    ids=lambda value: repr(value) if isinstance(value, nn.Module) else "",
)
def test_kernels_of_every_kind(layer: nn.Module, shape: tuple[int, ...], expected: tuple[str, str]) -> None:
    assert layer.weight.shape == shape
    check(nn.Sequential(layer), {r"0\.weight": expected, r"0\.bias": VECTOR})


def test_a_grouped_transposed_kernel_is_seen_as_the_maps_it_applies() -> None:
    torch.manual_seed(0)
    layer = nn.ConvTranspose2d(6, 4, 2, stride=2, groups=2, bias=False)  # no overlap: a patch for every input place
    maps = orthoopt.views.parse_view("flatten heads(2) transpose").pieces(layer.weight)[0]
    x = torch.randn(1, 6, 1, 1)
    patches = [group @ part for group, part in zip(maps, x.flatten().split(3), strict=True)]
    # 1e-6: sums of three products in fp32
    torch.testing.assert_close(torch.cat(patches).view(1, 4, 2, 2), layer(x), atol=1e-6, rtol=0)


@pytest.mark.parametrize("plan", ["symmetry", "symmetry_hybrid", "scion", "muon", "row_norm"])
def test_a_head_that_is_a_convolution_trains(plan: str) -> None:
    torch.manual_seed(0)
    model = convnets.SqueezeNet()
    optimizer = orthoopt.OrthoOpt(orthoopt.param_groups(model, plan, lr=1e-3))
    before = model.classifier[1].weight.detach().clone()
    model(torch.randn(2, 3, 16, 16)).logsumexp(-1).sum().backward()
    optimizer.step()
    moved = model.classifier[1].weight.detach() - before
    assert moved.isfinite().all() and moved.norm() > 0
