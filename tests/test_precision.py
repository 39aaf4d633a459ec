"""Mixed precision: autocast, master weights and loss scaling belong to the framework; nothing of ours casts."""

from __future__ import annotations

import math

import pytest
import torch
from optimizers import ALL_RULES, equal, optimizer_of, parameters, run, set_gradients, snapshot
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

import orthoopt
from orthoopt import OrthoOpt


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))


def loss_of(model: nn.Module, step: int, dtype: torch.dtype = torch.float32) -> Tensor:
    x = torch.randn(5, 6, generator=torch.Generator().manual_seed(step))
    return model(x.to(dtype)).float().square().mean()


@pytest.mark.parametrize("enabled", [True, False])
@pytest.mark.parametrize("name", ALL_RULES)
def test_a_step_under_autocast_is_the_same_step(name: str, enabled: bool) -> None:
    """People leave ``opt.step()`` inside the block: products must not become bfloat16 for that."""
    params, others = parameters(), parameters()
    optimizer, other = optimizer_of(name, params), optimizer_of(name, others)
    with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
        run(optimizer, params, 0, 2)
    run(other, others, 0, 2)
    assert equal(snapshot(optimizer), snapshot(other))


def test_autocast_leaves_master_weights_and_state_in_float32() -> None:
    model = network()
    optimizer = orthoopt.Muon(model, lr=0.01)
    for step in range(3):
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_of(model, step)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    tensors = [*model.parameters(), *(value for state in optimizer.state.values() for value in state.values())]
    assert {tensor.dtype for tensor in tensors} == {torch.float32}


def test_accelerates_mixed_precision_keeps_float32() -> None:
    library = pytest.importorskip("accelerate")
    model = network()
    library.state.AcceleratorState._reset_state(reset_partial_state=True)  # whatever precision another test had
    accelerator = library.Accelerator(mixed_precision="bf16", cpu=True)
    model, optimizer = accelerator.prepare(model, orthoopt.Muon(model, lr=0.01))
    for step in range(2):
        accelerator.backward(loss_of(model, step))
        accelerator.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    states = optimizer.optimizer.state.values()
    assert {value.dtype for state in states for value in state.values()} == {torch.float32}
    assert {param.dtype for param in model.parameters()} == {torch.float32}
    library.state.AcceleratorState._reset_state(reset_partial_state=True)


def scaled_run(
    scale: float, poison: int | None = None, steps: int = 4
) -> tuple[nn.Module, OrthoOpt, torch.amp.GradScaler]:
    """A run under a GradScaler with clipping; at step ``poison`` the gradients overflow."""
    model = network()
    optimizer = orthoopt.Muon(model, lr=0.01)
    scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=100)
    for step in range(steps):
        loss = loss_of(model, step)
        scaler.scale(loss * (math.inf if step == poison else 1)).backward()
        scaler.unscale_(optimizer)
        clip_grad_norm_(model.parameters(), 0.1)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    return model, optimizer, scaler


def test_a_loss_scale_is_taken_out_once() -> None:
    """A power of two is exact, so the run is to the bit that of a scale of one."""
    one, _, _ = scaled_run(1.0)
    other, optimizer, scaler = scaled_run(2.0**12)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    assert scaler.get_scale() == 2.0**12 and optimizer.skipped_steps == 0


def test_a_step_that_overflows_is_skipped_by_the_scaler() -> None:
    """It does not call ``step``: nothing warns, nothing counts, the scale backs off, later steps go on."""
    model, optimizer, scaler = scaled_run(2.0**12, poison=2)
    assert scaler.get_scale() == 2.0**11 and optimizer.skipped_steps == 0
    plain = network()
    other = orthoopt.Muon(plain, lr=0.01)
    for step in (0, 1, 3):
        loss_of(plain, step).backward()
        clip_grad_norm_(plain.parameters(), 0.1)
        other.step()
        other.zero_grad()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), plain.parameters(), strict=True))


def test_the_scaler_unscales_by_itself_where_nobody_did() -> None:
    """No ``_step_supports_amp_scaling`` is claimed, whose contract would leave scaled gradients to the step."""
    one, other = network(), network()
    for model, scale in ((one, 1.0), (other, 2.0**10)):
        optimizer = OrthoOpt(orthoopt.param_groups(model, "adamw"), lr=0.01)
        assert not getattr(optimizer, "_step_supports_amp_scaling", False)
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        scaler.scale(loss_of(model, 0)).backward()
        scaler.step(optimizer)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_state_loaded_from_another_device_lies_with_its_parameter() -> None:
    """torch.load(map_location=...) and a model moved afterwards: state goes where the parameter is."""
    params = parameters()
    optimizer = optimizer_of("adamw", params, state_dtype="bfloat16")
    run(optimizer, params, 0, 2)
    saved = optimizer.state_dict()
    moved = {key: nn.Parameter(param.detach().to("meta")) for key, param in params.items()}
    other = optimizer_of("adamw", moved, state_dtype="bfloat16")
    other.load_state_dict(saved)
    for param in moved.values():
        state = other.state[param]
        assert {state[key].device.type for key in ("exp_avg", "exp_avg_sq", "rounding")} == {"meta"}
        assert state["exp_avg"].dtype is torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ALL_RULES)
def test_low_parameters_are_rounded_once(name: str, dtype: torch.dtype) -> None:
    """A step rounds keep·W − lr·s·U once: half an ulp from what float32 makes of the same parameters, not one."""
    low, wide = parameters(dtype), parameters()
    with torch.no_grad():
        for key, param in wide.items():
            param.copy_(low[key])
    optimizers = optimizer_of(name, low), optimizer_of(name, wide)
    set_gradients(low, 0)
    for key, param in wide.items():
        grad = low[key].grad
        assert grad is not None
        param.grad = grad.float()
    for optimizer in optimizers:
        optimizer.step()
    for key, param in low.items():
        nearest = wide[key].detach().to(dtype).float()
        # The iteration's own rounding may move a value across the middle: then by one ulp, and rarely.
        apart = param.detach().float() != nearest
        assert apart.float().mean() < 0.2, key
        ulp = torch.finfo(dtype).eps * nearest.abs()
        assert bool(((param.detach().float() - nearest).abs() <= 1.01 * ulp + 1e-7).all())
