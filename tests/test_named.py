"""Constructors: a model, names, bare parameters or groups; torch's arguments in torch's order."""

from __future__ import annotations

import inspect
import itertools
import pickle
from typing import Any

import models
import pytest
import torch
from optimizers import regression_losses
from torch import nn

import orthoopt
from orthoopt import (
    SSD,
    AuON,
    DCTAdamW,
    Dion2,
    HybridAuON,
    Muon,
    OrthoOpt,
    PolarGrad,
    Root,
    RowNorm,
    Symmetry,
    Trion,
    param_groups,
)

PLANS = {
    AuON: "auon",
    DCTAdamW: "dct_adamw",
    Dion2: "dion2",
    HybridAuON: "hybrid_auon",
    Muon: "muon",
    PolarGrad: "polargrad",
    Root: "root",
    RowNorm: "row_norm",
    SSD: "ssd",
    Symmetry: "symmetry",
    Trion: "trion",
}
CONSTRUCTORS = tuple(PLANS)


def routing(optimizer: OrthoOpt) -> dict[str, tuple[str, str]]:
    return {name: (group["rule"], group["view"]) for group in optimizer.param_groups for name in group["param_names"]}


@pytest.mark.parametrize("constructor", CONSTRUCTORS)
def test_a_model_gets_the_groups_of_its_plan(constructor: Any) -> None:
    model = models.qwen3(device="cpu")
    optimizer = constructor(model, lr=3e-4, weight_decay=0.2)
    expected = OrthoOpt(param_groups(model, PLANS[constructor], lr=3e-4, weight_decay=0.2), 3e-4, 0.2)
    assert optimizer.state_dict() == expected.state_dict()
    assert optimizer.defaults == expected.defaults
    assert isinstance(pickle.loads(pickle.dumps(optimizer)), constructor)


@pytest.mark.parametrize("constructor", CONSTRUCTORS)
def test_names_alone_route_an_untied_decoder_like_its_structure(constructor: Any) -> None:
    model = models.qwen3(device="cpu")
    assert routing(constructor(model.named_parameters())) == routing(constructor(model))


@pytest.mark.filterwarnings("ignore:bare parameters:UserWarning")
@pytest.mark.parametrize("constructor", CONSTRUCTORS)
def test_bare_parameters_train(constructor: Any) -> None:
    losses = regression_losses(lambda params: constructor(params, lr=0.02))
    assert losses[-1] < 0.8 * losses[0]


def test_muon_has_torchs_arguments_in_torchs_order_and_defaults() -> None:
    torchs = list(inspect.signature(torch.optim.Muon.__init__).parameters.values())[1:]
    ours = [p for p in inspect.signature(Muon.__init__).parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD][1:]
    assert [p.name for p in ours] == [p.name for p in torchs]
    # Coefficients are named here; everything else has torch's default.
    for mine, theirs in itertools.islice(zip(ours, torchs, strict=True), 1, None):
        assert mine.name == "ns_coefficients" or mine.default == theirs.default
    (matrix,) = (nn.Parameter(torch.randn(4, 4)),)
    a = Muon([("w", matrix)], 1e-3, 0.1, 0.9, False, (3.4445, -4.775, 2.0315), 1e-7, 4, "original")
    group = a.param_groups[0]
    assert (group["momentum"], group["nesterov"], group["ns_steps"]) == (0.9, False, 4)
    assert group["scale"] == "shape_scaling"


def test_options_reach_their_rules_alone() -> None:
    optimizer = Symmetry(models.qwen3(device="cpu"), momentum=0.8, ns_steps=3, eps=1e-6)
    for group in optimizer.param_groups:
        assert group.get("momentum", 0.8) == 0.8
        assert ("ns_steps" in group) == (group["rule"] == "spectral") and group.get("ns_steps", 3) == 3
        assert ("eps" in group) == (group["rule"] == "adamw") and group.get("eps", 1e-6) == 1e-6


@pytest.mark.parametrize("plan", [name for name in orthoopt.plans.names() if name.startswith("symmetry")])
def test_symmetry_takes_every_plan_of_its_family_as_it_is(plan: str) -> None:
    model = models.olmoe(device="cpu")
    optimizer = Symmetry(model, lr=2e-2, weight_decay=0.2, plan=plan)
    assert optimizer.state_dict() == OrthoOpt(param_groups(model, plan, lr=2e-2, weight_decay=0.2)).state_dict()
    changed = Symmetry(model, plan=plan, scale="spectral", ns_coefficients="cans")
    assert all(group.get("scale", "spectral") == "spectral" for group in changed.param_groups)
    assert all(group.get("ns_coefficients", "cans") == "cans" for group in changed.param_groups)


@pytest.mark.filterwarnings("ignore:bare parameters:UserWarning")
def test_a_pattern_may_match_in_one_of_several_groups_and_must_in_one() -> None:
    decayed = [
        ("fc.weight", torch.zeros(4, 6, requires_grad=True)),
        ("head.weight", torch.zeros(9, 4, requires_grad=True)),
    ]
    groups = [
        {"params": iter(decayed)},
        {"params": [("fc.bias", torch.zeros(4, requires_grad=True))], "weight_decay": 0.0},
    ]
    opt = orthoopt.Symmetry(groups, lr=0.5, overrides=[(r"head", {"lr": 0.25}), (r"bias", {"lr": 0.125})])
    rates = {name: group["lr"] for group in opt.param_groups for name in group["param_names"]}
    assert rates == {"fc.weight": 0.5, "head.weight": 0.25, "fc.bias": 0.125}
    with pytest.raises(ValueError, match="matches no parameter"):
        orthoopt.Symmetry([{"params": decayed}], lr=0.5, overrides=[(r"tail", {"lr": 0.25})])


def test_groups_keep_their_own_rate_and_ready_groups_stay() -> None:
    w, v, u = (nn.Parameter(torch.randn(4, 4)) for _ in range(3))
    optimizer = Muon(
        [
            {"params": [w], "lr": 0.5, "weight_decay": 0.0, "ns_steps": 2},
            {"params": [v], "rule": "row_norm", "lr": 0.25},
            {"params": u},
        ],
        lr=0.125,
    )
    found = [(g["rule"], g["lr"], g["weight_decay"], g.get("ns_steps")) for g in optimizer.param_groups]
    assert found == [("spectral", 0.5, 0.0, 2), ("row_norm", 0.25, 0.1, None), ("spectral", 0.125, 0.1, 5)]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: Muon([]), ValueError, "empty parameter list"),
        (lambda: Muon(torch.randn(3, 3)), TypeError, "an iterable of Tensors or dicts.*got a single Tensor"),
        (
            lambda: Muon(models.qwen3(), adjust_lr_fn="kimi"),
            ValueError,
            "adjust_lr_fn='kimi' must be .*'original'",
        ),
        (lambda: Muon(models.qwen3(), scale="kimi"), ValueError, "scale='kimi'"),
        (lambda: Symmetry(models.qwen3(), ns_coefficients="x"), ValueError, "unknown coefficients 'x'"),
        (lambda: Symmetry(models.qwen3(), plan="muon"), ValueError, "plan='muon' must be one of 'symmetry', "),
        (lambda: RowNorm(models.qwen3(), axis="columns"), ValueError, "axis='columns'.*'rows', 'cols'"),
        (lambda: RowNorm(models.qwen3(), lr=-1), ValueError, "lr must be"),
        (lambda: Trion(models.qwen3(), rank=0), ValueError, "rank=0 must be at least 1"),
        (lambda: Dion2(models.qwen3(), rank=1.5), ValueError, "rank=1.5.*at most 1.0"),
        (lambda: Trion(models.qwen3(), basis="haar"), ValueError, "basis='haar'.*'dct', 'identity'"),
        (lambda: DCTAdamW(models.qwen3(), side="top"), ValueError, "side='top'.*'auto', 'left', 'right'"),
        (lambda: DCTAdamW(models.qwen3(), update_interval=0), ValueError, "update_interval must be at least 1 step"),
        (lambda: DCTAdamW(models.qwen3(), betas=(0.9, 1.0)), ValueError, r"betas\[1\] must be"),
    ],
)
def test_bad_arguments_are_named(call: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_an_eps_that_has_no_effect_says_so() -> None:
    with pytest.warns(UserWarning, match="eps=1e-05 has no effect"):
        Muon(models.qwen3(), eps=1e-5)


def test_the_public_surface_is_what_is_documented() -> None:
    for name in orthoopt.__all__:
        assert getattr(orthoopt, name) is not None
    # ruff's order: SCREAMING names first.
    assert list(orthoopt.__all__) == sorted(orthoopt.__all__, key=lambda name: (not name.isupper(), name))
