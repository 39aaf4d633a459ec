"""Convolutional networks built as torchvision builds them: the same modules under the same names, small."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class BasicBlock(nn.Module):
    """ResNet's block of two 3x3 convolutions."""

    expansion = 1

    def __init__(self, inplanes: int, planes: int, stride: int, groups: int = 1, base_width: int = 64) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inplanes, planes, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.downsample = _downsample(inplanes, planes, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        return (out + (x if self.downsample is None else self.downsample(x))).relu()


class Bottleneck(nn.Module):
    """ResNet's block of 1x1, 3x3 (in groups for ResNeXt), 1x1."""

    expansion = 4

    def __init__(self, inplanes: int, planes: int, stride: int, groups: int = 1, base_width: int = 64) -> None:
        super().__init__()
        width = int(planes * base_width / 64) * groups
        self.conv1 = nn.Conv2d(inplanes, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, groups=groups, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, planes * 4, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(planes * 4)
        self.downsample = _downsample(inplanes, planes * 4, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu())).relu()
        return (self.bn3(self.conv3(out)) + (x if self.downsample is None else self.downsample(x))).relu()


def _downsample(inplanes: int, planes: int, stride: int) -> nn.Sequential | None:
    if stride == 1 and inplanes == planes:
        return None
    return nn.Sequential(nn.Conv2d(inplanes, planes, 1, stride, bias=False), nn.BatchNorm2d(planes))


class ResNet(nn.Module):
    """Stem, two stages, ``fc``."""

    def __init__(self, block: type[BasicBlock | Bottleneck], groups: int = 1, base_width: int = 64) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        inplanes = 8
        for number, planes in ((1, 8), (2, 16)):
            blocks = []
            for stride in (number, 1):
                blocks.append(block(inplanes, planes, stride, groups, base_width))
                inplanes = planes * block.expansion
            setattr(self, f"layer{number}", nn.Sequential(*blocks))
        self.fc = nn.Linear(inplanes, 10)

    def forward(self, images: Tensor) -> Tensor:
        x = self.layer2(self.layer1(self.bn1(self.conv1(images)).relu()))
        return self.fc(x.mean((-2, -1)))


class _DenseLayer(nn.Module):
    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, 4 * growth, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(4 * growth)
        self.conv2 = nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        new = self.conv2(self.norm2(self.conv1(self.norm1(x).relu())).relu())
        return torch.cat([x, new], 1)


class DenseNet(nn.Module):
    """One dense block and a transition, ``classifier``."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential()
        self.features.add_module("conv0", nn.Conv2d(3, 8, 7, 2, 3, bias=False))
        self.features.add_module("norm0", nn.BatchNorm2d(8))
        block = nn.Sequential()
        block.add_module("denselayer1", _DenseLayer(8, 4))
        block.add_module("denselayer2", _DenseLayer(12, 4))
        self.features.add_module("denseblock1", block)
        transition = nn.Sequential()
        transition.add_module("norm", nn.BatchNorm2d(16))
        transition.add_module("conv", nn.Conv2d(16, 8, 1, bias=False))
        self.features.add_module("transition1", transition)
        self.features.add_module("norm5", nn.BatchNorm2d(8))
        self.classifier = nn.Linear(8, 10)

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.features(images).relu().mean((-2, -1)))


class Conv2dNormActivation(nn.Sequential):
    """Convolution, norm, activation."""

    def __init__(self, inputs: int, outputs: int, size: int = 3, stride: int = 1, groups: int = 1) -> None:
        conv = nn.Conv2d(inputs, outputs, size, stride, (size - 1) // 2, groups=groups, bias=False)
        super().__init__(conv, nn.BatchNorm2d(outputs), nn.SiLU())


class SqueezeExcitation(nn.Module):
    """Channels gated by two 1x1 convolutions of their averages."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, squeezed, 1)
        self.fc2 = nn.Conv2d(squeezed, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.fc2(self.fc1(x.mean((-2, -1), keepdim=True)).relu()).sigmoid()


class InvertedResidual(nn.Module):
    """Expand, depthwise, squeeze and excite, project; MobileNetV2 calls it ``conv``, MobileNetV3 ``block``."""

    def __init__(self, channels: int, squeeze: bool, name: str) -> None:
        super().__init__()
        wide = 4 * channels
        layers: list[nn.Module] = [
            Conv2dNormActivation(channels, wide, 1),
            Conv2dNormActivation(wide, wide, 3, groups=wide),
        ]
        if squeeze:
            layers.append(SqueezeExcitation(wide, 8))
        layers += [nn.Conv2d(wide, channels, 1, bias=False), nn.BatchNorm2d(channels)]
        self.add_module(name, nn.Sequential(*layers))

    def forward(self, x: Tensor) -> Tensor:
        (body,) = self.children()
        return x + body(x)


class MobileNet(nn.Module):
    """V2 (``classifier.1``) and V3 (``classifier.0`` and ``.3``); EfficientNet is V2 with squeezes here."""

    def __init__(self, squeeze: bool, name: str, deep_classifier: bool) -> None:
        super().__init__()
        body = [Conv2dNormActivation(3, 8, stride=2), *(InvertedResidual(8, squeeze, name) for _ in range(2))]
        self.features = nn.Sequential(*body, Conv2dNormActivation(8, 16, 1))
        if deep_classifier:
            self.classifier = nn.Sequential(nn.Linear(16, 24), nn.Hardswish(), nn.Dropout(0.2), nn.Linear(24, 10))
        else:
            self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(16, 10))

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.features(images).mean((-2, -1)))


class LayerNorm2d(nn.LayerNorm):
    """Over the channels of (batch, channels, height, width)."""

    def forward(self, x: Tensor) -> Tensor:
        x = F.layer_norm(x.permute(0, 2, 3, 1), self.normalized_shape, self.weight, self.bias, self.eps)
        return x.permute(0, 3, 1, 2)


class Permute(nn.Module):
    """Dimensions in another order."""

    def __init__(self, dims: list[int]) -> None:
        super().__init__()
        self.dims = dims

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(self.dims)


class CNBlock(nn.Module):
    """ConvNeXt's block: a depthwise convolution, then an mlp over channels, scaled by channel."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.block = nn.Sequential(
            nn.Conv2d(dim, dim, 7, padding=3, groups=dim),
            Permute([0, 2, 3, 1]),
            nn.LayerNorm(dim),
            nn.Linear(dim, 4 * dim),
            nn.GELU(),
            nn.Linear(4 * dim, dim),
            Permute([0, 3, 1, 2]),
        )
        self.layer_scale = nn.Parameter(torch.ones(dim, 1, 1) * 1e-6)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layer_scale * self.block(x)


class ConvNeXt(nn.Module):
    """Stem, two stages with downsampling between, ``classifier.2``."""

    def __init__(self) -> None:
        super().__init__()
        norm = partial(LayerNorm2d, eps=1e-6)
        self.features = nn.Sequential(
            nn.Sequential(nn.Conv2d(3, 8, 4, 4), norm(8)),
            nn.Sequential(CNBlock(8), CNBlock(8)),
            nn.Sequential(norm(8), nn.Conv2d(8, 16, 2, 2)),
            nn.Sequential(CNBlock(16)),
        )
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(norm(16), nn.Flatten(1), nn.Linear(16, 10))

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.avgpool(self.features(images)))


class VGG(nn.Module):
    """Convolutions, then ``classifier.0``, ``.3``, ``.6``."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
        )
        self.avgpool = nn.AdaptiveAvgPool2d(2)
        self.classifier = nn.Sequential(
            *(nn.Linear(32, 24), nn.ReLU(), nn.Dropout(), nn.Linear(24, 20), nn.ReLU(), nn.Dropout()), nn.Linear(20, 10)
        )

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.avgpool(self.features(images)).flatten(1))


class Fire(nn.Module):
    """Squeeze to few channels, expand by 1x1 and 3x3."""

    def __init__(self, inputs: int, squeezed: int, expanded: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(inputs, squeezed, 1)
        self.expand1x1 = nn.Conv2d(squeezed, expanded, 1)
        self.expand3x3 = nn.Conv2d(squeezed, expanded, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.squeeze(x).relu()
        return torch.cat([self.expand1x1(x).relu(), self.expand3x3(x).relu()], 1)


class SqueezeNet(nn.Module):
    """No Linear: a 1x1 convolution gives the logits, averaged over the places."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU(), Fire(8, 4, 6), Fire(12, 4, 6))
        self.classifier = nn.Sequential(
            nn.Dropout(), nn.Conv2d(12, 10, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(1)
        )

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.features(images))


class FCN(nn.Module):
    """Segmentation: a hidden convolution, then one that gives logits for every pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU())
        self.classifier = nn.Sequential(
            nn.Conv2d(8, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(0.1), nn.Conv2d(6, 5, 1)
        )

    def forward(self, images: Tensor) -> Tensor:
        return F.interpolate(self.classifier(self.backbone(images)), size=images.shape[-2:])


class BasicConv2d(nn.Module):
    """Inception's convolution and norm."""

    def __init__(self, inputs: int, outputs: int, size: tuple[int, int]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, size, padding=(size[0] // 2, size[1] // 2), bias=False)
        self.bn = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x)).relu()


class Inception(nn.Module):
    """Branches with kernels of many shapes, side by side; ``fc``."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = BasicConv2d(3, 8, (3, 3))
        self.branch1x1 = BasicConv2d(8, 4, (1, 1))
        self.branch7x7_2 = BasicConv2d(8, 4, (1, 7))
        self.branch7x7_3 = BasicConv2d(4, 4, (7, 1))
        self.fc = nn.Linear(8, 10)

    def forward(self, images: Tensor) -> Tensor:
        x = self.Conv2d_1a_3x3(images)
        x = torch.cat([self.branch1x1(x), self.branch7x7_3(self.branch7x7_2(x))], 1)
        return self.fc(x.mean((-2, -1)))
