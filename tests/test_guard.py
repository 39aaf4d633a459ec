"""A limit on updates: a parameter whose update is longer skips its step alone, or nothing at all happens."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from optimizers import ALL_RULES, equal, groups_of, optimizer_of, parameters, run, set_gradients, snapshot
from torch import nn

import orthoopt.guard
import orthoopt.optimizer
from orthoopt import OrthoOpt, rules
from orthoopt.guard import promised_rms

QUIET = pytest.mark.filterwarnings("ignore:the update of:RuntimeWarning")


@pytest.fixture(params=["host", "device"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The host may look at values, or (as on accelerators) flags stay on the device; both run here."""
    if request.param == "device":
        monkeypatch.setattr(orthoopt.nonfinite, "host_can_read", lambda device: False)
        monkeypatch.setattr(orthoopt.guard, "host_can_read", lambda device: False)
    return request.param


@pytest.mark.parametrize("name", ALL_RULES)
def test_a_limit_that_is_never_met_changes_next_to_nothing(name: str, path: str) -> None:
    free, limited = parameters(torch.float64), parameters(torch.float64)
    run(optimizer_of(name, free), free, 0, 4)
    optimizer = optimizer_of(name, limited, max_update_rms=1e6)
    run(optimizer, limited, 0, 4)
    assert optimizer.large_updates == []
    for key in free:
        # The scale is rounded into the update before the learning rate: float64, through a few steps.
        torch.testing.assert_close(limited[key], free[key], rtol=1e-9, atol=1e-9)


@QUIET
@pytest.mark.parametrize("name", ALL_RULES)
def test_a_long_update_leaves_its_parameter_and_its_state_alone(name: str, path: str) -> None:
    params, others = parameters(), parameters()
    optimizer, other = optimizer_of(name, params, max_update_rms=1e6), optimizer_of(name, others, max_update_rms=1e6)
    run(optimizer, params, 0, 2)
    run(other, others, 0, 2)
    optimizer.param_groups[0]["max_update_rms"] = 1e-6  # for "wide" and "tall"
    before = [param.detach().clone() for param in params.values()]
    kept = [{k: v.clone() for k, v in optimizer.state[params[key]].items()} for key in ("wide", "tall")]
    set_gradients(params, 2)
    set_gradients(others, 2)
    optimizer.step()
    for key in ("wide", "tall"):
        others[key].grad = None
    other.step()
    for key, old, state in zip(("wide", "tall"), before[:2], kept, strict=True):
        assert torch.equal(params[key], old)
        now = optimizer.state[params[key]]
        assert now.keys() == state.keys() and all(torch.equal(now[k], v) for k, v in state.items())
    # The rest went on as it would have without those two. In one batch or another: float32, through five iterations.
    for key in ("wide_too", "stack", "one"):
        torch.testing.assert_close(params[key], others[key], rtol=1e-5, atol=1e-5)
    reports = optimizer.large_updates
    assert [(r.parameter, r.rule, r.step, r.times) for r in reports] == [("wide", name, 3, 1), ("tall", name, 3, 1)]
    assert all(r.rms > r.limit > 0 for r in reports)


@QUIET
@pytest.mark.parametrize("name", ALL_RULES)
def test_a_first_step_that_is_too_long_is_as_if_it_had_no_gradient(name: str, path: str) -> None:
    params, others = parameters(), parameters()
    optimizer, other = optimizer_of(name, params, max_update_rms=1e-6), optimizer_of(name, others)
    set_gradients(params, 7)
    optimizer.step()
    for group in optimizer.param_groups:
        group["max_update_rms"] = None
    run(optimizer, params, 0, 2)
    run(other, others, 0, 2)
    assert equal(snapshot(optimizer), snapshot(other))


@pytest.mark.parametrize("options", [{}, {"state_dtype": "bfloat16"}])
@pytest.mark.parametrize("name", ALL_RULES)
def test_raising_comes_before_anything_is_written(
    name: str, path: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orthoopt.buckets.MAX_ELEMENTS", 40)  # several portions, the last of which is bad
    params = parameters()
    groups = groups_of(name, params)
    groups[1] |= {"max_update_rms": 1e6, "large_update": "raise", "role": "attention", **options}
    optimizer = OrthoOpt(groups, lr=0.01)
    run(optimizer, params, 0, 2)
    before = snapshot(optimizer)
    optimizer.param_groups[1]["max_update_rms"] = 1e-6
    set_gradients(params, 2)
    message = rf"update of wide_too \(rule '{name}', role 'attention'\) has RMS .*, the limit is .*, in step 3; nothing"
    with pytest.raises(FloatingPointError, match=message):
        optimizer.step()
    assert equal(before, snapshot(optimizer))


def test_the_promise_is_kept_by_every_rule_that_has_a_length() -> None:
    """A full-rank Gaussian gradient makes an update as long as promised, so limits mean the same for all rules."""
    for name in ALL_RULES:
        rule = rules.get(name)
        if not rule.scale_invariant(rule.defaults):
            continue
        param = nn.Parameter(torch.zeros(24, 60))
        param.grad = torch.randn(24, 60, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            optimizer = OrthoOpt([{"params": [("w", param)], "rule": name, "max_update_rms": 1.5}], lr=1.0)
            optimizer.step()
        assert optimizer.large_updates == [], name
        assert param.abs().max() > 0, name


@QUIET
def test_the_limit_is_a_multiple_of_the_promise() -> None:
    """row_norm's update of (8, 20) has RMS 1/√20 to rounding, whatever the gradient; match_rms_adamw makes it 0.2."""
    for limit, moves in ((0.99, False), (1.01, True)):
        param = nn.Parameter(torch.zeros(8, 20))
        param.grad = torch.randn(8, 20)
        optimizer = OrthoOpt([{"params": [("w", param)], "rule": "row_norm", "max_update_rms": limit}])
        optimizer.step()
        assert bool(param.any()) == moves
        if not moves:
            (report,) = optimizer.large_updates
            assert math.isclose(report.limit, 0.2 * limit, rel_tol=1e-9)
            assert math.isclose(report.rms, 0.2, rel_tol=1e-4)  # row_norm's damping, 1e-5


def test_a_nan_is_no_short_update(path: str) -> None:
    params = parameters()
    optimizer = optimizer_of("spectral", params, nonfinite="ignore", max_update_rms=5.0)
    run(optimizer, params, 0, 1)
    set_gradients(params, 1)
    assert params["tall"].grad is not None
    params["tall"].grad[0, 0] = math.nan
    before = params["tall"].detach().clone()
    if path == "host":
        with pytest.warns(RuntimeWarning, match=r"update of tall .*role 'unknown'.* has RMS nan"):
            optimizer.step()
    else:
        optimizer.step()
    assert torch.equal(before, params["tall"])
    assert bool(torch.isfinite(optimizer.state[params["tall"]]["momentum_buffer"]).all())
    run(optimizer, params, 2, 4)
    assert all(bool(torch.isfinite(param).all()) for param in params.values())


def test_a_stack_of_pieces_promises_what_they_do_together() -> None:
    param = nn.Parameter(torch.zeros(20, 6))
    group = {
        "params": [("w", param)],
        "rule": "spectral",
        "view": "split(4,16)",
        "scale": "none",
        "max_update_rms": 1.0,
    }
    optimizer = OrthoOpt([group])
    from orthoopt._work import collect
    from orthoopt.staging import Entry

    (part,) = collect(optimizer.param_groups[0], {param: torch.ones_like(param)})
    entry = Entry(part, "w", param, part.grads[0], {}, None)
    # Polar factors of 4 and 6 singular values, each 1: ‖U‖² = 10 over 120 entries.
    assert math.isclose(promised_rms(entry), math.sqrt(10 / 120), rel_tol=1e-12)
