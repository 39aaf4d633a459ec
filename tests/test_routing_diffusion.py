"""Roles in diffusion networks: diffusers' own, built small, and others written from modules as in their repositories.

Their outputs are noise, velocities or pictures, never logits: what ends them is a hidden layer or a kernel, no head.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import denoisers
import pytest
import torch
from routing_check import ATTENTION, CONV, MATRIX, MLP_IN, MLP_OUT, VECTOR, Expected, check, runs
from torch import nn

import orthoopt
from orthoopt.roles import classify, roles
from orthoopt.views import parse_view


def blocks(count: int, size: int = 16) -> tuple[str, str]:
    return "hidden", f"split({','.join([str(size)] * count)})"


# What the networks share: not every one has all of it.
COMMON: Expected = {
    r".*(time_embedding|timestep_embedder|guidance_embedder|text_embedder)\.linear_[12]\.weight": MATRIX,
    r".*attn\d?\.(to_[qkv]|to_out\.0|add_[qkv]_proj|to_add_out)\.weight": ATTENTION,
    r".*attentions\.\d\.(to_[qkv]|to_out\.0)\.weight": ATTENTION,
    r".*ff(n|_context)?\.net\.0\.proj\.weight": MLP_IN,
    r".*ff(n|_context)?\.net\.2\.weight": MLP_OUT,
    r"(.*\.)?(conv|conv[12]|conv_shortcut|conv_in|conv_out)\.weight": CONV,
    r".*attentions\.\d\.proj_(in|out)\.weight": CONV,
    r"(.*[._])?norm(\d|_\w+)?\.weight|.*\.bias": VECTOR,
}
SMALL: dict[str, Any] = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 1}
UNET: dict[str, Any] = {"sample_size": 8, "layers_per_block": 1, "norm_num_groups": 4, "attention_head_dim": 4}
DIFFUSERS: dict[str, tuple[str, dict[str, Any], Expected]] = {
    "U-Net of pictures": (
        "UNet2DModel",
        {
            **UNET,
            "block_out_channels": (8, 16),
            "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
            "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
            "num_class_embeds": 5,
        },
        {
            r"class_embedding\.weight": ("embedding", "matrix"),
            r".*time_emb_proj\.weight": MATRIX,
        },
    ),
    "U-Net that time scales and shifts": (
        "UNet2DModel",
        {
            **UNET,
            "block_out_channels": (8,),
            "down_block_types": ("DownBlock2D",),
            "up_block_types": ("UpBlock2D",),
            "resnet_time_scale_shift": "scale_shift",
        },
        {
            r".*time_emb_proj\.weight": blocks(2, 8),
        },
    ),
    "U-Net of latents, with text": (
        "UNet2DConditionModel",
        {
            **UNET,
            "block_out_channels": (8, 16),
            "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
            "cross_attention_dim": 12,
        },
        {
            r".*time_emb_proj\.weight": MATRIX,
            r"mid_block.*ff\.net\.0\.proj\.weight": ("mlp_in", "split(64,64)"),  # GEGLU: value, then gate
            r".*ff\.net\.0\.proj\.weight": ("mlp_in", "split(32,32)"),
        },
    ),
    "DiT": (
        "DiTTransformer2DModel",
        {**SMALL, "sample_size": 8, "norm_num_groups": 4, "num_embeds_ada_norm": 10},
        {
            r"pos_embed\.proj\.weight": CONV,
            r".*class_embedder\.embedding_table\.weight": ("embedding", "matrix"),
            r"transformer_blocks\.0\.norm1\.linear\.weight": blocks(6),
            r"proj_out_1\.weight": blocks(2),
            r"proj_out_2\.weight": MATRIX,
        },
    ),
    "PixArt": (
        "PixArtTransformer2DModel",
        {**SMALL, "sample_size": 8, "norm_num_groups": 4, "cross_attention_dim": 16, "caption_channels": 12},
        {
            r"pos_embed\.proj\.weight": CONV,
            r"(transformer_blocks\.0\.)?scale_shift_table": VECTOR,
            r"adaln_single\.linear\.weight": blocks(6),
            r"caption_projection\.linear_[12]\.weight": MATRIX,
            r"proj_out\.weight": MATRIX,
        },
    ),
    "Stable Diffusion 3": (
        "SD3Transformer2DModel",
        {
            **SMALL,
            **{"sample_size": 8, "in_channels": 4, "out_channels": 4, "num_layers": 2, "pos_embed_max_size": 8},
            **{"joint_attention_dim": 12, "caption_projection_dim": 16, "pooled_projection_dim": 20},
        },
        {
            r"pos_embed\.proj\.weight": CONV,
            r"context_embedder\.weight": MATRIX,
            r"transformer_blocks\.1\.norm1_context\.linear\.weight": blocks(2),  # the last: text is left there
            r"transformer_blocks\.\d\.norm1(_context)?\.linear\.weight": blocks(6),
            r"norm_out\.linear\.weight": blocks(2),
            r"proj_out\.weight": MATRIX,
        },
    ),
    "Flux": (
        "FluxTransformer2DModel",
        {
            **SMALL,
            **{"in_channels": 4, "num_single_layers": 1, "guidance_embeds": True, "axes_dims_rope": (2, 2, 4)},
            **{"joint_attention_dim": 12, "pooled_projection_dim": 20},
        },
        {
            r"(context|x)_embedder\.weight": MATRIX,
            r"transformer_blocks\.0\.norm1(_context)?\.linear\.weight": blocks(6),
            r"single_transformer_blocks\.0\.norm\.linear\.weight": blocks(3),
            r"single_transformer_blocks\.0\.proj_mlp\.weight": MLP_IN,
            # reads the attention's output and the mlp's, side by side
            r"single_transformer_blocks\.0\.proj_out\.weight": ("hidden", "transpose split(16,64) transpose"),
            r"norm_out\.linear\.weight": blocks(2),
            r"proj_out\.weight": MATRIX,
        },
    ),
    "Flux 2": (
        "Flux2Transformer2DModel",
        {
            **SMALL,
            **{"in_channels": 4, "num_single_layers": 1, "axes_dims_rope": (2, 2, 2, 2), "joint_attention_dim": 12},
            "timestep_guidance_channels": 10,
        },
        {
            r"(context|x)_embedder\.weight": MATRIX,
            r"double_stream_modulation_(img|txt)\.linear\.weight": blocks(6),
            r"single_stream_modulation\.linear\.weight": blocks(3),
            r"transformer_blocks\.0\.ff(_context)?\.linear_in\.weight": ("mlp_in", "split(48,48)"),
            r"transformer_blocks\.0\.ff(_context)?\.linear_out\.weight": MLP_OUT,
            r"single_transformer_blocks\.0\.attn\.to_qkv_mlp_proj\.weight": ("hidden", "split(16,16,16,48,48)"),
            r"single_transformer_blocks\.0\.attn\.to_out\.weight": ("hidden", "transpose split(16,48) transpose"),
            r"norm_out\.linear\.weight": blocks(2),
            r"proj_out\.weight": MATRIX,
        },
    ),
    "Wan": (
        "WanTransformer3DModel",
        {**SMALL, "in_channels": 4, "out_channels": 4, "text_dim": 12, "freq_dim": 10, "ffn_dim": 24},
        {
            r"patch_embedding\.weight": CONV,
            r"(blocks\.0\.)?scale_shift_table": VECTOR,
            r"condition_embedder\.time_embedder\.linear_[12]\.weight": MATRIX,
            r"condition_embedder\.time_proj\.weight": blocks(6),
            r"proj_out\.weight": MATRIX,
        },
    ),
    "Sana": (
        "SanaTransformer2DModel",
        {
            **SMALL,
            **{"in_channels": 4, "out_channels": 4, "sample_size": 8, "caption_channels": 12},
            **{"num_cross_attention_heads": 2, "cross_attention_head_dim": 8, "cross_attention_dim": 16},
        },
        {
            r"patch_embed\.proj\.weight|transformer_blocks\.0\.ff\.conv_(inverted|point)\.weight": CONV,
            r"transformer_blocks\.0\.ff\.conv_depth\.weight": VECTOR,
            r"(transformer_blocks\.0\.)?scale_shift_table": VECTOR,
            r"time_embed\.linear\.weight": blocks(6),
            r"caption_projection\.linear_[12]\.weight": MATRIX,
            r"proj_out\.weight": MATRIX,
        },
    ),
    "CogVideoX": (
        "CogVideoXTransformer3DModel",
        {
            **SMALL,
            **{"in_channels": 4, "out_channels": 4, "text_embed_dim": 12, "max_text_seq_length": 4},
            **{"sample_width": 8, "sample_height": 8, "sample_frames": 5, "time_embed_dim": 6},
        },
        {
            r"patch_embed\.proj\.weight": CONV,
            r"patch_embed\.text_proj\.weight": MATRIX,
            r"transformer_blocks\.0\.norm[12]\.linear\.weight": blocks(6),  # 6 features of time to 6 blocks of 16
            r"norm_out\.linear\.weight": blocks(2),
            r"proj_out\.weight": MATRIX,
        },
    ),
    "VAE": (
        "AutoencoderKL",
        {
            "block_out_channels": (8, 16),
            "down_block_types": ("DownEncoderBlock2D",) * 2,
            "up_block_types": ("UpDecoderBlock2D",) * 2,
            "norm_num_groups": 4,
        },
        {
            r"(post_)?quant_conv\.weight": CONV,
        },
    ),
}


def diffusers_model(name: str, config: dict[str, Any]) -> nn.Module:
    import diffusers

    with torch.device("meta"):
        return getattr(diffusers, name)(**config)


@pytest.mark.parametrize("which", DIFFUSERS)
def test_every_layer_of_a_diffusers_network(which: str) -> None:
    name, config, expected = DIFFUSERS[which]
    check(diffusers_model(name, config), expected, COMMON)


def test_heads_of_diffusers_attentions_are_their_own_not_the_configs() -> None:
    model = diffusers_model(*DIFFUSERS["U-Net of pictures"][:2])
    views = {c.name: c.per_head for c in classify(model)}
    layout = views["mid_block.attentions.0.to_q.weight"]
    assert layout is not None and layout[0] == "heads(4)"  # 16 channels in heads of 4


DIT: Expected = {
    r"x_embedder\.proj\.weight": CONV,
    r"t_embedder\.mlp\.[02]\.weight": MATRIX,
    r"blocks\.\d\.attn\.qkv\.weight": ("attention", "split(16,16,16)"),
    r"blocks\.\d\.attn\.proj\.weight": ATTENTION,
    r"blocks\.\d\.mlp\.fc1\.weight": MLP_IN,
    r"blocks\.\d\.mlp\.fc2\.weight": MLP_OUT,
    r"blocks\.\d\.adaLN_modulation\.1\.weight": blocks(6),
    r"final_layer\.adaLN_modulation\.1\.weight": blocks(2),
    r"final_layer\.linear\.weight": MATRIX,
    r".*\.bias": VECTOR,
}


def guided(qkv: str, emb: Expected) -> Expected:
    return {
        r"time_embed\.[02]\.weight": MATRIX,
        r".*\.qkv\.weight": ("conv", qkv),
        **emb,
        r"input_blocks\.0\.0\.weight|out\.2\.weight": CONV,
        r".*(in_layers\.2|out_layers\.3|skip_connection|proj_out)\.weight": CONV,
        r".*(norm|in_layers\.0|out_layers\.0|out\.0)\.weight|.*\.bias": VECTOR,
    }


PLAIN: dict[str, tuple[Callable[[], nn.Module], list[tuple[int, ...]], Expected]] = {
    "DiT": (
        denoisers.DiT,
        [(2, 4, 16, 16), (2, 20)],
        {**DIT, r"y_embedder\.embedding_table\.weight": ("embedding", "matrix")},
    ),
    "DiT without classes": (lambda: denoisers.DiT(classes=None), [(2, 4, 16, 16), (2, 20)], DIT),
    "guided diffusion, heads side by side": (
        lambda: denoisers.UNetModel(use_scale_shift_norm=False, new_order=False),
        [(2, 3, 8, 8), (2, 8)],
        guided("flatten heads(2) split(8,8,8) join", {r".*emb_layers\.1\.weight": MATRIX}),
    ),
    "guided diffusion, new order": (
        lambda: denoisers.UNetModel(use_scale_shift_norm=True, new_order=True, classes=7),
        [(2, 3, 8, 8), (2, 8)],
        {
            r"label_emb\.weight": ("embedding", "matrix"),
            r"output_blocks\..*emb_layers\.1\.weight": blocks(2, 8),
            r"(input_blocks\.1|middle_block)\.0\.emb_layers\.1\.weight": blocks(2),
            **guided("flatten split(16,16,16)", {}),
        },
    ),
    "lucidrains' attention": (
        lambda: denoisers.LinearAttention(6),
        [(2, 6, 4, 4)],
        {
            r"to_qkv\.weight": ("conv", "flatten split(8,8,8)"),
            r"to_out\.0\.weight": CONV,
            r"to_out\.(1\.weight|\d\.bias)": VECTOR,
        },
    ),
    "Wan": (
        denoisers.Wan,
        [(2, 4, 4, 4, 4), (2, 20)],
        {
            r"patch_embedding\.weight": CONV,
            r"time_embedding\.[02]\.weight": MATRIX,
            r"time_projection\.1\.weight": blocks(6),
            r"blocks\.0\.ffn\.0\.weight": MLP_IN,
            r"blocks\.0\.ffn\.2\.weight": MLP_OUT,
            r"(blocks\.0|head)\.modulation": VECTOR,
            r"head\.head\.weight": MATRIX,
            r".*\.bias": VECTOR,
        },
    ),
    "flux": (
        denoisers.Flux,
        [(2, 5, 12), (2, 20)],
        {
            r"img_in\.weight|time_in\.(in|out)_layer\.weight|final_layer\.linear\.weight": MATRIX,
            r"single_blocks\.0\.linear1\.weight": ("hidden", "split(16,16,16,64)"),
            r"single_blocks\.0\.linear2\.weight": ("hidden", "transpose split(16,64) transpose"),
            r"single_blocks\.0\.modulation\.lin\.weight": blocks(3),
            r"final_layer\.adaLN_modulation\.1\.weight": blocks(2),
            r".*\.bias": VECTOR,
        },
    ),
}


@pytest.mark.parametrize("which", PLAIN)
def test_every_layer_of_a_network_written_from_modules(which: str) -> None:
    build, inputs, expected = PLAIN[which]
    with torch.device("meta"):
        model = build()
    runs(model, *inputs)
    check(model, expected)


def test_blocks_of_columns_are_the_maps_of_what_is_concatenated() -> None:
    torch.manual_seed(0)
    layer = denoisers.SingleStreamBlock(4, 2).linear2
    attention, mlp = torch.randn(3, 4), torch.randn(3, 16)
    from_attention, from_mlp = parse_view("transpose split(4,16) transpose").pieces(layer.weight)
    together = attention @ from_attention.T + mlp @ from_mlp.T + layer.bias
    # 1e-6: sums of 20 products in fp32
    torch.testing.assert_close(together, layer(torch.cat([attention, mlp], -1)), atol=1e-6, rtol=0)


@pytest.mark.parametrize("which", ["DiT", "flux", "guided diffusion, heads side by side"])
def test_fused_layers_of_denoisers_train(which: str) -> None:
    build, inputs, _ = PLAIN[which]
    torch.manual_seed(0)
    model = build()
    before = {name: param.detach().clone() for name, param in model.named_parameters()}
    optimizer = orthoopt.Symmetry(model, lr=1e-2, weight_decay=0.0)
    model(*(torch.randn(shape) for shape in inputs)).square().mean().backward()
    optimizer.step()
    trained = {name: param for name, param in model.named_parameters() if param.grad is not None and param.grad.any()}
    assert all(param.isfinite().all() and not torch.equal(param, before[name]) for name, param in trained.items())
    fused = {e.name for e in roles(model) if "split" in e.view}
    assert fused & set(trained)


def test_a_denoiser_of_tokens_does_have_a_head() -> None:
    model = nn.ModuleDict(
        {
            "tokens": nn.Embedding(40, 16),
            "time_embedding": nn.Sequential(nn.Linear(8, 16), nn.SiLU(), nn.Linear(16, 16)),
            "conv": nn.Conv1d(16, 16, 3),
            "readout": nn.Linear(16, 40),
        }
    )
    assert {e.name: e.role for e in roles(model)}["readout.weight"] == "lm_head"


def test_an_mlp_inside_something_called_a_modulation_is_not_cut() -> None:
    mlp = nn.ModuleDict({"fc1": nn.Linear(8, 32), "fc2": nn.Linear(32, 8)})
    found = {e.name: (e.role, e.view) for e in roles(nn.ModuleDict({"modulation": nn.ModuleDict({"mlp": mlp})}))}
    assert (found["modulation.mlp.fc1.weight"], found["modulation.mlp.fc2.weight"]) == (MLP_IN, MLP_OUT)
    found = {e.name: (e.role, e.view) for e in roles(nn.ModuleDict({"modulation": mlp}))}
    assert (found["modulation.fc1.weight"], found["modulation.fc2.weight"]) == (MLP_IN, MLP_OUT)
