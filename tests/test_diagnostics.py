"""Diagnostics against direct computation in float64; nothing is computed unless it is asked for."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from optimizers import MATRIX_RULES, equal, optimizer_of, parameters, run, set_gradients, snapshot
from spectra import SPECTRA, matrix
from torch import Tensor, nn

import orthoopt
from orthoopt import OrthoOpt, rules
from orthoopt.diagnostics import figures_of

LR = 0.01


def rms(tensors: list[Tensor]) -> float:
    return math.sqrt(sum(t.double().square().sum().item() for t in tensors) / sum(t.numel() for t in tensors))


@pytest.mark.parametrize("name", MATRIX_RULES)
def test_figures_are_those_of_the_updates(name: str) -> None:
    params = parameters(torch.float64)
    optimizer = OrthoOpt(
        [
            {
                "params": [(key, params[key]) for key in ("wide", "wide_too", "stack")],
                "rule": name,
                "role": "attention",
            },
            {"params": [("tall", params["tall"])], "rule": "adamw", "role": "vector"},
        ],
        lr=LR,
        weight_decay=0.0,
    )
    run(optimizer, params, 0, 2)
    before = {key: param.detach().clone() for key, param in params.items()}
    with orthoopt.recording(optimizer):
        run(optimizer, params, 2, 3)
    seen = optimizer.diagnostics()
    updates = {key: (before[key] - param.detach()) / LR for key, param in params.items()}
    for role, keys in {"attention": ["wide", "wide_too", "stack"], "vector": ["tall"]}.items():
        # Differences of float64 parameters near one, over lr: 1e-14 of entries near 0.1.
        assert math.isclose(seen[f"{role}/update_rms"], rms([updates[key] for key in keys]), rel_tol=1e-9)
        grads = [grad for key in keys if (grad := params[key].grad) is not None]
        assert math.isclose(seen[f"{role}/gradient_rms"], rms(grads), rel_tol=1e-12)
        assert math.isclose(seen[f"{role}/weight_rms"], rms([before[key] for key in keys]), rel_tol=1e-12)
    matrices = [updates["wide"], updates["wide_too"], *updates["stack"]]
    norms = [torch.linalg.svdvals(x) for x in matrices]
    largest = max(s.max().item() for s in norms)
    assert seen["attention/update_norm"] <= largest * (1 + 1e-9) and seen["attention/update_norm"] > 0.9 * largest
    assert seen["attention/update_bound"] >= largest * (1 - 1e-9)
    # By singular values: X has s·√m/‖s‖, and ‖XXᵀ − I‖_F² sums their squares less one.
    errors = [((s.square() * len(s) / s.square().sum() - 1).square().sum() / len(s)).sqrt().item() for s in norms]
    assert math.isclose(seen["attention/orthogonality"], sum(errors) / len(errors), rel_tol=1e-6, abs_tol=1e-6)
    assert "vector/update_norm" not in seen
    size = sum(t.numel() * t.element_size() for t in optimizer.state[params["tall"]].values())
    assert seen["vector/state_bytes"] == size
    assert seen["state_bytes"] == size + seen["attention/state_bytes"]
    assert all(type(value) is float for value in seen.values())


@given(
    rows=st.integers(1, 12), cols=st.integers(1, 12), spectrum=st.sampled_from(SPECTRA), seed=st.integers(0, 99),
    exponent=st.integers(-30, 30),
)  # fmt: skip
def test_norms_are_bracketed_at_every_scale(rows: int, cols: int, spectrum: str, seed: int, exponent: int) -> None:
    x = matrix(rows, cols, spectrum, seed, (2,)) * 10.0**exponent
    low, high, _ = figures_of(x)
    true = torch.linalg.matrix_norm(x, 2)
    # Power iterations stay below but for float64; twelve products with XXᵀ leave 0.9 of the largest even where many
    # singular values are close to it, for then any mixture of them is as long.
    assert bool((low <= true * (1 + 1e-9)).all()) and bool((low >= 0.9 * true).all())
    assert bool((high >= true * (1 - 1e-9)).all())


def test_polar_factors_are_orthogonal_and_zeros_are_finite() -> None:
    _, bound, error = figures_of(torch.linalg.qr(torch.randn(9, 4).double())[0])
    assert error.item() < 1e-12 and bound.item() <= 2 + 1e-12  # Frobenius' is √4
    assert figures_of(torch.zeros(3, 4, 5)).isfinite().all()


def test_recording_changes_parameters_by_rounding_alone_and_costs_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    params, others = parameters(), parameters()
    optimizer, other = optimizer_of("spectral", params), optimizer_of("spectral", others)
    with orthoopt.recording(optimizer):
        run(optimizer, params, 0, 3)
    run(other, others, 0, 3)
    for key in params:
        torch.testing.assert_close(params[key], others[key], rtol=1e-6, atol=1e-7)  # float32
    monkeypatch.setattr("orthoopt.staging.compute", None)  # an unrecorded step never comes there
    run(optimizer, params, 3, 4)


def test_a_step_that_is_skipped_records_nothing_and_is_counted() -> None:
    params = parameters()
    optimizer = optimizer_of("spectral", params)
    assert optimizer.diagnostics() == {
        "spectral/state_bytes": 0.0, "state_bytes": 0.0, "skipped_steps": 0.0, "large_updates": 0.0,
    }  # fmt: skip
    set_gradients(params, 0)
    assert params["tall"].grad is not None
    params["tall"].grad[0, 0] = math.nan
    with orthoopt.recording(optimizer), pytest.warns(RuntimeWarning, match="not finite"):
        optimizer.step()
    seen = optimizer.diagnostics()
    assert seen["skipped_steps"] == 1.0 and "spectral/update_rms" not in seen


def test_limits_are_counted_and_bfloat16_state_is_seen_small() -> None:
    param = nn.Parameter(torch.zeros(8, 20))
    optimizer = OrthoOpt(
        [{"params": [("w", param)], "rule": "row_norm", "max_update_rms": 0.5, "state_dtype": "bfloat16"}]
    )
    param.grad = torch.randn(8, 20)
    with pytest.warns(RuntimeWarning, match="update of w"):
        optimizer.step()
    assert optimizer.diagnostics()["large_updates"] == 1.0
    optimizer.param_groups[0]["max_update_rms"] = None
    with orthoopt.recording(optimizer):
        optimizer.step()
    seen = optimizer.diagnostics()
    assert seen["state_bytes"] == 2 * 160 + 8  # momentum, and the noise's position
    assert math.isclose(seen["row_norm/update_rms"], 0.2, rel_tol=1e-4)  # row_norm's damping, 1e-5


def test_every_rule_and_view_can_be_recorded() -> None:
    for name in rules.names():
        params = parameters(torch.bfloat16)
        optimizer = optimizer_of(name, params, maximize=True)
        before = snapshot(optimizer)
        with orthoopt.recording(optimizer):
            run(optimizer, params, 0, 2)
        assert all(math.isfinite(value) for value in optimizer.diagnostics().values()), name
        assert not equal(before, snapshot(optimizer))
