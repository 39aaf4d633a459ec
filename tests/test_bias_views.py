"""Biases of fused and stacked linear maps: as many vectors as their weights are matrices."""

from __future__ import annotations

from typing import Any

import models
import pytest
import torch
from expected_roles import MODELS
from torch import nn

from orthoopt import OrthoOpt, param_groups, roles
from orthoopt.dispatch import assign
from orthoopt.rules.scion_vector import at_rms
from orthoopt.views import parse_view


def views(params: Any) -> dict[str, str]:
    """The last parts of names -> the view, of vectors that are more than one under Scion."""
    found = {}
    for item in assign(params, "scion"):
        if item.group["rule"] == "scion_vector" and item.view != "vector":
            found[".".join(str(item.name).split(".")[-2:])] = item.view
    return found


@pytest.mark.parametrize(
    ("which", "expected"),
    [
        ("llama", {}),
        ("gpt2", {"c_attn.bias": "column split(32,32)"}),  # of cross attention, the last of that name
        (
            "gpt-oss",
            {"experts.gate_up_proj_bias": "column interleave(2)", "experts.down_proj_bias": "column"},
        ),
        ("neox", {"query_key_value.bias": "column heads(4) split(8,8,8) join"}),
        ("torch language model", {"self_attn.in_proj_bias": "column split(32,32,32)"}),
        ("attention of other key width", {"in_proj_bias": "column split(16,16,16)"}),  # beside weights of their own
        ("convnet", {}),
        ("vit", {}),
    ],
)
def test_views_of_real_models(which: str, expected: dict[str, str]) -> None:
    assert views(MODELS[which][0]()) == expected


def test_views_of_other_modules() -> None:
    lstm = {f"lstm.bias_{side}_l0": "column split(8,8,8,8)" for side in ("ih", "hh")}
    assert views(nn.ModuleDict({"lstm": nn.LSTM(4, 8)})) == lstm
    kernels = nn.ModuleDict({"grouped": nn.Conv2d(4, 8, 3, groups=2), "back": nn.ConvTranspose2d(4, 8, 3, groups=2)})
    assert views(kernels) == {"grouped.bias": "column heads(2)"}  # transposed, the weight's rows are its inputs


def test_names_alone_say_it_too_and_frozen_weights_are_looked_at() -> None:
    names = [("h.attn.c_attn.weight", torch.zeros(8, 24)), ("h.attn.c_attn.bias", torch.zeros(24))]
    assert views([(name, nn.Parameter(value)) for name, value in names]) == {"c_attn.bias": "column split(8,8,8)"}
    model = models.gpt2()
    for name, param in model.named_parameters():
        param.requires_grad_(name.endswith("bias"))
    assert views(model) == {"c_attn.bias": "column split(32,32,32)"}


def test_rules_that_measure_nothing_see_vectors_and_so_do_people() -> None:
    for plan in ("adamw", "symmetry"):
        groups = param_groups(models.gpt_oss(), plan)
        assert {group["view"] for group in groups if group["role"] == "vector"} == {"vector"}
    assert {entry.view for entry in roles(models.gpt_oss()) if entry.role == "vector"} == {"vector"}


def test_a_view_that_is_given_wins() -> None:
    whole = [(r"c_attn\.bias", {"view": "vector"}), (r"mlp.*bias", {"view": "column heads(2)"})]
    found = {item.name: item.view for item in assign(models.gpt2(), "scion", overrides=whole)}
    assert found["transformer.h.0.attn.c_attn.bias"] == "vector"
    assert found["transformer.h.0.mlp.c_fc.bias"] == "column heads(2)"


def test_each_vector_is_brought_to_length_by_itself() -> None:
    bias = nn.Parameter(torch.zeros(2, 6, dtype=torch.float64))
    bias.grad = torch.randn(2, 6, dtype=torch.float64) * torch.tensor([1.0, 100.0] * 3)
    group = {"params": [bias], "rule": "scion_vector", "radius": 3.0, "momentum": 0.0, "weight_decay": 0.0}
    OrthoOpt([group | {"view": "column interleave(2)"}], lr=1.0).step()
    for piece, grad in zip(bias.detach().T, bias.grad.T, strict=True):
        assert piece.shape == (2,) and torch.equal(piece.sign(), -grad.sign())
    for piece in parse_view("column interleave(2)").pieces(bias.detach()):
        # Of a vector of three entries; rounding.
        torch.testing.assert_close(
            piece.square().mean((-2, -1)).sqrt(), torch.full((2,), 3.0).double(), rtol=1e-12, atol=0
        )
    one = bias.grad[1, ::2]
    torch.testing.assert_close(bias.detach()[1, ::2], -at_rms(one, 3.0), rtol=1e-12, atol=0)  # rounding


def test_a_view_that_does_not_fit_is_named() -> None:
    group = {"params": [("b", nn.Parameter(torch.zeros(5)))], "rule": "scion_vector", "view": "column split(2,2)"}
    with pytest.raises(ValueError, match=r"param group 0: b: view 'column split\(2,2\)' does not fit"):
        OrthoOpt([group])
