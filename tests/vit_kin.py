"""Kin of vision transformers as timm builds them: EVA, Swin, Mixer, ConvNeXt."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from vits import DIM, HEADS, PLACES, Mlp, PatchEmbed, SwiGLU


class EvaAttention(nn.Module):
    """timm's EVA: q, k, v apart with a bias on q and v, or fused with the biases apart."""

    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.num_heads = HEADS
        if fused:
            self.qkv = nn.Linear(DIM, 3 * DIM, bias=False)
            self.q_bias = nn.Parameter(torch.zeros(DIM))
            self.register_buffer("k_bias", torch.zeros(DIM), persistent=False)
            self.v_bias = nn.Parameter(torch.zeros(DIM))
        else:
            self.q_proj = nn.Linear(DIM, DIM)
            self.k_proj = nn.Linear(DIM, DIM, bias=False)
            self.v_proj = nn.Linear(DIM, DIM)
            self.qkv = None
        self.norm = nn.LayerNorm(DIM)
        self.proj = nn.Linear(DIM, DIM)

    def forward(self, x: Tensor) -> Tensor:
        if self.qkv is None:
            parts = [self.q_proj(x), self.k_proj(x), self.v_proj(x)]
        else:
            fused = F.linear(x, self.qkv.weight, torch.cat([self.q_bias, self.k_bias, self.v_bias]))
            parts = list(fused.split(DIM, -1))
        q, k, v = (part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in parts)
        return self.proj(self.norm(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)))


class Eva(nn.Module):
    """timm's EVA-02: gains ``gamma_1`` and ``gamma_2`` belong to the block."""

    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed()
        self.pos_embed = nn.Parameter(torch.zeros(1, PLACES, DIM))
        self.blocks = nn.ModuleList(EvaBlock(fused) for _ in range(2))
        self.fc_norm = nn.LayerNorm(DIM)
        self.head = nn.Linear(DIM, 10)

    def forward(self, images: Tensor) -> Tensor:
        x = self.patch_embed(images) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return self.head(self.fc_norm(x.mean(1)))


class EvaBlock(nn.Module):
    """One layer."""

    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(DIM)
        self.attn = EvaAttention(fused)
        self.gamma_1 = nn.Parameter(torch.ones(DIM))
        self.norm2 = nn.LayerNorm(DIM)
        self.mlp = SwiGLU(DIM, 40)
        self.gamma_2 = nn.Parameter(torch.ones(DIM))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.gamma_1 * self.attn(self.norm1(x))
        return x + self.gamma_2 * self.mlp(self.norm2(x))


class WindowAttention(nn.Module):
    """Swin's, over one window: V1 adds a table of relative positions, V2 an mlp of them and a learned temperature."""

    def __init__(self, dim: int, second: bool) -> None:
        super().__init__()
        self.num_heads = HEADS
        if second:
            self.logit_scale = nn.Parameter(torch.ones(HEADS, 1, 1))
            self.cpb_mlp = nn.Sequential(nn.Linear(2, 20), nn.ReLU(), nn.Linear(20, HEADS, bias=False))
            self.qkv = nn.Linear(dim, dim * 3, bias=False)
            self.q_bias = nn.Parameter(torch.zeros(dim))
            self.v_bias = nn.Parameter(torch.zeros(dim))
        else:
            self.relative_position_bias_table = nn.Parameter(torch.zeros(49, HEADS))
            self.qkv = nn.Linear(dim, dim * 3)
        self.second = second
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        n = x.shape[1]
        if self.second:
            bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
            fused = F.linear(x, self.qkv.weight, bias)
            bias = self.cpb_mlp(torch.empty(n, n, 2, device=x.device)).permute(2, 0, 1)
        else:
            fused = self.qkv(x)
            bias = self.relative_position_bias_table[:1].mT[:, :, None].expand(-1, n, n)
        q, k, v = fused.unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        scores = q @ k.mT * (self.logit_scale.exp() if self.second else 1.0) + bias
        return self.proj((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))


class SwinTransformerBlock(nn.Module):
    """One layer."""

    def __init__(self, dim: int, second: bool) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = WindowAttention(dim, second)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, 40)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class PatchMerging(nn.Module):
    """Four neighbours become one place of twice the width."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim)
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.reduction(self.norm(x.unflatten(1, (-1, 4)).flatten(2)))


class SwinStage(nn.Module):
    """Merging, then blocks."""

    def __init__(self, dim: int, downsample: bool, second: bool) -> None:
        super().__init__()
        self.downsample = PatchMerging(dim) if downsample else nn.Identity()
        self.blocks = nn.Sequential(SwinTransformerBlock(2 * dim if downsample else dim, second))

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(self.downsample(x))


class ClassifierHead(nn.Module):
    """timm's pooling and ``fc``."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.fc = nn.Linear(inputs, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.mean(1))


class Swin(nn.Module):
    """timm's Swin: ``layers.N.blocks.N``, ``head.fc``."""

    def __init__(self, second: bool) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed()
        self.layers = nn.Sequential(SwinStage(DIM, False, second), SwinStage(DIM, True, second))
        self.norm = nn.LayerNorm(2 * DIM)
        self.head = ClassifierHead(2 * DIM)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.norm(self.layers(self.patch_embed(images))))


class MixerBlock(nn.Module):
    """An mlp over places, an mlp over channels."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(DIM)
        self.mlp_tokens = Mlp(PLACES, 24)
        self.norm2 = nn.LayerNorm(DIM)
        self.mlp_channels = Mlp(DIM, 40)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.mlp_tokens(self.norm1(x).mT).mT
        return x + self.mlp_channels(self.norm2(x))


class MlpMixer(nn.Module):
    """timm's mixer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = PatchEmbed()
        self.blocks = nn.Sequential(MixerBlock(), MixerBlock())
        self.norm = nn.LayerNorm(DIM)
        self.head = nn.Linear(DIM, 10)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.stem(images))).mean(1))


class ConvNeXtBlock(nn.Module):
    """timm's: ``conv_dw``, an mlp, ``gamma``."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv_dw = nn.Conv2d(dim, dim, 7, padding=3, groups=dim)
        self.norm = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, 4 * dim)
        self.gamma = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        y = self.mlp(self.norm(self.conv_dw(x).permute(0, 2, 3, 1)))
        return x + (y * self.gamma).permute(0, 3, 1, 2)


class ConvNeXtStage(nn.Module):
    """Blocks below a name of their own."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.blocks = nn.Sequential(ConvNeXtBlock(dim), ConvNeXtBlock(dim))

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(x)


class TimmConvNeXt(nn.Module):
    """timm's ConvNeXt: ``stem.0``, ``stages.N.blocks.N``, ``head.fc``."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 4, 4))
        self.stages = nn.Sequential(ConvNeXtStage(8))
        self.head = ClassifierHead(8)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.stages(self.stem(images)).flatten(2).mT)
