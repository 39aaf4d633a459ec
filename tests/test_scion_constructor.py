"""Scion's constructor and plan: which role gets which ball, and what it refuses."""

from __future__ import annotations

import inspect
import pickle
from typing import Any

import models
import pytest
import torch
from balls import dual_pairs
from optimizers import regression_losses
from torch import nn

from orthoopt import OrthoOpt, Scion, param_groups, plans


def by_role(optimizer: OrthoOpt) -> dict[str, dict[str, Any]]:
    return {group["role"]: group for group in optimizer.param_groups}


def test_a_model_gets_the_groups_of_its_plan() -> None:
    model = models.qwen3(device="cpu")
    optimizer = Scion(model, lr=3e-4)
    expected = OrthoOpt(param_groups(model, "scion", lr=3e-4), 3e-4, 1.0)
    assert optimizer.state_dict() == expected.state_dict() and optimizer.defaults == expected.defaults
    assert isinstance(pickle.loads(pickle.dumps(optimizer)), Scion)
    groups = by_role(optimizer)
    assert {group["weight_decay"] for group in optimizer.param_groups} == {1.0}
    assert {group.get("scale", "none") for group in optimizer.param_groups} == {"none"}
    published = {role: (groups[role].get("norm"), groups[role]["radius"]) for role in groups}
    assert published == {
        "attention": ("spectral", 50.0),
        "mlp_in": ("spectral", 50.0),
        "mlp_out": ("spectral", 50.0),
        "embedding": ("col_norm", 50.0),
        "lm_head": ("sign", 3000.0),
        "vector": (None, 50.0),
    }
    assert groups["embedding"]["transposed"] and not groups["lm_head"]["transposed"]
    assert {group["lr"] for group in Scion(model).param_groups} == {2**-12}


def test_new_weights_lie_in_their_balls() -> None:
    model = models.qwen3(device="cpu")
    for group in Scion(model).param_groups:
        for param in group["params"]:
            w = param.detach()
            if group["rule"] == "scion_vector":
                assert w.square().mean().sqrt() < group["radius"]
            else:
                w = w.mT if group["transposed"] else w
                assert dual_pairs(*w.shape)[group["norm"]][0](w) < group["radius"]


def test_unconstrained_nothing_shrinks() -> None:
    model = models.gpt2(device="cpu")
    optimizer = Scion(model, constrained=False, radius=2.0, output_radius=9.0, momentum=0.5, ns_steps=3)
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.0}
    groups = by_role(optimizer)
    assert groups["tied_embedding"]["norm"] == "sign" and groups["tied_embedding"]["radius"] == 9.0
    assert groups["attention"]["radius"] == groups["vector"]["radius"] == 2.0
    assert {group["momentum"] for group in optimizer.param_groups} == {0.5}
    assert groups["attention"]["ns_steps"] == 3
    # What the documentation says of plain groups.
    loose = param_groups(model, "scion", overrides={".": {"weight_decay": 0.0}})
    assert {group["weight_decay"] for group in loose} == {0.0}
    assert {group["rule"] for group in loose} == {"scion", "scion_vector"}


def test_norms_may_be_chosen_by_role() -> None:
    optimizer = Scion(
        models.qwen3(device="cpu"), norms={"lm_head": "row_norm", "mlp_in": {"scaling": "max", "radius": 10.0}}
    )
    groups = by_role(optimizer)
    assert (groups["lm_head"]["norm"], groups["lm_head"]["radius"]) == ("row_norm", 3000.0)
    assert (groups["mlp_in"]["norm"], groups["mlp_in"]["scaling"], groups["mlp_in"]["radius"]) == (
        "spectral", "max", 10.0,
    )  # fmt: skip
    assert (groups["mlp_out"]["scaling"], groups["mlp_out"]["radius"]) == ("published", 50.0)


@pytest.mark.filterwarnings("ignore:bare parameters:UserWarning")
@pytest.mark.parametrize("constrained", [True, False])
def test_bare_parameters_train(constrained: bool) -> None:
    losses = regression_losses(lambda params: Scion(params, lr=2e-3, constrained=constrained, radius=10.0))
    assert losses[-1] < 0.8 * losses[0]


def test_the_arguments_are_the_papers() -> None:
    parameters = list(inspect.signature(Scion.__init__).parameters.values())[1:]
    assert [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD] == [
        "params",
        "lr",
        "momentum",
        "constrained",
    ]
    assert "weight_decay" in inspect.signature(Scion.__init__).parameters  # only to refuse it by name


WEIGHT = ("mlp.up_proj.weight", nn.Parameter(torch.zeros(4, 4)))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: Scion([WEIGHT], weight_decay=0.1), ValueError, r"weight_decay=0\.1: Scion has no weight decay"),
        (lambda: Scion([WEIGHT], weight_decay=0), ValueError, "weight_decay=0: Scion has no weight decay"),
        (
            lambda: Scion(iter([{"params": [WEIGHT[1]], "weight_decay": 0.2}])),
            ValueError,
            r"weight_decay=0\.2: Scion has no weight decay",
        ),
        (lambda: Scion([WEIGHT], radius=0.0), ValueError, r"radius must be above 0 and finite, got 0\.0"),
        (lambda: Scion([WEIGHT], norms={"head": "sign"}), ValueError, "unknown role 'head'"),
        (lambda: Scion([WEIGHT], norms={"lm_head": "signs"}), ValueError, "norm='signs'.*'sign'"),
        (lambda: Scion([WEIGHT], norms={"vector": "sign"}), TypeError, "'scion_vector'.*no option 'norm'"),
        (
            lambda: Scion([WEIGHT], norms={"lm_head": {"scaling": "max"}}),
            ValueError,
            "scaling='max' of norm 'sign' must be one of 'published', 'normalized', 'unnormalized'",
        ),
        (lambda: Scion([WEIGHT], method="qr"), ValueError, "method='qr'.*'newton_schulz'.*'svd'"),
        (lambda: Scion([WEIGHT], momentum=1.0), ValueError, r"momentum must be at least 0 and below 1, got 1\.0"),
        (
            lambda: OrthoOpt([{"params": [WEIGHT], "rule": "scion", "kernel_size": 0}]),
            ValueError,
            "kernel_size must be at least 1, got 0",
        ),
    ],
)
def test_bad_arguments_are_named(call: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_the_plan_has_a_ball_for_every_role_and_no_other_decay() -> None:
    plan = plans.get("scion")
    assert {entry["weight_decay"] for entry in plan.values()} == {1.0}
    balls = {role: entry.get("norm", "spectral") for role, entry in plan.items() if entry["rule"] == "scion"}
    assert balls.pop("conv") == "spectral_conv"
    assert balls.pop("embedding") == "col_norm"
    assert balls.pop("lm_head") == balls.pop("tied_embedding") == "sign"
    assert set(balls.values()) == {"spectral"} and "router" in balls
