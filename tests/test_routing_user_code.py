"""Roles in language models that people write by hand, in the styles of well-known code bases."""

from __future__ import annotations

from collections.abc import Callable

import mamba_code
import pytest
import titan_code
import torch
import user_code
import x_code
from routing_check import ATTENTION, MATRIX, MLP_IN, MLP_OUT, VECTOR, Expected, check
from torch import nn

from orthoopt.roles import classify

EMBEDDING = ("embedding", "matrix")
TIED = ("tied_embedding", "matrix")
HEAD = ("lm_head", "matrix")
NORMS_AND_BIASES: Expected = {r".*(norm|ln)\w*\.weight|.*norms?\.\d\.weight|.*bias": VECTOR}
NANO: Expected = {
    r"transformer\.wpe\.weight": VECTOR,
    r"transformer\.h\.\d\.attn\.c_attn\.weight": ("attention", "split(16,16,16)"),
    r"transformer\.h\.\d\.attn\.c_proj\.weight": ATTENTION,
    r"transformer\.h\.\d\.mlp\.c_fc\.weight": MLP_IN,
    r"transformer\.h\.\d\.mlp\.c_proj\.weight": MLP_OUT,
    **NORMS_AND_BIASES,
}
LIT: Expected = {
    r"transformer\.wte\.weight": EMBEDDING,
    r"lm_head\.weight": HEAD,
    r"transformer\.h\.\d\.attn\.proj\.weight": ATTENTION,
    **NORMS_AND_BIASES,
}
LIT_QKV: Expected = {r"transformer\.h\.\d\.attn\.qkv\.weight": ("attention", "split(24,12,12)")}
LIT_GATED: Expected = {
    r"transformer\.h\.\d\.mlp\.fc_[12]\.weight": MLP_IN,
    r"transformer\.h\.\d\.mlp\.proj\.weight": MLP_OUT,
}
TITAN: Expected = {
    r"tok_embeddings\.weight": EMBEDDING,
    r"output\.weight": HEAD,
    r"layers\.\d\.attention\.wo\.weight": ATTENTION,
    **NORMS_AND_BIASES,
}
TITAN_QKV: Expected = {r"layers\.\d\.attention\.w[qkv]\.weight": ATTENTION}
GATED: Expected = {
    r"layers\.\d\.feed_forward\.w[13]\.weight": MLP_IN,
    r"layers\.\d\.feed_forward\.w2\.weight": MLP_OUT,
}
X: Expected = {
    r"token_emb\.emb\.weight": EMBEDDING,
    r"pos_emb\.emb\.weight|memory_tokens": VECTOR,
    r"attn_layers\.layers\.0\.1\.to_(q|k|v|out)\.weight": ATTENTION,
    r"attn_layers\.layers\.1\.1\.ff\.2\.weight": MLP_OUT,
    r"attn_layers\.(layers\.\d\.0\.0|final_norm)\.weight": VECTOR,
    r"to_logits\.weight": HEAD,
    r".*bias": VECTOR,
}
MAMBA: Expected = {
    r"backbone\.embedding\.weight": TIED,
    r"backbone\.layers\.0\.mixer\.(conv1d\.weight|A_log|D)": VECTOR,
    r"backbone\.layers\.0\.mixer\.out_proj\.weight": MATRIX,
    **NORMS_AND_BIASES,
}


def mamba_2(view: str) -> Expected:
    return {**MAMBA, r"backbone\.layers\.0\.mixer\.in_proj\.weight": ("hidden", view)}


MODELS: dict[str, tuple[Callable[[], nn.Module], Expected]] = {
    "nanoGPT": (user_code.NanoGPT, {r"transformer\.wte\.weight": TIED, **NANO}),
    "minGPT": (
        lambda: user_code.NanoGPT(mini=True),
        {r"transformer\.wte\.weight": EMBEDDING, r"lm_head\.weight": HEAD, **NANO},
    ),
    "early minGPT": (
        user_code.EarlyMinGPT,
        {
            r"tok_emb\.weight": EMBEDDING,
            r"pos_emb": VECTOR,
            r"blocks\.\d\.attn\.(key|query|value|proj)\.weight": ATTENTION,
            r"blocks\.\d\.mlp\.0\.weight": MLP_IN,
            r"blocks\.\d\.mlp\.2\.weight": MLP_OUT,
            r"head\.weight": HEAD,
            **NORMS_AND_BIASES,
        },
    ),
    "lit-gpt": (user_code.LitGPT, {**LIT, **LIT_QKV, **LIT_GATED}),
    "lit-gpt, as wide as its mlp": (
        lambda: user_code.LitGPT(intermediate_size=user_code.DIM),
        {**LIT, **LIT_QKV, **LIT_GATED},
    ),
    "lit-gpt, earlier": (
        lambda: user_code.LitGPT(earlier=True),
        {
            **LIT,
            **LIT_GATED,
            # 2 groups, each of 2 queries, a key and a value, of size 6
            r"transformer\.h\.\d\.attn\.attn\.weight": ("attention", "heads(2) split(12,6,6) join"),
        },
    ),
    "lit-gpt, plain mlp": (
        lambda: user_code.LitGPT(user_code.GptNeoxMLP),
        {
            **LIT,
            **LIT_QKV,
            r"transformer\.h\.\d\.mlp\.fc\.weight": MLP_IN,
            r"transformer\.h\.\d\.mlp\.proj\.weight": MLP_OUT,
        },
    ),
    "lit-gpt, mixture": (
        lambda: user_code.LitGPT(user_code.LLaMAMoE),
        {
            **LIT,
            **LIT_QKV,
            r"transformer\.h\.\d\.mlp\.gate\.weight": ("router", "matrix"),
            r"transformer\.h\.\d\.mlp\.experts\.\d\.fc_[12]\.weight": ("expert_in", "matrix"),
            r"transformer\.h\.\d\.mlp\.experts\.\d\.proj\.weight": ("expert_out", "matrix"),
        },
    ),
    "torchtitan": (titan_code.TitanTransformer, {**TITAN, **TITAN_QKV, **GATED}),
    "gpt-fast": (
        lambda: titan_code.TitanTransformer(fused=True),
        {**TITAN, **GATED, r"layers\.\d\.attention\.wqkv\.weight": ("attention", "split(16,8,8)")},
    ),
    "torchtitan, mixture": (
        lambda: titan_code.TitanTransformer(moe=True),
        {
            **TITAN,
            **TITAN_QKV,
            r"layers\.\d\.moe\.router\.gate\.weight": ("router", "matrix"),
            r"layers\.\d\.moe\.experts\.w[13]": ("expert_in", "matrix"),
            r"layers\.\d\.moe\.experts\.w2": ("expert_out", "matrix"),
            r"layers\.\d\.moe\.shared_experts\.w[13]\.weight": MLP_IN,
            r"layers\.\d\.moe\.shared_experts\.w2\.weight": MLP_OUT,
        },
    ),
    "x-transformers": (
        lambda: x_code.XTransformer(glu=False),
        {**X, r"attn_layers\.layers\.1\.1\.ff\.0\.0\.weight": MLP_IN},
    ),
    "x-transformers, gated": (
        lambda: x_code.XTransformer(glu=True),
        {**X, r"attn_layers\.layers\.1\.1\.ff\.0\.proj\.weight": ("mlp_in", "split(40,40)")},
    ),
    "mamba": (
        lambda: mamba_code.MambaLMHeadModel(mamba_code.Mamba()),
        {
            **MAMBA,
            r"backbone\.layers\.0\.mixer\.in_proj\.weight": ("hidden", "split(32,32)"),
            r"backbone\.layers\.0\.mixer\.x_proj\.weight": ("hidden", "split(3,4,4)"),
            r"backbone\.layers\.0\.mixer\.dt_proj\.weight": MATRIX,
        },
    ),
    "mamba 2": (lambda: mamba_code.MambaLMHeadModel(mamba_code.Mamba2()), mamba_2("split(32,32,8,8,8)")),
    "mamba 2, with an mlp and first states": (
        lambda: mamba_code.MambaLMHeadModel(mamba_code.Mamba2(d_ssm=24, learnable_init_states=True)),
        {**mamba_2("split(8,8,24,24,8,8,6)"), r"backbone\.layers\.0\.mixer\.init_states": VECTOR},
    ),
}


@pytest.mark.parametrize("which", MODELS)
def test_every_layer_of_a_model_by_hand(which: str) -> None:
    build, expected = MODELS[which]
    with torch.device("meta"):
        model = build()
    tokens = torch.zeros(2, 8, dtype=torch.long, device="meta")
    assert model(tokens).shape == (2, 8, user_code.VOCABULARY)
    check(model, expected)


def test_gpt_neox_keeps_the_parts_of_a_head_together() -> None:
    model = nn.ModuleDict({"attention": titan_code.ParallelSelfAttention()})
    check(
        model,
        {
            r"attention\.query_key_value\.weight": ("attention", "heads(4) split(4,4,4) join"),
            r"attention\.dense\.weight": ATTENTION,
            r".*bias": VECTOR,
        },
    )


def test_a_mamba_whose_rank_is_one_is_not_cut() -> None:
    check(
        mamba_code.MambaLMHeadModel(mamba_code.Mamba(dt_rank=1)),
        {
            **MAMBA,
            r"backbone\.layers\.0\.mixer\.in_proj\.weight": ("hidden", "split(32,32)"),
            r"backbone\.layers\.0\.mixer\.x_proj\.weight": MATRIX,
            r"backbone\.layers\.0\.mixer\.dt_proj\.weight": VECTOR,
        },
    )


@pytest.mark.parametrize(
    ("which", "name", "view"),
    [
        ("lit-gpt", "transformer.h.0.attn.qkv.weight", "split(24,12,12) head_size(6)"),
        ("lit-gpt, earlier", "transformer.h.0.attn.attn.weight", "heads(2) split(12,6,6) head_size(6)"),
        ("torchtitan", "layers.0.attention.wk.weight", "heads(2)"),
        ("gpt-fast", "layers.0.attention.wqkv.weight", "split(16,8,8) head_size(4)"),
        ("x-transformers", "attn_layers.layers.0.1.to_q.weight", "heads(4)"),
        ("x-transformers", "attn_layers.layers.0.1.to_out.weight", "heads_in(4)"),
    ],
)
def test_head_by_head(which: str, name: str, view: str) -> None:
    with torch.device("meta"):
        model = MODELS[which][0]()
    layout = next(c.per_head for c in classify(model) if c.name == name)
    assert layout is not None and layout[0] == view


@pytest.mark.parametrize("which", ["nanoGPT", "early minGPT", "torchtitan", "lit-gpt", "lit-gpt, plain mlp"])
def test_names_alone_do_not_contradict_the_structure(which: str) -> None:
    with torch.device("meta"):
        model = MODELS[which][0]()
    structural = {c.name: c.role for c in classify(model)}
    for named in classify(model.named_parameters()):
        tied = structural[named.name] == "tied_embedding"
        assert named.role == ("embedding" if tied else structural[named.name]), named
