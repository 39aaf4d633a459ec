"""Roles without a model: names and shapes decide, or shapes alone."""

from __future__ import annotations

import models
import pytest
import torch
from expected_roles import MODELS, by_name
from torch import nn

from orthoopt.roles import classify, roles


@pytest.mark.parametrize("which", ["llama", "qwen3", "olmoe", "torch language model", "phi3"])
def test_names_alone_agree_with_the_structure(which: str) -> None:
    model = MODELS[which][0]()
    for structural, named in zip(roles(model), roles(model.named_parameters()), strict=True):
        if structural.name == "tokens.weight" or structural.name == "readout.weight":
            continue  # names of their own invention
        assert named[:2] == structural[:2]
        if "qkv_proj" not in named.name:  # the heads of a fused q, k, v are in the config
            assert named.view == structural.view
        if named.role not in ("vector", "conv"):
            assert "owner unknown" in named.reason


def test_names_alone_show_gpt2s_transposition_by_the_shape_of_c_attn() -> None:
    model = models.gpt2()
    structural, named = by_name(roles(model)), by_name(roles(model.named_parameters()))
    for name, entry in structural.items():
        if name != "transformer.wte.weight":
            assert named[name][1:3] == entry[1:3], name
    assert named["transformer.wte.weight"].role == "embedding"  # the tie cannot be seen
    assert "names cannot show it" in named["transformer.wte.weight"].reason
    nano = roles([("h.0.attn.c_attn.weight", torch.zeros(24, 8, requires_grad=True))])
    assert nano[0].view == "split(8,8,8)"  # nn.Linear stores (out, in)


def test_names_alone_do_not_guess_how_transposed_gates_are_fused() -> None:
    model = models.gpt_oss()
    named = by_name(roles(model.named_parameters()))
    assert named["model.layers.0.mlp.experts.gate_up_proj"][1:3] == ("expert_in", "transpose")
    assert "unknown order" in named["model.layers.0.mlp.experts.gate_up_proj"].reason


def test_ties_among_names_are_seen_when_both_are_given() -> None:
    model = models.gpt2()
    listed = by_name(roles(model.named_parameters(remove_duplicate=False)))
    assert listed["transformer.wte.weight"].role == "tied_embedding" and "lm_head.weight" not in listed


@pytest.mark.parametrize(
    ("name", "shape", "role"),
    [
        ("head_proj.weight", (8, 8), "hidden"),
        ("head.weight", (10, 8), "lm_head"),
        ("wte.weight", (96, 8), "embedding"),
        ("unembedding_norm.weight", (8,), "vector"),
        ("mystery.weight", (4096, 64), "unknown"),
        ("conv.weight", (8, 4, 3), "conv"),
        ("mystery.weight", (8, 4, 3), "unknown"),
        ("net.pos_embed", (1, 16, 8), "vector"),
        ("mixer.A_log", (16, 4), "vector"),
    ],
)
def test_single_names(name: str, shape: tuple[int, ...], role: str) -> None:
    assert roles([(name, torch.zeros(shape, requires_grad=True))])[0].role == role


@pytest.mark.parametrize(
    ("shape", "role", "view"),
    [
        ((), "vector", "vector"),
        ((5,), "vector", "vector"),
        ((1, 5), "vector", "vector"),
        ((1, 5, 1), "vector", "vector"),
        ((4, 5), "hidden", "matrix"),
        ((2048, 128), "unknown", "matrix"),
        ((128, 2048), "unknown", "matrix"),
        ((2048, 129), "hidden", "matrix"),
        ((2032, 127), "hidden", "matrix"),
        ((4, 5, 6), "unknown", "matrix"),
        ((4, 5, 3, 3), "conv", "flatten"),
        ((4, 5, 3, 3, 3), "conv", "flatten"),
        ((4, 1, 3, 3), "vector", "vector"),
    ],
)
def test_shapes_alone(shape: tuple[int, ...], role: str, view: str) -> None:
    (entry,) = roles([torch.zeros(shape, requires_grad=True)])
    assert entry[:3] == ("params[0]", role, view) and entry.reason


def test_bare_tensors_have_no_name_and_repeat_once() -> None:
    weight = nn.Parameter(torch.zeros(4, 4))
    classified = classify(iter([weight, weight]))
    assert [c.name for c in classified] == [None] and classified[0].param is weight
    assert roles([]) == []
