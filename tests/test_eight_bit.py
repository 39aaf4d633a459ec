"""Momenta in eight bits: refused without torchao, close to float32 with it, resumed to the bit."""

from __future__ import annotations

import copy
import importlib.util
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from optimizers import equal, snapshot
from torch import nn

from orthoopt import OrthoOpt
from orthoopt.eight_bit import BLOCK, dequantize, quantize

HAS_TORCHAO = importlib.util.find_spec("torchao") is not None
NEEDS = pytest.mark.skipif(not HAS_TORCHAO, reason="torchao is not installed")
SHAPES = {"wide": (40, 130), "stack": (3, 48, 40), "small": (8, 8), "vector": (5000,)}


def optimizer_of(rule: str, params: dict[str, nn.Parameter], **options: Any) -> OrthoOpt:
    groups = [
        {"params": [(key, param) for key, param in params.items() if param.ndim > 1], "rule": rule},
        {"params": [("vector", params["vector"])], "rule": "adamw"},
    ]
    return OrthoOpt(groups, lr=0.01, **options)


def parameters() -> dict[str, nn.Parameter]:
    torch.manual_seed(0)
    return {key: nn.Parameter(torch.randn(shape)) for key, shape in SHAPES.items()}


def run(optimizer: OrthoOpt, params: dict[str, nn.Parameter], first: int, last: int, scale: float = 1.0) -> None:
    for step in range(first, last):
        torch.manual_seed(step)
        for param in params.values():
            param.grad = scale * torch.randn_like(param)
        optimizer.step()


@pytest.mark.skipif(HAS_TORCHAO, reason="torchao is installed")
def test_without_torchao_it_is_refused_with_the_command() -> None:
    with pytest.raises(ImportError, match=r"state_dtype='int8'.* needs torchao, .*: pip install torchao"):
        optimizer_of("spectral", parameters(), state_dtype="int8")


@NEEDS
@settings(max_examples=40)
@given(count=st.integers(1, 700), exponent=st.integers(-35, 30), seed=st.integers(0, 99))
def test_every_entry_is_within_half_a_step_of_the_table_whatever_the_scale(
    count: int, exponent: int, seed: int
) -> None:
    x = torch.randn(count, generator=torch.Generator().manual_seed(seed)) * 10.0**exponent
    codes, scales = quantize(x)
    assert codes.dtype is torch.uint8 and codes.shape == x.shape and len(scales) == -(-count // BLOCK)
    peaks = scales.repeat_interleave(BLOCK)[:count].double()
    # The table's widest step, between −1/2 and −1 of the peak, is 0.9/64; its lowest entry −0.993.
    assert bool(((dequantize(codes, scales).double() - x.double()).abs() <= 0.0071 * peaks * (1 + 1e-5)).all())
    assert not bool(dequantize(*quantize(torch.zeros(count))).any())


@NEEDS
@pytest.mark.parametrize("rule", ["spectral", "row_norm", "trion", "polargrad", "adamw"])
def test_updates_are_near_those_of_float32(rule: str) -> None:
    small, wide = parameters(), parameters()
    optimizer, other = optimizer_of(rule, small, state_dtype="int8"), optimizer_of(rule, wide)
    start = parameters()
    run(optimizer, small, 0, 5)
    run(other, wide, 0, 5)
    for key, begun in start.items():
        moved, apart = wide[key].detach() - begun.detach(), small[key].detach() - wide[key].detach()
        # 0.7% of a block's peak at most, which is some 3 deviations: 1% of an entry, that weak directions amplify
        # some times. Trion also chooses other columns where two are nearly as long.
        assert apart.norm() < 0.1 * moved.norm(), key
    state = optimizer.state[small["wide"]]
    kept = "exp_avg" if rule == "adamw" else "momentum_buffer"
    assert state[kept].dtype is torch.uint8 and state[kept].shape == small["wide"].shape
    assert optimizer.state[small["small"]][kept].dtype is torch.float32  # too small to gain
    assert optimizer.state[small["vector"]]["exp_avg_sq"].dtype is torch.float32  # would be divided by


@NEEDS
def test_resuming_is_bitwise_and_options_can_be_taken_back() -> None:
    params = parameters()
    optimizer = optimizer_of("spectral", params, state_dtype="int8")
    run(optimizer, params, 0, 3)
    copies = copy.deepcopy(params)
    resumed = optimizer_of("spectral", copies)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    run(optimizer, params, 3, 5)
    run(resumed, copies, 3, 5)
    assert equal(snapshot(optimizer), snapshot(resumed))
    for group in optimizer.param_groups:
        group["state_dtype"] = "auto"
    run(optimizer, params, 5, 6)
    tensors = [value for state in optimizer.state.values() for value in state.values()]
    assert {tensor.dtype for tensor in tensors} == {torch.float32}
    assert all("rounding" not in state and len(state) in (1, 3) for state in optimizer.state.values())


@NEEDS
def test_a_skipped_step_changes_no_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """Codes of codes need not be the same, so they are not made where nothing moved."""
    monkeypatch.setattr("orthoopt.nonfinite.host_can_read", lambda device: False)
    params = parameters()
    optimizer = optimizer_of("spectral", params, state_dtype="int8")
    run(optimizer, params, 0, 3)
    before = snapshot(optimizer)
    for param in params.values():
        param.grad = torch.full_like(param, torch.nan)
    optimizer.step()
    assert equal(before, snapshot(optimizer)) and optimizer.skipped_steps == 1
