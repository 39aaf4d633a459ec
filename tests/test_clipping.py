"""Gradient clipping with every rule: the update is the rule's of the clipped gradient, and often that of the other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from optimizers import ALL_RULES, optimizer_of, parameters, run, set_gradients
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_, clip_grad_value_

from orthoopt import OrthoOpt, rules

LR = 0.01


def updates(name: str, clip: Callable[[list[Tensor]], Any], steps: int = 1, scale: float = 1.0) -> dict[str, Tensor]:
    """What each parameter has moved by over some steps, each clipped; float64."""
    params = parameters(torch.float64)
    before = {key: param.detach().clone() for key, param in params.items()}
    optimizer = optimizer_of(name, params)
    for step in range(steps):
        set_gradients(params, step, scale)
        clip(list(params.values()))
        optimizer.step()
    return {key: before[key] - param.detach() for key, param in params.items()}


@pytest.mark.parametrize(
    "name", [name for name in ALL_RULES if rules.get(name).scale_invariant(rules.get(name).defaults)]
)
def test_clipping_by_one_factor_changes_no_update_of_a_scale_invariant_rule(name: str) -> None:
    """At a first step, where the average has the gradient's scale, and at later ones clipped as much."""
    free = updates(name, lambda params: None, steps=2)
    small = updates(name, lambda params: clip_grad_norm_(params, 1e-3), steps=1)
    first = updates(name, lambda params: None, steps=1)
    scaled = updates(name, lambda params: torch._foreach_mul_([p.grad for p in params], 1e-3), steps=2)
    for key in free:
        # Their own promise, float64; the weakest directions of five iterations amplify rounding by some hundreds.
        torch.testing.assert_close(small[key], first[key], rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(scaled[key], free[key], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    "clip", [lambda params: clip_grad_norm_(params, 0.7), lambda params: clip_grad_value_(params, 0.5)]
)
@pytest.mark.parametrize("name", ALL_RULES)
def test_the_step_is_the_rules_own_of_the_clipped_gradient(name: str, clip: Callable[[list[Tensor]], Any]) -> None:
    rule = rules.get(name)
    param = nn.Parameter(torch.zeros(4, 9, dtype=torch.float64))
    scale = {"scale": "none"} if rule.is_matrix else {}
    optimizer = OrthoOpt([{"params": [("w", param)], "rule": name, **scale}], lr=1.0, weight_decay=0.0)
    state: Any = None
    total = torch.zeros_like(param)
    for step in range(3):
        param.grad = torch.randn(4, 9, generator=torch.Generator().manual_seed(step)).double()
        clip([param])
        clipped = param.grad.clone()
        optimizer.step()
        assert torch.equal(param.grad, clipped)
        update, state = rule.update(clipped, state)
        total -= update
    torch.testing.assert_close(param.detach(), total, rtol=1e-9, atol=1e-12)  # one more addition a step, float64


@pytest.mark.parametrize("name", ["polargrad", "ssd"])
def test_updates_as_long_as_the_gradient_are_clipped_with_it(name: str) -> None:
    free = updates(name, lambda params: None)
    half = updates(name, lambda params: torch._foreach_mul_([p.grad for p in params], 0.5))
    for key in ("wide_too", "stack", "one"):  # the group without decay
        torch.testing.assert_close(half[key], free[key] / 2, rtol=1e-9, atol=1e-12)  # homogeneous of degree one


@pytest.mark.filterwarnings("ignore:the gradient of:RuntimeWarning")
def test_clipping_an_infinite_norm_makes_nans_that_skip_the_step() -> None:
    """error_if_nonfinite is off by default, so that one bad gradient poisons all; the step is skipped whole."""
    params = parameters()
    optimizer = optimizer_of("spectral", params)
    run(optimizer, params, 0, 1)
    before = {key: param.detach().clone() for key, param in params.items()}
    set_gradients(params, 1)
    assert params["tall"].grad is not None
    params["tall"].grad[0, 0] = torch.inf
    clip_grad_norm_(params.values(), 1.0)
    optimizer.step()
    assert optimizer.skipped_steps == 1 and all(torch.equal(params[key], old) for key, old in before.items())
