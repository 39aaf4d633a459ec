"""Weight decay modes: what each does to a parameter, for every rule, beside the rule's own update."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from optimizers import ALL_RULES, equal, optimizer_of, parameters, run, set_gradients, snapshot
from torch import nn
from torch.optim import lr_scheduler

import orthoopt.optimizer
from orthoopt import OrthoOpt, weight_decay


def moved(
    name: str, decay: float, mode: str, lr: float = 0.01
) -> tuple[dict[str, torch.Tensor], dict[str, nn.Parameter]]:
    """Where parameters were, and where one step from there takes them; float64."""
    params = parameters(torch.float64)
    start = {key: param.detach().clone() for key, param in params.items()}
    optimizer = OrthoOpt(
        [{"params": list(params.items()), "rule": name}], lr=lr, weight_decay=decay, weight_decay_mode=mode
    )
    set_gradients(params, 0)
    optimizer.step()
    return start, params


@pytest.mark.parametrize("mode", weight_decay.MODES)
@pytest.mark.parametrize("name", ALL_RULES)
def test_each_mode_shrinks_as_its_formula_says(name: str, mode: str) -> None:
    """The update does not depend on the decay, so the difference of two steps is the decay alone."""
    start, plain = moved(name, 0.0, mode)
    _, decayed = moved(name, 0.25, mode)
    assert any(not torch.equal(plain[key], decayed[key]) for key in start)
    for key, before in start.items():
        update = before - plain[key].detach()  # learning rate included; its sign is the update's
        expected = {
            "decoupled": 0.01 * 0.25 * before,
            "independent": 0.25 * before,
            "cautious": 0.01 * 0.25 * before * (update * before > 0),
        }[mode]
        # Subtractions of numbers near one in float64.
        torch.testing.assert_close((plain[key] - decayed[key]).detach(), expected, atol=1e-14, rtol=1e-11)


@pytest.mark.parametrize("name", ALL_RULES)
def test_independent_decay_follows_the_schedule_and_not_the_learning_rate(name: str) -> None:
    """After a scheduler has halved the rate, half of the coefficient, whatever the rate was; none at rate 0."""
    for peak in (0.01, 0.5):
        params = parameters(torch.float64)
        optimizer = OrthoOpt(
            [{"params": list(params.items()), "rule": name}],
            lr=peak, weight_decay=0.25, weight_decay_mode="independent",
        )  # fmt: skip
        lr_scheduler.LambdaLR(optimizer, lambda step: 0.5)
        before = {key: param.detach().clone() for key, param in params.items()}
        for param in params.values():
            param.grad = torch.zeros_like(param)
        optimizer.step()
        for key, param in params.items():
            torch.testing.assert_close(param.detach(), before[key] * (1 - 0.125), atol=1e-15, rtol=1e-15)
    optimizer.param_groups[0]["lr"] = 0.0
    before = {key: param.detach().clone() for key, param in params.items()}
    optimizer.step()
    assert all(torch.equal(before[key], param) for key, param in params.items())


@pytest.mark.parametrize("mode", weight_decay.MODES)
def test_a_zero_learning_rate_moves_nothing_without_a_scheduler_too(mode: str) -> None:
    for lr in (0.0, torch.tensor(0.0)):
        param = nn.Parameter(torch.randn(3, 4))
        optimizer = OrthoOpt([{"params": [param], "rule": "spectral"}], lr=lr, weight_decay=0.3, weight_decay_mode=mode)
        before, param.grad = param.detach().clone(), torch.randn(3, 4)
        optimizer.step()
        assert torch.equal(before, param)


@pytest.mark.parametrize("mode", weight_decay.MODES)
@pytest.mark.parametrize("name", ALL_RULES)
def test_tensor_rates_and_gates_change_nothing(name: str, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, tensor, gated = (parameters(torch.float64) for _ in range(3))
    for params, kind in ((plain, "plain"), (tensor, "tensor"), (gated, "gated")):
        optimizer = optimizer_of(name, params, weight_decay_mode=mode)
        if kind == "tensor":
            for group in optimizer.param_groups:
                group["lr"] = torch.tensor(group["lr"], dtype=torch.float64)
        if kind == "gated":
            monkeypatch.setattr(orthoopt.nonfinite, "host_can_read", lambda device: False)
        run(optimizer, params, 0, 3)
    for key in plain:
        # Another order of operations: float64 rounding, times the slope of an iteration in weak directions.
        torch.testing.assert_close(tensor[key], plain[key], atol=1e-9, rtol=1e-9)
        torch.testing.assert_close(gated[key], plain[key], atol=1e-9, rtol=1e-9)
    before = snapshot(optimizer)
    set_gradients(gated, 9)
    gated["wide"].grad.fill_(float("nan"))
    optimizer.step()
    assert equal(before, snapshot(optimizer))


@given(st.lists(st.floats(-2, 2), min_size=1, max_size=8), st.floats(0.0, 0.5), st.integers(0, 99))
def test_cautious_decay_never_acts_against_the_update(values: list[float], amount: float, seed: int) -> None:
    before = torch.tensor(values, dtype=torch.float64)
    update = torch.randn(len(values), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    after = before.clone()
    weight_decay.shrink_cautiously(after, update, amount)
    change = before - after
    assert ((change * update) >= 0).all()
    agree = update * before > 0
    torch.testing.assert_close(change, torch.where(agree, amount * before, 0.0), atol=1e-15, rtol=1e-12)


def test_an_unknown_mode_is_named_wherever_it_is_given() -> None:
    param = nn.Parameter(torch.randn(3, 4))
    with pytest.raises(ValueError, match="weight_decay_mode='l2'.*'decoupled', 'independent', 'cautious'"):
        OrthoOpt([{"params": [param], "rule": "spectral"}], weight_decay_mode="l2")
    with pytest.raises(ValueError, match="param group 0.*|weight_decay_mode='l2'"):
        OrthoOpt([{"params": [param], "rule": "spectral", "weight_decay_mode": "l2"}])
    with pytest.raises(ValueError, match="weight_decay_mode='l2'.*role"):
        orthoopt.Muon([("w", param)], weight_decay_mode="l2")
    with pytest.raises(ValueError, match="override 'w'"):
        orthoopt.Muon([("w", param)], overrides={"w": {"weight_decay_mode": "l2"}})


def test_constructors_and_overrides_pass_the_mode_on() -> None:
    model = nn.Sequential(nn.Linear(8, 6), nn.LayerNorm(6), nn.Linear(6, 4))
    for constructor in (orthoopt.Muon, orthoopt.Symmetry, orthoopt.RowNorm):
        optimizer = constructor(
            model, weight_decay_mode="cautious", overrides={r"^2": {"weight_decay_mode": "independent"}}
        )
        modes = {name: g["weight_decay_mode"] for g in optimizer.param_groups for name in g["param_names"]}
        assert modes["0.weight"] == modes["1.weight"] == "cautious" and modes["2.weight"] == "independent"


@pytest.mark.parametrize("name", ALL_RULES)
def test_cautious_decay_of_bfloat16_is_rounded_once_with_the_update(name: str) -> None:
    """By itself a decay of 1e-3 is below what bfloat16 tells apart, and would never happen."""
    low, wide = parameters(torch.bfloat16), parameters(torch.bfloat16)
    exact = {key: nn.Parameter(param.detach().float()) for key, param in wide.items()}
    for params in (low, exact):
        optimizer = optimizer_of(name, params, weight_decay_mode="cautious")
        set_gradients(params, 0)
        for param in params.values():
            param.grad = param.grad.bfloat16().to(param.dtype)
        optimizer.step()
    for key, param in low.items():
        assert torch.equal(param, exact[key].bfloat16()), key
