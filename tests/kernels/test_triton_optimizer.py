"""Whole steps of the optimizer on Triton kernels, in the interpreter, as a GPU takes them."""

from __future__ import annotations

import math
from types import ModuleType

import pytest
import torch
from interpreter import interpreted
from optimizers import equal, optimizer_of, parameters, run, set_gradients, snapshot

import orthoopt.newton_schulz
import orthoopt.optimizer
from orthoopt.kernels import triton_rows, triton_steps

pytestmark = interpreted

# Root and the hybrids call the same kernels as these; the interpreter takes its time.
RULES = {
    "spectral": {"momentum_into", "small_gram", "subtract_updates"},
    "right_spectral": {"subtract_updates", "small_gram"},  # without Nesterov a buffer may be its own signal
    "row_norm": {"row_norm_step"},
    "auon": {"auon_step"},
    "adamw": set(),
    "trion": {"small_gram", "subtract_updates"},
}
# Directions by the Gram kernel are rounded to float16, 1e-3 of them and more where singular values are small.
TOLERANCE = {"spectral": 1e-2, "trion": 1e-2}


@pytest.mark.parametrize("name", RULES)
def test_steps_are_the_float64_steps_and_bad_ones_change_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    called: set[str] = set()

    def noted(module: ModuleType, function: str) -> None:
        kernel = getattr(module, function)
        monkeypatch.setattr(module, function, lambda *a, **k: called.add(function) or kernel(*a, **k))

    for function in ("momentum_into", "subtract_updates", "finite_gate"):
        noted(triton_steps, function)
    for function in ("row_norm_step", "auon_step"):
        noted(triton_rows, function)
    noted(orthoopt.newton_schulz, "small_gram")
    monkeypatch.setattr(orthoopt.nonfinite, "host_can_read", lambda device: False)  # as for an accelerator

    start, exact, params = parameters(torch.float64), parameters(torch.float64), parameters()
    run(optimizer_of(name, exact), exact, 0, 2)
    called.clear()
    optimizer = optimizer_of(name, params)
    run(optimizer, params, 0, 2)
    assert called >= RULES[name] | {"finite_gate"}
    for key, wanted in exact.items():
        moved = (params[key].double() - wanted).norm() / (wanted - start[key]).norm()
        assert moved < TOLERANCE.get(name, 1e-4), key

    before = snapshot(optimizer)
    set_gradients(params, 2)
    params["stack"].grad[0, 0, 0] = math.nan
    optimizer.step()
    assert equal(before, snapshot(optimizer)) and optimizer.skipped_steps == 1
