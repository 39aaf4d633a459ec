"""Muon against torch's own, its momentum forms against each other, and NorMuon against its algorithm."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import matrix, relative_error
from torch import Tensor, nn
from torch.optim import _muon

from orthoopt import OrthoOpt, rules

TABLE = (3.4445, -4.7750, 2.0315)


def torch_iteration_in(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let torch.optim.Muon iterate in this dtype instead of bfloat16, its arithmetic left as it is.

    On a copy: without Nesterov momentum torch would else normalize its own buffer (pytorch/pytorch#194664).
    """
    bfloat16 = Tensor.bfloat16
    monkeypatch.setattr(Tensor, "bfloat16", lambda self: self.to(dtype, copy=True))
    x = torch.randn(3, 5)
    assert _muon._zeropower_via_newtonschulz(x, TABLE, 5, 1e-7).dtype is dtype
    assert bfloat16(x).dtype is torch.bfloat16


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("adjust", ["original", "match_rms_adamw"])
@pytest.mark.parametrize("shape", [(24, 64), (64, 24), (32, 32)])
def test_torchs_muon_with_both_iterations_in_float32(
    shape: tuple[int, int], adjust: str, nesterov: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch_iteration_in(torch.float32, monkeypatch)
    start = torch.randn(shape)
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    scale = {"original": "shape_scaling"}.get(adjust, adjust)
    a = OrthoOpt(
        [{"params": [ours], "rule": "spectral", "scale": scale, "nesterov": nesterov}], lr=0.02, weight_decay=0.1
    )
    b = torch.optim.Muon([theirs], lr=0.02, weight_decay=0.1, nesterov=nesterov, adjust_lr_fn=adjust)
    for _ in range(10):
        grad = torch.randn(shape)
        ours.grad, theirs.grad = grad, grad.clone()
        a.step()
        b.step()
    # float32 rounding of fifteen products, magnified by a slope of at most 485 in the weakest directions.
    assert relative_error(ours.detach() - start, theirs.detach() - start) < 1e-4


@given(st.integers(2, 12), st.integers(2, 12), st.booleans(), st.sampled_from([0.0, 0.5, 0.95]), st.integers(0, 2**31))
def test_the_two_momentum_forms_give_one_muon(rows: int, cols: int, nesterov: bool, beta: float, seed: int) -> None:
    """I1: the averaging form is 1 − β times the summing form, and the polar factor forgets the factor."""
    rule = rules.get("spectral")
    states: list = [None, None]
    for step in range(4):
        grad = matrix(rows, cols, "even", seed + step)
        updates = []
        for i, form in enumerate(("ema", "heavy_ball")):
            update, states[i] = rule.update(grad, states[i], momentum=beta, nesterov=nesterov, momentum_form=form)
            updates.append(update)
        assert relative_error(updates[0], updates[1]) < 1e-10  # sums of four matrices can be nearly singular
    torch.testing.assert_close(
        states[0]["momentum_buffer"], (1 - beta) * states[1]["momentum_buffer"], atol=1e-13, rtol=1e-12
    )


def test_normuon_follows_its_algorithm_step_by_step() -> None:
    """arXiv 2510.05491, algorithm 1: running mean square of each row of the polar factor, then the norm restored."""
    rule, source = rules.get("spectral"), torch.Generator().manual_seed(0)
    buffer, squares, state = torch.zeros(12, 20, dtype=torch.float64), torch.zeros(12, 1, dtype=torch.float64), None
    for step in range(20):
        grad = torch.randn(12, 20, generator=source, dtype=torch.float64) * torch.logspace(0, -2, 12)[:, None].double()
        buffer = 0.95 * buffer + 0.05 * grad
        x = 0.05 * grad + 0.95 * buffer
        x = x / x.norm()
        for _ in range(5):
            gram = x @ x.T
            x = TABLE[0] * x + (TABLE[1] * gram + TABLE[2] * gram @ gram) @ x
        squares = 0.9 * squares + 0.1 * (x * x).mean(1, keepdim=True)
        root = squares.sqrt()
        scaled = x / (root + 1e-5 * squares.mean().sqrt())
        expected = scaled * x.norm() / scaled.norm()
        update, state = rule.update(grad, state, second_moment="rows", beta2=0.9)
        assert relative_error(update, expected) < 1e-9, step
        torch.testing.assert_close(state["row_exp_avg_sq"], squares, atol=1e-12, rtol=1e-9)
        assert math.isclose(float(update.norm()), float(x.norm()), rel_tol=1e-9)


def test_normuon_evens_out_rows() -> None:
    """A tall polar factor has rows of unequal length; a constant gradient leaves them equal."""
    x = matrix(40, 8, "gaussian", 3) * torch.logspace(0, -1, 40, dtype=torch.float64)[:, None]
    plain, _ = rules.get("spectral").update(x)
    even, _ = rules.get("spectral").update(x, second_moment="rows")

    def spread(u: Tensor) -> float:
        return float(u.norm(dim=1).max() / u.norm(dim=1).min())

    assert spread(plain) > 3 and spread(even) < 1.001


def test_a_row_without_gradients_stays_zero_under_normuon() -> None:
    x = matrix(6, 9, "gaussian", 0)
    x[2] = 0
    update, _ = rules.get("spectral").update(x, second_moment="rows")
    assert torch.equal(update[2], torch.zeros(9, dtype=torch.float64)) and update.isfinite().all()
