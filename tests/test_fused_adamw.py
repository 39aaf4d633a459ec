"""The adamw rule on torch's fused kernel, as GPUs take it; here the same kernel's CPU form stands in."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from optimizers import equal, parameters, run, set_gradients, snapshot
from torch import Tensor, nn

from orthoopt import OrthoOpt, weight_decay
from orthoopt.rules import adamw


def optimizer_of(params: dict[str, nn.Parameter], **options: Any) -> OrthoOpt:
    return OrthoOpt([{"params": list(params.items()), "rule": "adamw"}], **options)


@pytest.fixture
def fused_here(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Lets CPUs take the fused kernel; counts its calls."""
    calls: list[int] = []
    kernel = torch._fused_adamw_
    monkeypatch.setattr(adamw, "_FUSED_ON", ("cpu",))
    monkeypatch.setattr(torch, "_fused_adamw_", lambda *a, **k: calls.append(len(a[0])) or kernel(*a, **k))
    return calls


@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("mode", weight_decay.MODES)
@pytest.mark.parametrize("lr", [0.01, torch.tensor(0.01)])
def test_it_is_the_rule(fused_here: list[int], lr: float | Tensor, mode: str, decay: float, maximize: bool) -> None:
    fused, plain = parameters(), parameters(torch.float64)  # the kernel is for float32 alone
    options = {"lr": lr, "weight_decay": decay, "weight_decay_mode": mode, "maximize": maximize}
    for params in (fused, plain):
        run(optimizer_of(params, **options), params, 0, 4)
    assert len(fused_here) == (0 if mode == "cautious" and decay else 4)
    for key, param in plain.items():
        # Four updates of at most the learning rate each, in float32 beside numbers of order one.
        torch.testing.assert_close(fused[key].double(), param, atol=1e-6, rtol=1e-6)


def test_a_gate_that_is_shut_changes_nothing_at_all(fused_here: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orthoopt.nonfinite.host_can_read", lambda device: False)  # as for an accelerator
    params = parameters()
    optimizer = optimizer_of(params, lr=0.01)
    run(optimizer, params, 0, 2)
    before = snapshot(optimizer)
    set_gradients(params, 2)
    params["wide"].grad[1, 2] = torch.nan
    optimizer.step()
    assert equal(before, snapshot(optimizer)) and optimizer.skipped_steps == 1
    run(optimizer, params, 3, 4)
    assert not equal(before, snapshot(optimizer)) and len(fused_here) == 4
    assert all(float(state["step"]) == 3 for state in optimizer.state.values())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes_take_the_operations(dtype: torch.dtype) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(adamw, "_FUSED_ON", ("cpu",))
        patch.setattr(torch, "_fused_adamw_", lambda *a, **k: pytest.fail("the fused kernel was taken"))
        params = parameters(dtype)
        run(optimizer_of(params, lr=0.01), params, 0, 1)
