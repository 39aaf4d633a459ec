"""torch.optim's contract, for every rule, and parity with torch's own optimizers."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from optimizers import ALL_RULES, MATRIX_RULES, equal, optimizer_of, parameters, run, set_gradients, snapshot
from torch import nn
from torch.optim import lr_scheduler

from orthoopt import OrthoOpt, param_groups, rules
from orthoopt.scale import scale_factor


@given(
    st.sampled_from([torch.float32, torch.float64]),
    st.booleans(),
    st.sampled_from([0.0, 0.1]),
    st.integers(0, 2**31),
)
@settings(max_examples=25)
def test_adamw_is_torchs_to_the_last_bit(dtype: torch.dtype, maximize: bool, weight_decay: float, seed: int) -> None:
    ours, theirs = parameters(dtype, seed), parameters(dtype, seed)
    a = OrthoOpt(
        [{"params": list(ours.values()), "rule": "adamw", "betas": (0.9, 0.999)}],
        lr=3e-3, weight_decay=weight_decay, maximize=maximize,
    )  # fmt: skip
    b = torch.optim.AdamW(theirs.values(), lr=3e-3, weight_decay=weight_decay, maximize=maximize, foreach=True)
    for step in range(12):
        set_gradients(ours, step)
        set_gradients(theirs, step)
        a.step()
        b.step()
    for name in ours:
        assert torch.equal(ours[name], theirs[name])
        assert all(torch.equal(a.state[ours[name]][key], b.state[theirs[name]][key]) for key in b.state[theirs[name]])


@pytest.mark.parametrize("adjust", ["original", "match_rms_adamw"])
def test_muon_follows_torchs_within_its_bfloat16_iteration(adjust: str) -> None:
    """torch iterates in bfloat16: five steps of products round the direction by a few percent, not more."""
    torch.manual_seed(0)
    start = torch.randn(32, 96)
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    scale = {"original": "shape_scaling"}.get(adjust, adjust)
    a = OrthoOpt([{"params": [ours], "rule": "spectral", "scale": scale}], lr=0.02, weight_decay=0.1)
    b = torch.optim.Muon([theirs], lr=0.02, weight_decay=0.1, adjust_lr_fn=adjust)
    for _ in range(5):
        grad = torch.randn(32, 96)
        ours.grad, theirs.grad = grad, grad.clone()
        a.step()
        b.step()
    # Five averages of numbers of order one, each rounded at most three times.
    buffers = [a.state[ours]["momentum_buffer"], b.state[theirs]["momentum_buffer"]]
    torch.testing.assert_close(*buffers, atol=5 * 3 * 6e-8, rtol=0)
    assert (ours - theirs).norm() < 0.03 * (theirs - start).norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", [name for name in MATRIX_RULES if "nesterov" in rules.get(name).defaults])
def test_the_momentum_is_the_plain_average_and_is_never_rescaled(name: str, dtype: torch.dtype) -> None:
    """torch.optim.Muon(nesterov=False) on bfloat16 parameters normalizes its own buffer (pytorch/pytorch#194664)."""
    param = nn.Parameter(torch.randn(6, 10).to(dtype))
    before = param.detach().clone()
    optimizer = OrthoOpt(
        [{"params": [param], "rule": name, "nesterov": False, "momentum": 0.9, "momentum_form": "ema"}],
        lr=0.0, weight_decay=0.0,
    )  # fmt: skip
    expected = torch.zeros(6, 10)
    for _ in range(3):
        param.grad = 3 * torch.randn(6, 10).to(dtype)
        kept = param.grad.clone()
        optimizer.step()
        expected.lerp_(kept.float(), 1 - 0.9)
        assert torch.equal(param.grad, kept)
    buffer = optimizer.state[param]["momentum_buffer"]
    assert buffer.dtype == torch.float32
    torch.testing.assert_close(buffer, expected, atol=3 * 3 * 6e-8, rtol=0)  # three averages of order one, as above
    assert torch.equal(param, before)


@pytest.mark.parametrize("name", MATRIX_RULES)
def test_a_step_is_decay_then_scaled_direction(name: str) -> None:
    """W ← (1 − lr·λ)W − lr·s·U, with U and the state from the rule alone, matrix by matrix."""
    rule = rules.get(name)
    params = parameters(torch.float64)
    optimizer = optimizer_of(name, params)
    expected = {key: param.detach().clone() for key, param in params.items()}
    states: dict[str, Any] = dict.fromkeys(params)
    for step in range(4):
        set_gradients(params, step)
        optimizer.step()
        for group in optimizer.param_groups:
            for key, param in zip(group["param_names"], group["params"], strict=True):
                assert param.grad is not None
                update, states[key] = rule.update(param.grad, states[key])
                rows, cols = param.shape[-2:]
                assert rule.rms is not None
                factor = scale_factor(rule.default_scale, rows, cols, rule.rms(rows, cols, rule.defaults))
                expected[key] *= 1 - group["lr"] * group["weight_decay"]
                expected[key] -= group["lr"] * factor * update
    for key, param in params.items():
        # Stacked with others, products may round differently: float64 times the slope of the iteration.
        torch.testing.assert_close(param.detach(), expected[key], atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("name", ALL_RULES)
def test_tensor_lr_gives_what_a_number_gives(name: str) -> None:
    plain, tensor = parameters(torch.float64), parameters(torch.float64)
    a = optimizer_of(name, plain)
    b = optimizer_of(name, tensor)
    for group in b.param_groups:
        group["lr"] = torch.tensor(group["lr"], dtype=torch.float64)
    run(a, plain, 0, 4)
    run(b, tensor, 0, 4)
    for key in plain:
        torch.testing.assert_close(tensor[key], plain[key], atol=1e-13, rtol=1e-12)


@pytest.mark.parametrize("name", ALL_RULES)
def test_maximize_is_minimizing_the_negative(name: str) -> None:
    up, down = parameters(), parameters()
    a, b = optimizer_of(name, up, maximize=True), optimizer_of(name, down)
    for step in range(3):
        set_gradients(up, step)
        set_gradients(down, step, scale=-1.0)
        a.step()
        b.step()
    assert equal(snapshot(a), snapshot(b))


@pytest.mark.parametrize("name", ALL_RULES)
def test_missing_and_frozen_gradients_are_left_alone(name: str) -> None:
    params = parameters()
    optimizer = optimizer_of(name, params)
    optimizer.step()
    assert not optimizer.state
    set_gradients(params, 0)
    params["tall"].grad = None
    params["stack"].requires_grad_(False).grad = None
    before = {key: params[key].detach().clone() for key in ("tall", "stack")}
    optimizer.step()
    assert params["tall"] not in optimizer.state
    assert all(torch.equal(params[key], value) for key, value in before.items())


@pytest.mark.parametrize("name", ALL_RULES)
def test_a_zero_gradient_without_decay_moves_nothing(name: str) -> None:
    params = parameters()
    params["column"] = nn.Parameter(torch.randn(5, 1))
    optimizer = OrthoOpt([{"params": list(params.values()), "rule": name}], weight_decay=0.0)
    before = [param.detach().clone() for param in params.values()]
    for param in params.values():
        param.grad = torch.zeros_like(param)
    optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(params.values(), before, strict=True))


def quadratic(params: dict[str, nn.Parameter]) -> torch.Tensor:
    return sum((p.double() ** 2).mean() for p in params.values())


def moves_momentum(optimizer: OrthoOpt) -> bool:
    """Whether there is one to cycle: a rule without state has none."""
    return bool({"momentum", "betas"} & optimizer.defaults.keys())


SCHEDULERS = {
    "none": None,
    "step": lambda o: lr_scheduler.StepLR(o, 10, 0.5),
    "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, 40),
    "linear": lambda o: lr_scheduler.LinearLR(o, total_iters=40),
    "lambda": lambda o: lr_scheduler.LambdaLR(o, lambda step: 0.98**step),
    "one_cycle": lambda o: lr_scheduler.OneCycleLR(o, 0.05, total_steps=41, cycle_momentum=moves_momentum(o)),
    "cyclic": lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.05, step_size_up=5, cycle_momentum=moves_momentum(o)),
    "sequential": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.ConstantLR(o, 0.5, 5), lr_scheduler.ExponentialLR(o, 0.97)], [5]
    ),
}


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("name", ALL_RULES)
def test_every_scheduler_drives_a_closure_downhill(name: str, scheduler: str) -> None:
    params = parameters()
    optimizer = optimizer_of(name, params)
    for group in optimizer.param_groups:
        group["lr"] = 0.05
    make = SCHEDULERS[scheduler]
    schedule = make(optimizer) if make else None

    def closure() -> float:
        optimizer.zero_grad()
        loss = quadratic(params)
        loss.backward()
        return float(loss.detach())

    first = optimizer.step(closure)
    for _ in range(39):
        if schedule is not None:
            schedule.step()
        last = optimizer.step(closure)
    assert isinstance(first, float) and last < 0.8 * first


def test_one_cycle_moves_the_momentum_of_matrices() -> None:
    optimizer = optimizer_of("spectral", parameters())
    schedule = lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=10)
    seen = set()
    for _ in range(9):
        seen.add(round(optimizer.param_groups[0]["momentum"], 6))
        optimizer.step()
        schedule.step()
    assert len(seen) > 3


@pytest.mark.parametrize("name", ALL_RULES)
def test_low_precision_parameters_get_the_float32_update_rounded_once(name: str) -> None:
    half = parameters(torch.bfloat16)
    full = {key: nn.Parameter(param.detach().float()) for key, param in half.items()}
    a, b = optimizer_of(name, half), optimizer_of(name, full)
    set_gradients(half, 0)
    for key in half:
        assert half[key].grad is not None
        full[key].grad = half[key].grad.float()
    a.step()
    b.step()
    for key in half:
        assert torch.equal(half[key], full[key].bfloat16())


@pytest.mark.parametrize("name", MATRIX_RULES)
def test_a_channels_last_kernel_is_updated_like_a_contiguous_one(name: str) -> None:
    kernel = torch.randn(6, 4, 3, 3)
    layouts = {}
    for memory_format in (torch.contiguous_format, torch.channels_last):
        param = nn.Parameter(kernel.clone(memory_format=memory_format))
        param.grad = torch.randn(kernel.shape, generator=torch.Generator().manual_seed(1)).clone(
            memory_format=memory_format
        )
        OrthoOpt([{"params": [param], "rule": name, "view": "flatten"}], lr=0.1).step()
        layouts[memory_format] = param.detach()
        assert param.is_contiguous(memory_format=memory_format)
    # Norms are summed in another order.
    torch.testing.assert_close(*layouts.values(), atol=1e-5, rtol=1e-4)
    assert not torch.allclose(layouts[torch.contiguous_format], kernel, atol=1e-3)


def test_a_transposed_split_view_updates_its_parts() -> None:
    """GPT-2's c_attn: three matrices, each orthogonalized alone, and written back through the view."""
    param = nn.Parameter(torch.zeros(4, 12, dtype=torch.float64))
    param.grad = torch.randn(4, 12, dtype=torch.float64)
    optimizer = OrthoOpt(
        [{"params": [param], "rule": "spectral", "view": "transpose split(4,4,4)", "scale": "none"}], lr=1.0
    )
    optimizer.step()
    for part, grad in zip(param.detach().split(4, 1), param.grad.split(4, 1), strict=True):
        expected, _ = rules.get("spectral").update(grad.mT)
        torch.testing.assert_close(part.mT, -expected, atol=1e-12, rtol=1e-12)


def test_add_param_group_trains_the_new_parameter_and_refuses_one_twice() -> None:
    params = parameters()
    optimizer = optimizer_of("spectral", params)
    extra = nn.Parameter(torch.randn(3, 3))
    optimizer.add_param_group({"params": [("extra", extra)], "rule": "row_norm", "lr": 0.1})
    extra.grad = torch.randn(3, 3)
    before = extra.detach().clone()
    optimizer.step()
    assert not torch.equal(extra, before) and optimizer.param_groups[-1]["lr"] == 0.1
    with pytest.raises(ValueError, match="more than one parameter group"):
        optimizer.add_param_group({"params": [("again", extra)], "rule": "spectral"})


def test_sparse_gradients_are_refused_by_name_and_nothing_moves() -> None:
    embedding = nn.Embedding(5, 3, sparse=True)
    dense = nn.Parameter(torch.randn(3, 3))
    optimizer = OrthoOpt(
        [
            {"params": [("dense", dense)], "rule": "spectral"},
            {"params": [("embedding.weight", embedding.weight)], "rule": "row_norm"},
        ]
    )
    (embedding(torch.tensor([1])) @ dense).sum().backward()
    before = snapshot(optimizer)
    with pytest.raises(RuntimeError, match=r"sparse gradients; embedding\.weight"):
        optimizer.step()
    assert equal(before, snapshot(optimizer))


def test_a_flattened_parameter_is_refused_by_name() -> None:
    """FSDP1 and ZeRO swap a matrix for a slice of a flat buffer after the groups were made."""
    param = nn.Parameter(torch.randn(4, 4))
    optimizer = OrthoOpt([{"params": [("proj.weight", param)], "rule": "spectral"}])
    optimizer.param_groups[0]["params"][0] = flat = nn.Parameter(torch.randn(16))
    flat.grad = torch.randn(16)
    with pytest.raises(RuntimeError, match=r"proj\.weight has shape \(16,\).*FSDP1"):
        optimizer.step()


def test_init_state_creates_what_a_step_would() -> None:
    params = parameters()
    optimizer = optimizer_of("adamw", params)
    optimizer.init_state()
    assert all(set(optimizer.state[p]) == {"step", "exp_avg", "exp_avg_sq"} for p in params.values())
    fresh_params = parameters()
    fresh = optimizer_of("adamw", fresh_params)
    run(optimizer, params, 0, 2)
    run(fresh, fresh_params, 0, 2)
    assert equal(snapshot(optimizer), snapshot(fresh))


def test_foreign_state_keys_survive() -> None:
    params = parameters()
    optimizer = optimizer_of("spectral", params)
    optimizer.state[params["wide"]]["mine"] = 7
    run(optimizer, params, 0, 1)
    assert optimizer.state[params["wide"]]["mine"] == 7
    assert "momentum_buffer" in optimizer.state[params["wide"]]


def test_hooks_and_printing() -> None:
    params = parameters()
    optimizer = optimizer_of("spectral", params)
    calls = []
    optimizer.register_step_pre_hook(lambda *_: calls.append("before"))
    optimizer.register_step_post_hook(lambda *_: calls.append("after"))
    run(optimizer, params, 0, 1)
    assert calls == ["before", "after"]
    assert "rule: spectral" in repr(optimizer) and "<" not in repr(optimizer)


def test_groups_hold_nothing_but_strings_and_numbers() -> None:
    model = nn.Sequential(nn.Embedding(8, 4), nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 8))
    optimizer = OrthoOpt(param_groups(model))

    def plain(value: Any) -> bool:
        if isinstance(value, tuple | list):
            return all(map(plain, value))
        return value is None or type(value) in (str, int, float, bool)

    for group in optimizer.param_groups:
        assert all(plain(value) for key, value in group.items() if key != "params"), group
    assert copy.deepcopy(optimizer.state_dict()) == optimizer.state_dict()
