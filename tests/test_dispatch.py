"""The dispatcher: every trainable parameter in exactly one group, plans and overrides as written, errors by name."""

from __future__ import annotations

import warnings
from typing import Any

import models
import pytest
import torch
from torch import nn

import orthoopt.dispatch
from orthoopt import OrthoOpt, param_groups, plans, rules
from orthoopt.dispatch import assign
from orthoopt.roles import ROLES

BUILDERS = (models.llama, models.qwen3, models.gemma3, models.gpt2, models.olmoe, models.gpt_oss)


@pytest.mark.parametrize("plan", plans.names())
@pytest.mark.parametrize("build", BUILDERS, ids=lambda build: build.__name__)
def test_every_trainable_parameter_is_in_exactly_one_group_and_can_step(build: Any, plan: str) -> None:
    model = build(device="cpu")
    first = next(model.parameters())
    first.requires_grad_(False)
    groups = param_groups(model, plan)
    names = [name for group in groups for name, _ in group["params"]]
    assert sorted(names) == sorted(name for name, p in model.named_parameters() if p.requires_grad)
    optimizer = OrthoOpt(groups)
    for param in model.parameters():
        param.grad = torch.randn_like(param)
    before = {name: param.detach().clone() for name, param in model.named_parameters()}
    optimizer.step()
    for name, param in model.named_parameters():
        assert torch.equal(param, before[name]) is (not param.requires_grad), name
        assert param.isfinite().all(), name


@pytest.mark.parametrize("plan", plans.names())
def test_plans_cover_every_role_with_valid_entries(plan: str) -> None:
    entries = plans.get(plan)
    assert set(entries) == set(ROLES)
    for role, entry in entries.items():
        plans.check_entry(entry, role)
    if plan == "scion":  # vectors have a ball too
        assert entries["vector"] == {"rule": "scion_vector", "radius": 50.0, "weight_decay": 1.0}
    elif not plan.startswith("symmetry_paper"):  # a paper's own numbers
        assert entries["vector"] == {"rule": "adamw", "weight_decay": 0.0}
    assert rules.get(entries["unknown"]["rule"]).name == "adamw"


def test_matrices_come_first_and_multipliers_land_in_lr() -> None:
    groups = param_groups(models.qwen3(), "symmetry", lr=0.01, weight_decay=0.3)
    assert groups[0]["rule"] == "spectral" and groups[0]["lr"] == 0.01 and groups[0]["weight_decay"] == 0.3
    by_role = {group["role"]: group for group in groups}
    multiplier = plans.get("symmetry")["embedding"]["lr_multiplier"]
    assert by_role["embedding"]["lr"] == pytest.approx(0.01 * multiplier)
    assert by_role["embedding"]["rule"] == by_role["lm_head"]["rule"] == "row_norm"
    assert by_role["embedding"]["centre"] == "none" and by_role["lm_head"]["centre"] == "both"
    assert by_role["lm_head"]["weight_decay"] == by_role["vector"]["weight_decay"] == 0.0


def test_a_tied_embedding_and_routers_are_never_centred() -> None:
    for build in (models.gpt2, models.gemma3, models.gpt_oss):
        for group in param_groups(build(), "symmetry"):
            if group["role"] in ("tied_embedding", "router"):
                assert group["rule"] == "row_norm" and group["centre"] == "none"


# Table of learning rates of arXiv 2605.18106 for Qwen3-0.6B; the router's is OLMoE's 7.5e-4 for Muon's 5e-3.
PAPER = {
    "attention": ("spectral", 2e-2, 1e-3, "shape_scaling"),
    "embedding": ("row_norm", 0.5, 0.0, "none"),
    "lm_head": ("row_norm", 5e-3, 0.0, "none"),
    "router": ("left_spectral", 2e-2 * 7.5e-4 / 5e-3, 0.0, "none"),
    "vector": ("adamw", 5e-2, 1e-3, None),
}


@pytest.mark.parametrize("plan", ["symmetry_paper", "symmetry_paper_hybrid"])
def test_the_papers_plans_have_its_numbers(plan: str) -> None:
    groups = param_groups(models.olmoe(), plan, lr=2e-2, weight_decay=0.5)
    mlp = ("spectral", 2e-2, 1e-3, "shape_scaling") if plan == "symmetry_paper" else ("hybrid", 2e-2, 1e-3, "none")
    expected = {**PAPER, "expert_in": mlp, "expert_out": mlp}
    assert {group["role"] for group in groups} == expected.keys()
    for group in groups:
        rule, lr, decay, scale = expected[group["role"]]
        assert (group["rule"], group["weight_decay"], group.get("scale")) == (rule, decay, scale)
        assert group["lr"] == pytest.approx(lr, rel=1e-12)
        if rule == "spectral":
            assert (group["momentum_form"], group["nesterov"]) == ("heavy_ball", True)
        elif rule != "adamw":
            assert (group["momentum_form"], group["nesterov"], group["momentum"]) == ("ema", False, 0.95)
        if rule == "hybrid":
            assert group["order"] == "row_then_polar" and group["nu_mode"] == "nuclear_over_frobenius"
            assert group["axis"] == ("cols" if group["role"] == "expert_out" else "rows") and group["eps_mode"] == "add"
    views = {group["view"] for group in groups if group["role"] == "attention"}
    assert views == {"heads(4)", "heads(2)", "heads_in(4)"}


@pytest.mark.parametrize("plan", [name for name in plans.names() if name.startswith("symmetry")])
def test_what_is_looked_up_is_never_centred_and_softmax_heads_always(plan: str) -> None:
    entries = plans.get(plan)
    for role in ("embedding", "tied_embedding"):
        assert entries[role].get("centre", "none") == "none"
    assert entries["lm_head"]["centre"] == "both"


def test_a_tensor_lr_stays_the_same_tensor() -> None:
    lr = torch.tensor(0.01)
    groups = param_groups(models.qwen3(), "adamw", lr=lr)
    assert all(group["lr"] is lr for group in groups)
    own = {"rule": "adamw", "lr": lr}
    for plan, overrides in ((dict.fromkeys(ROLES, own), ()), ("adamw", {"weight": own})):
        groups = param_groups(models.qwen3(), plan, lr=1.0, overrides=overrides)
        assert all(group["lr"] is lr for group in groups if group["lr"] != 1.0)
        assert any(group["lr"] is lr for group in groups)


def test_overrides_change_rule_options_rate_and_view_first_match_wins() -> None:
    groups = param_groups(
        models.qwen3(),
        lr=0.01,
        overrides=[
            (r"layers\.0\.self_attn\.q_proj", {"ns_steps": 3}),
            (r"self_attn\.q_proj", {"rule": "row_norm", "lr_multiplier": 2.0, "weight_decay": 0.5}),
            (r"lm_head", {"rule": "adamw", "lr": 0.5}),
            (r"layers\.1\.self_attn\.k_proj", {"view": "heads(2)"}),
        ],
    )
    found = {name: group for group in groups for name, _ in group["params"]}
    first = found["model.layers.0.self_attn.q_proj.weight"]
    assert first["rule"] == "spectral" and first["ns_steps"] == 3 and first["lr"] == 0.01
    second = found["model.layers.1.self_attn.q_proj.weight"]
    assert (second["rule"], second["lr"], second["weight_decay"]) == ("row_norm", 0.02, 0.5)
    assert found["lm_head.weight"]["rule"] == "adamw" and found["lm_head.weight"]["lr"] == 0.5
    assert "centre" not in found["lm_head.weight"]
    assert found["model.layers.1.self_attn.k_proj.weight"]["view"] == "heads(2)"
    (assignment,) = [a for a in assign(models.qwen3(), overrides={"lm_head": {"rule": "adamw"}}) if a.role == "lm_head"]
    assert "override 'lm_head'" in assignment.reason


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"plan": "symetry"}, ValueError, "did you mean 'symmetry'"),
        ({"plan": {"embeding": {"rule": "adamw"}}}, ValueError, "did you mean 'embedding'"),
        ({"plan": {"hidden": {"rule": "spectral", "ns_step": 3}}}, TypeError, "did you mean 'ns_steps'"),
        ({"plan": {"hidden": {"ns_steps": 3}}}, ValueError, "'hidden'.* has no 'rule'"),
        (
            {"overrides": [("nothing", {"rule": "adamw"})]},
            ValueError,
            "'nothing' matches no parameter; names: model",
        ),
        ({"overrides": [("lm_head", {"rule": "adam"})]}, ValueError, "did you mean 'adamw'"),
        (
            {"overrides": [("lm_head", {"centred": True})]},
            TypeError,
            "override 'lm_head'.*did you mean 'centre'",
        ),
        ({"overrides": [("lm_head", {"role": "head"})]}, ValueError, "unknown role 'head'"),
        ({"options": {"momentun": 0.9}}, TypeError, "did you mean 'momentum'"),
    ],
)
def test_bad_plans_and_overrides_are_named(arguments: dict[str, Any], error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        param_groups(models.qwen3(), **arguments)


def test_a_users_plan_fills_the_roles_it_leaves_out_with_adamw() -> None:
    groups = param_groups(models.qwen3(), {"attention": {"rule": "spectral", "scale": "none"}})
    assert {(group["role"], group["rule"]) for group in groups} >= {
        ("attention", "spectral"),
        ("mlp_in", "adamw"),
    }
    assert groups[0]["scale"] == "none"


def test_a_frozen_model_is_an_error() -> None:
    model = nn.Linear(3, 3).requires_grad_(False)
    with pytest.raises(ValueError, match="no trainable parameters"):
        param_groups(model)


def test_bare_parameters_warn_once_about_what_cannot_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(orthoopt.dispatch, "_warned_of_bare_parameters", False)
    model = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 3))
    with pytest.warns(UserWarning, match="2 of 6 are treated as hidden matrices"):
        param_groups(model.parameters(), "muon")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        groups = param_groups(model.parameters(), "muon")
    assert all(isinstance(param, nn.Parameter) for group in groups for param in group["params"])
    with pytest.raises(ValueError, match="overrides match names"):
        param_groups(model.parameters(), overrides=[("x", {"rule": "adamw"})])


def test_matrix_roles_come_first_and_order_inside_groups_is_the_models() -> None:
    model = models.gpt2()
    place = {name: i for i, (name, _) in enumerate(model.named_parameters())}
    groups = param_groups(model)
    for group in groups:
        places = [place[name] for name, _ in group["params"]]
        assert places == sorted(places)
    matrix = [group["role"] in plans.MATRIX_ROLES for group in groups]
    assert matrix == sorted(matrix, reverse=True) and matrix[0]


def test_a_pattern_for_the_other_name_of_a_tied_tensor_says_so() -> None:
    with pytest.raises(ValueError, match=r"lm_head\.weight is the same tensor as model\.embed_tokens\.weight"):
        param_groups(models.llama(tie_word_embeddings=True), overrides=[(r"lm_head", {"rule": "adamw"})])
