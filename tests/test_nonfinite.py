"""A non-finite gradient never enters the state: the step changes nothing, is counted and reported."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from optimizers import ALL_RULES, equal, optimizer_of, parameters, run, set_gradients, snapshot

import orthoopt.optimizer
from orthoopt.nonfinite import finite_gate, first_nonfinite, without_nonfinite

BAD = (math.nan, math.inf, -math.inf)


@pytest.fixture(params=["host", "device"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The host may look at values, or (as on accelerators) a gate stays on the device; both run here."""
    if request.param == "device":
        monkeypatch.setattr(orthoopt.nonfinite, "host_can_read", lambda device: False)
    return request.param


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ALL_RULES)
@pytest.mark.filterwarnings("ignore:the gradient of:RuntimeWarning")
def test_a_bad_step_changes_nothing_and_is_counted(name: str, path: str, dtype: torch.dtype) -> None:
    params = parameters(dtype)
    optimizer = optimizer_of(name, params)
    run(optimizer, params, 0, 2)
    before = snapshot(optimizer)
    for count, bad in enumerate(BAD, 1):
        set_gradients(params, 7)
        grad = params["stack"].grad
        assert grad is not None
        grad[1, 2, 0] = bad
        optimizer.step()
        assert equal(before, snapshot(optimizer))
        assert optimizer.skipped_steps == count
    # What follows is as if nothing had been.
    other_params = parameters(dtype)
    other = optimizer_of(name, other_params)
    run(other, other_params, 0, 2)
    run(optimizer, params, 2, 4)
    run(other, other_params, 2, 4)
    assert equal(snapshot(optimizer), snapshot(other))


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.filterwarnings("ignore:the gradient of:RuntimeWarning")
@pytest.mark.parametrize("name", ["row_norm", "auon"])
def test_a_graph_outlives_a_bad_step(name: str, steps: int) -> None:
    """Nothing has changed, so autograd must not say that something has; after a good step it must."""
    params = parameters()
    optimizer = optimizer_of(name, params)
    run(optimizer, params, 0, steps)
    loss = sum((param * param).sum() for param in params.values())
    set_gradients(params, 7)
    params["wide"].grad.fill_(math.nan)
    optimizer.step()
    loss.backward(retain_graph=True)
    set_gradients(params, 8)
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("name", ALL_RULES)
@pytest.mark.filterwarnings("ignore:the gradient of:RuntimeWarning")
def test_a_bad_first_step_leaves_an_optimizer_as_new(name: str, path: str) -> None:
    params, other_params = parameters(), parameters()
    optimizer, other = optimizer_of(name, params), optimizer_of(name, other_params)
    set_gradients(params, 5)
    params["wide"].grad.fill_(math.nan)
    optimizer.step()
    run(optimizer, params, 0, 2)
    run(other, other_params, 0, 2)
    assert equal(snapshot(optimizer), snapshot(other))


@pytest.mark.parametrize("name", ALL_RULES)
def test_the_gated_path_gives_what_the_host_path_gives(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    gated, plain = parameters(torch.float64), parameters(torch.float64)
    run(optimizer_of(name, plain), plain, 0, 4)
    monkeypatch.setattr(orthoopt.nonfinite, "host_can_read", lambda device: False)
    run(optimizer_of(name, gated), gated, 0, 4)
    for key in plain:
        # Another order of operations: float64 rounding, times the slope of the iteration in weak directions.
        torch.testing.assert_close(gated[key], plain[key], atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("name", ALL_RULES)
def test_raise_names_the_parameter_and_changes_nothing(name: str, path: str) -> None:
    params = parameters()
    optimizer = optimizer_of(name, params, nonfinite="raise")
    run(optimizer, params, 0, 1)
    before = snapshot(optimizer)
    set_gradients(params, 1)
    params["tall"].grad[0, 0] = math.inf
    with pytest.raises(FloatingPointError, match="gradient of tall is not finite"):
        optimizer.step()
    assert equal(before, snapshot(optimizer)) and optimizer.skipped_steps == 0


def test_skips_are_reported_first_and_then_rarely() -> None:
    params = parameters()
    optimizer = optimizer_of("spectral", params)
    set_gradients(params, 0)
    params["tall"].grad[0, 0] = math.nan
    with pytest.warns(RuntimeWarning, match=r"gradient of tall is not finite.*\(1 skipped") as caught:
        for _ in range(5):
            optimizer.step()
    assert len(caught) == 1 and optimizer.skipped_steps == 5


def test_an_unknown_policy_is_named() -> None:
    with pytest.raises(ValueError, match="nonfinite='clip' must be one of 'skip', 'raise', 'ignore'"):
        optimizer_of("spectral", parameters(), nonfinite="clip")


@pytest.mark.parametrize("name", ALL_RULES)
def test_ignoring_looks_at_nothing_and_steps_all_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ignoring, skipping = parameters(), parameters()
    run(optimizer_of(name, skipping), skipping, 0, 2)
    for look in ("first_nonfinite", "finite_gate"):
        monkeypatch.setattr(orthoopt.admission, look, lambda *given: pytest.fail("a gradient was looked at"))
    run(optimizer_of(name, ignoring, nonfinite="ignore"), ignoring, 0, 2)
    for key in skipping:
        assert torch.equal(ignoring[key], skipping[key])


def test_an_ignored_gradient_enters_the_state() -> None:
    params = parameters()
    optimizer = optimizer_of("spectral", params, nonfinite="ignore")
    set_gradients(params, 0)
    params["tall"].grad[0, 0] = math.nan
    optimizer.step()
    assert optimizer.state[params["tall"]]["momentum_buffer"].isnan().any() and optimizer.skipped_steps == 0


@given(
    st.lists(
        st.lists(
            st.floats(width=32)
            | st.sampled_from([3e38, -3e38, math.nan, math.inf, -math.inf, 1e-45]),
            min_size=1, max_size=8,
        ),
        min_size=1, max_size=4,
    ),
    st.sampled_from([torch.float16, torch.bfloat16, torch.float32]),
)  # fmt: skip
@settings(max_examples=200)
def test_finding_agrees_with_looking_at_every_value(values: list[list[float]], dtype: torch.dtype) -> None:
    """Sums of large finite values overflow, and infinities cancel: neither may fool it."""
    tensors = [torch.tensor(some, dtype=torch.float64).to(dtype) for some in values]
    bad = [i for i, tensor in enumerate(tensors) if not all(math.isfinite(v) for v in tensor.tolist())]
    assert first_nonfinite(tensors) == (bad[0] if bad else None)
    gate = finite_gate(tensors)
    assert float(gate) == (0.0 if bad else 1.0)
    cleaned = without_nonfinite(tensors, gate)
    expected = [torch.zeros_like(tensor) for tensor in tensors] if bad else tensors
    assert all(torch.equal(a, b) for a, b in zip(cleaned, expected, strict=True))
