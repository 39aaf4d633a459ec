"""Roles in vision transformers that no library names: torchvision's and timm's, written from modules."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import vit_kin
import vits
from routing_check import ATTENTION, CONV, HEAD, MATRIX, MLP_IN, MLP_OUT, VECTOR, Expected, check, runs
from torch import nn

from orthoopt.roles import classify

QKV = ("attention", "split(16,16,16)")
TORCHVISION: Expected = {
    r"conv_proj\.weight": CONV,
    r"class_token|encoder\.pos_embedding": VECTOR,
    r"encoder\.layers\.encoder_layer_\d\.self_attention\.in_proj_weight": QKV,
    r"encoder\.layers\.encoder_layer_\d\.self_attention\.out_proj\.weight": ATTENTION,
    r"encoder\.layers\.encoder_layer_\d\.mlp\.0\.weight": MLP_IN,
    r"encoder\.layers\.encoder_layer_\d\.mlp\.3\.weight": MLP_OUT,
    r".*\bln(_\d)?\.weight|.*bias": VECTOR,
    r"heads\.head\.weight": HEAD,
}
TIMM: Expected = {
    r"patch_embed\.proj\.weight": CONV,
    r"\w+_token|pos_embed|blocks\.\d\.ls\d\.gamma": VECTOR,
    r"blocks\.\d\.attn\.qkv\.weight": QKV,
    r"blocks\.\d\.attn\.proj\.weight": ATTENTION,
    r".*norm\d?\.weight|.*bias": VECTOR,
    r"head(_dist)?\.weight": HEAD,
}
MLP: Expected = {r"blocks\.\d\.mlp\.fc1\.weight": MLP_IN, r"blocks\.\d\.mlp\.fc2\.weight": MLP_OUT}
EVA: Expected = {
    r"patch_embed\.proj\.weight": CONV,
    r"pos_embed|blocks\.\d\.gamma_\d": VECTOR,
    r"blocks\.\d\.attn\.proj\.weight": ATTENTION,
    r"blocks\.\d\.mlp\.fc1_[gx]\.weight": MLP_IN,
    r"blocks\.\d\.mlp\.fc2\.weight": MLP_OUT,
    r".*norm\d?\.weight|.*bias": VECTOR,
    r"head\.weight": HEAD,
}
SWIN: Expected = {
    r"patch_embed\.proj\.weight": CONV,
    r"layers\.0\.blocks\.0\.attn\.qkv\.weight": QKV,
    r"layers\.1\.blocks\.0\.attn\.qkv\.weight": ("attention", "split(32,32,32)"),
    r"layers\.\d\.blocks\.0\.attn\.proj\.weight": ATTENTION,
    r"layers\.\d\.blocks\.0\.mlp\.fc1\.weight": MLP_IN,
    r"layers\.\d\.blocks\.0\.mlp\.fc2\.weight": MLP_OUT,
    r"layers\.1\.downsample\.reduction\.weight": MATRIX,
    r".*norm\d?\.weight|.*bias": VECTOR,
    r"head\.fc\.weight": HEAD,
}
NETWORKS: dict[str, tuple[Callable[[], nn.Module], Expected]] = {
    "torchvision": (vits.TorchvisionViT, TORCHVISION),
    "torchvision with a representation": (
        lambda: vits.TorchvisionViT(representation=12),
        {**TORCHVISION, r"heads\.pre_logits\.weight": MATRIX},
    ),
    "timm": (vits.VisionTransformer, {**TIMM, **MLP}),
    "distilled": (lambda: vits.VisionTransformer(distilled=True), {**TIMM, **MLP}),
    "pooled by attention": (
        lambda: vits.VisionTransformer(pooled=True),
        {
            **TIMM,
            **MLP,
            r"attn_pool\.latent": VECTOR,
            r"attn_pool\.(q|proj)\.weight": ATTENTION,
            r"attn_pool\.kv\.weight": ("attention", "split(16,16)"),
            r"attn_pool\.mlp\.fc1\.weight": MLP_IN,
            r"attn_pool\.mlp\.fc2\.weight": MLP_OUT,
        },
    ),
    "GluMlp": (
        lambda: vits.VisionTransformer(vits.GluMlp),
        {
            **TIMM,
            r"blocks\.\d\.mlp\.fc1\.weight": ("mlp_in", "split(20,20)"),
            r"blocks\.\d\.mlp\.fc2\.weight": MLP_OUT,
        },
    ),
    "DINOv2's SwiGLU": (
        lambda: vits.VisionTransformer(vits.SwiGLUFFN),
        {
            **TIMM,
            r"blocks\.\d\.mlp\.w12\.weight": ("mlp_in", "split(40,40)"),
            r"blocks\.\d\.mlp\.w3\.weight": MLP_OUT,
        },
    ),
    "EVA": (lambda: vit_kin.Eva(fused=False), {**EVA, r"blocks\.\d\.attn\.[qkv]_proj\.weight": ATTENTION}),
    "EVA, fused": (lambda: vit_kin.Eva(fused=True), {**EVA, r"blocks\.\d\.attn\.qkv\.weight": QKV}),
    "Swin": (
        lambda: vit_kin.Swin(second=False),
        {r"layers\.\d\.blocks\.0\.attn\.relative_position_bias_table": VECTOR, **SWIN},
    ),
    "Swin V2": (
        lambda: vit_kin.Swin(second=True),
        {
            r"layers\.\d\.blocks\.0\.attn\.logit_scale": VECTOR,
            r"layers\.\d\.blocks\.0\.attn\.cpb_mlp\.0\.weight": MLP_IN,  # 2 coordinates in, 2 heads out
            r"layers\.\d\.blocks\.0\.attn\.cpb_mlp\.2\.weight": MLP_OUT,
            **SWIN,
        },
    ),
    "Mixer": (
        vit_kin.MlpMixer,
        {
            r"stem\.proj\.weight": CONV,
            r"blocks\.\d\.mlp_(tokens|channels)\.fc1\.weight": MLP_IN,
            r"blocks\.\d\.mlp_(tokens|channels)\.fc2\.weight": MLP_OUT,
            r".*norm\d?\.weight|.*bias": VECTOR,
            r"head\.weight": HEAD,
        },
    ),
    "ConvNeXt": (
        vit_kin.TimmConvNeXt,
        {
            r"stem\.0\.weight": CONV,
            r"stages\.0\.blocks\.\d\.(conv_dw\.weight|gamma)": VECTOR,
            r"stages\.0\.blocks\.\d\.mlp\.fc1\.weight": MLP_IN,
            r"stages\.0\.blocks\.\d\.mlp\.fc2\.weight": MLP_OUT,
            r".*norm\.weight|.*bias": VECTOR,
            r"head\.fc\.weight": HEAD,
        },
    ),
}


@pytest.mark.parametrize("which", NETWORKS)
def test_every_layer_of_a_vision_transformer(which: str) -> None:
    build, expected = NETWORKS[which]
    with torch.device("meta"):
        model = build()
    assert runs(model, (2, 3, 16, 16)).shape == (2, 10)
    check(model, expected)


@pytest.mark.parametrize(
    ("which", "name", "view"),
    [
        ("torchvision", "encoder.layers.encoder_layer_0.self_attention.in_proj_weight", "split(16,16,16) head_size(8)"),
        ("torchvision", "encoder.layers.encoder_layer_0.self_attention.out_proj.weight", "heads_in(2)"),
        ("timm", "blocks.0.attn.qkv.weight", "split(16,16,16) head_size(8)"),
        ("timm", "blocks.0.attn.proj.weight", "heads_in(2)"),
        ("EVA", "blocks.0.attn.q_proj.weight", "heads(2)"),
        ("pooled by attention", "attn_pool.kv.weight", "split(16,16) head_size(8)"),
    ],
)
def test_head_by_head(which: str, name: str, view: str) -> None:
    with torch.device("meta"):
        model = NETWORKS[which][0]()
    layout = next(c.per_head for c in classify(model) if c.name == name)
    assert layout is not None and layout[0] == view
