"""Attention head by head: the heads that the forward pass uses, and nothing where they are not known."""

from __future__ import annotations

from typing import Any

import models
import pytest
import torch
from expected_roles import MODELS
from torch import nn

from orthoopt import OrthoOpt, explain, orthogonalize, param_groups, plans
from orthoopt.dispatch import assign
from orthoopt.roles import classify
from orthoopt.views import parse_view

PER_HEAD = {"attention": {"rule": "spectral", "per_head": True}}


def views(params: Any) -> dict[str, str | None]:
    """The last parts of attention's names -> the view head by head."""
    found = {}
    for item in classify(params):
        if item.role == "attention":
            found[".".join(str(item.name).split(".")[-2:])] = item.per_head[0] if item.per_head else None
    return found


LLAMA = {
    "q_proj.weight": "heads(4)",
    "k_proj.weight": "heads(2)",
    "v_proj.weight": "heads(2)",
    "o_proj.weight": "heads_in(4)",
}


@pytest.mark.parametrize(
    ("which", "expected"),
    [
        *[(which, LLAMA) for which in ("llama", "qwen3", "gemma3", "olmoe", "gpt-oss")],
        (
            "gpt2",
            {
                "c_attn.weight": "transpose split(32,32) head_size(8)",  # of cross attention, the last of that name
                "q_attn.weight": "transpose heads(4)",
                "c_proj.weight": "transpose heads_in(4)",
            },
        ),
        ("phi3", {"qkv_proj.weight": "split(32,16,16) head_size(8)", "o_proj.weight": "heads_in(4)"}),
        ("neox", {"query_key_value.weight": "heads(4) split(8,8,8)", "dense.weight": "heads_in(4)"}),
        ("falcon", {"query_key_value.weight": "heads(2) split(16,8,8) head_size(8)", "dense.weight": "heads_in(4)"}),
        (
            "torch language model",
            {"self_attn.in_proj_weight": "split(32,32,32) head_size(8)", "out_proj.weight": "heads_in(4)"},
        ),
        (
            "attention of other key width",
            {**{f"{x}_proj_weight": "heads(2)" for x in "qkv"}, "out_proj.weight": "heads_in(2)"},
        ),
        ("vit", {f"{x}_proj.weight": "heads_in(4)" if x == "o" else "heads(4)" for x in "qkvo"}),
    ],
)
def test_views_head_by_head(which: str, expected: dict[str, str]) -> None:
    assert views(MODELS[which][0]()) == expected


def test_every_view_head_by_head_fits_and_its_matrices_are_heads() -> None:
    for build, _ in MODELS.values():
        for item in classify(build()):
            if item.per_head is not None:
                shapes = parse_view(item.per_head[0]).piece_shapes(tuple(item.param.shape))
                assert all(min(shape[-2:]) in (8, 6, 16) for shape in shapes), item  # the head sizes of these models


class Attention(nn.Module):
    """Projections of the given sizes below attributes that say how many heads there are."""

    def __init__(self, sizes: dict[str, tuple[int, int]], **attributes: int) -> None:
        super().__init__()
        for name, (rows, cols) in sizes.items():
            self.add_module(name, nn.Linear(cols, rows, bias=False))
        for name, value in attributes.items():
            setattr(self, name, value)


@pytest.mark.parametrize(
    ("sizes", "attributes", "expected"),
    [
        ({"wq": (32, 24), "wk": (16, 24)}, {"n_heads": 4, "n_kv_heads": 2}, ["heads(4)", "heads(2)"]),
        ({"wq": (32, 24), "wk": (16, 24)}, {"n_heads": 4}, ["heads(4)", None]),  # 16 rows are not 4 heads of 8
        ({"q_proj": (32, 24)}, {"num_heads": 4, "head_dim": 16}, [None]),  # the sizes do not add up
        ({"q_proj": (32, 24)}, {}, [None]),
        ({"q_proj": (4, 24)}, {"num_heads": 4}, [None]),  # heads of one row are no matrices
        ({"qkv": (80, 32)}, {"n_heads": 4, "n_kv_heads": 2}, [None]),  # fused in unknown sizes
        ({"o_proj": (24, 40)}, {"num_heads": 4, "qk_head_dim": 6, "v_head_dim": 10}, ["heads_in(4)"]),
        ({"kv_b_proj": (64, 24)}, {"num_heads": 4}, [None]),  # k and v of each head side by side
    ],
)
def test_sizes_must_agree_with_what_the_module_says(
    sizes: dict[str, tuple[int, int]], attributes: dict[str, int], expected: list[str | None]
) -> None:
    found = classify(nn.ModuleDict({"attn": Attention(sizes, **attributes)}))
    assert {item.role for item in found} == {"attention"}
    assert [item.per_head[0] if item.per_head else None for item in found] == expected


def test_heads_are_those_of_the_forward_pass() -> None:
    """q: head i of the output is x times matrix i. o: its output is a sum over heads, matrix i reading head i."""
    q, o, x = (torch.randn(shape, dtype=torch.float64) for shape in ((32, 24), (24, 32), (5, 24)))
    (pieces,) = parse_view("heads(4)").pieces(q)
    torch.testing.assert_close((x @ q.mT).unflatten(-1, (4, 8)).movedim(-2, 0), x @ pieces.mT, rtol=1e-12, atol=1e-12)
    mixed = torch.randn(5, 32, dtype=torch.float64)
    (pieces,) = parse_view("heads_in(4)").pieces(o)
    by_head = (mixed.unflatten(-1, (4, 8)).movedim(-2, 0) @ pieces.mT).sum(0)
    torch.testing.assert_close(mixed @ o.mT, by_head, rtol=1e-12, atol=1e-12)  # summation order


def test_a_step_head_by_head_is_the_rule_on_each_head() -> None:
    model = models.qwen3(device="cpu").double()
    before = {name: param.detach().clone() for name, param in model.named_parameters()}
    for param in model.parameters():
        param.grad = torch.randn_like(param)
    groups = param_groups(model, PER_HEAD, lr=0.5, weight_decay=0.0, options={"momentum": 0.0, "scale": "none"})
    OrthoOpt(groups, lr=0.5).step()
    for name, param in model.named_parameters():
        if name.endswith("layers.0.self_attn.k_proj.weight"):
            heads = param.grad.split(8)
            expected = torch.cat([orthogonalize(head, coefficients="muon") for head in heads])
            torch.testing.assert_close(before[name] - param, 0.5 * expected, rtol=1e-9, atol=1e-12)
        if name.endswith("layers.0.self_attn.o_proj.weight"):
            heads = param.grad.split(8, dim=1)
            expected = torch.cat([orthogonalize(head, coefficients="muon") for head in heads], dim=1)
            torch.testing.assert_close(before[name] - param, 0.5 * expected, rtol=1e-9, atol=1e-12)


def test_the_plan_key_changes_views_and_reasons_and_never_reaches_a_group() -> None:
    groups = param_groups(models.qwen3(), PER_HEAD)
    found = {name: group for group in groups for name, _ in group["params"]}
    assert all("per_head" not in group for group in groups)
    assert found["model.layers.1.self_attn.k_proj.weight"]["view"] == "heads(2)"
    reasons = {str(item.name): item.reason for item in assign(models.qwen3(), PER_HEAD)}
    assert reasons["model.layers.0.self_attn.q_proj.weight"].endswith("; per head, 4 heads")
    assert reasons["model.layers.0.self_attn.k_proj.weight"].endswith("; per head, 2 key/value heads")
    assert reasons["model.layers.0.self_attn.o_proj.weight"].endswith("; per head, 4 heads of inputs")
    phi = {str(item.name): item for item in assign(MODELS["phi3"][0](), PER_HEAD)}
    assert phi["model.layers.0.self_attn.qkv_proj.weight"].reason.endswith("; per head, 4 query and 2 key/value heads")
    assert "heads_in(4)" in str(explain(models.qwen3(), PER_HEAD))


def test_unknown_heads_stay_whole_and_say_so() -> None:
    for item in assign(models.qwen3().named_parameters(), PER_HEAD):  # names say nothing about head counts
        if item.role == "attention":
            assert item.view == "matrix" and item.reason.endswith("not per head: its heads are not known, seen whole")


def test_overrides_may_ask_for_heads_and_a_view_of_their_own_wins() -> None:
    changed = {
        r"layers\.0.*q_proj": {"per_head": True},
        r"layers\.0.*k_proj": {"per_head": True, "view": "matrix"},
        r"layers\.0.*mlp": {"per_head": True},
    }
    found = {str(item.name): item.view for item in assign(models.qwen3(), "muon", overrides=changed)}
    assert found["model.layers.0.self_attn.q_proj.weight"] == "heads(4)"
    assert found["model.layers.1.self_attn.q_proj.weight"] == "matrix"
    assert found["model.layers.0.self_attn.k_proj.weight"] == "matrix"
    assert found["model.layers.0.mlp.up_proj.weight"] == "matrix"


@pytest.mark.parametrize(
    ("entry", "error", "message"),
    [
        ({"rule": "spectral", "per_head": 4}, ValueError, "per_head must be True or False, got 4"),
        ({"rule": "adamw", "per_head": True}, TypeError, "'per_head' is for matrix rules, the rule is 'adamw'"),
        ({"rule": "spectral", "per_heads": True}, TypeError, "did you mean 'per_head'"),
    ],
)
def test_a_wrong_value_is_named(entry: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        plans.get({"attention": entry})
    with pytest.raises(error, match=f"override 'q_proj'.*{message}"):
        param_groups(models.qwen3(), "muon", overrides={"q_proj": entry})
