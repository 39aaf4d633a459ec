from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import models
import pytest
import torch

import orthoopt
from orthoopt.bench import peer_optimizers
from orthoopt.bench.peer_optimizers import PEERS, split
from orthoopt.bench.pretrain_timing import to_reach

LR, DECAY = 0.01, 0.1


def model_of(seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    return models.qwen3(device="cpu")


def with_gradients(model: torch.nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for param in model.parameters():
        param.grad = torch.randn(param.shape, generator=generator)


def after(build: Callable[[torch.nn.Module], torch.optim.Optimizer], steps: int = 3) -> dict[str, torch.Tensor]:
    model = model_of()
    optimizer = build(model)
    for step in range(steps):
        with_gradients(model, step)
        optimizer.step()
    return {name: param.detach() for name, param in model.named_parameters()}


def named(name: str, **options: Any) -> Callable[[torch.nn.Module], torch.optim.Optimizer]:
    function = getattr(peer_optimizers, PEERS[name].function)
    return lambda model: function(model, lr=LR, weight_decay=DECAY, **options)


@pytest.mark.parametrize("name", PEERS)
def test_every_parameter_is_in_one_group_and_moves(name: str) -> None:
    model = model_of()
    optimizer = named(name, embedding_lr_multiplier=10.0)(model)
    held = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in model.parameters())
    rates = {group["role"]: group["lr"] for group in optimizer.param_groups}
    assert rates["embedding"] == 10 * LR and rates["vector"] == LR
    before = copy.deepcopy(dict(model.named_parameters()))
    for step in range(2):  # pytorch_optimizer's SOAP only gathers statistics in the first
        with_gradients(model, step)
        optimizer.step()
    assert not [key for key, param in model.named_parameters() if torch.equal(param, before[key])]


def test_torch_muon_and_the_packages_muon_are_our_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same update by three implementations: float32 rounding apart, times the growth of five iterations."""
    monkeypatch.setattr(peer_optimizers, "bfloat16_in_hardware", lambda: False)  # else they iterate in that
    ours = after(lambda model: orthoopt.Muon(
        model, lr=LR, weight_decay=DECAY, ns_coefficients=(3.4445, -4.775, 2.0315), ns_steps=5,
        overrides={"embed_tokens": {"lr_multiplier": 1.0}}, eps=1e-7,
    ))  # fmt: skip
    for name in ("torch.optim.Muon", "pytorch_optimizer.Muon"):
        theirs = after(named(name))
        for key, param in ours.items():
            if "embed" not in key and "lm_head" not in key and param.ndim == 2:
                torch.testing.assert_close(theirs[key], param, rtol=0, atol=2e-4 * LR, msg=lambda m, k=key: f"{k}: {m}")


def test_a_schedule_and_a_checkpoint_reach_every_part() -> None:
    build = named("torch.optim.Muon")
    model = model_of()
    optimizer = build(model)
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    before = copy.deepcopy(dict(model.named_parameters()))
    with_gradients(model, 0)
    optimizer.step()
    assert all(torch.equal(param, before[key]) for key, param in model.named_parameters())

    whole, half = model_of(), model_of()
    first, second = build(whole), build(half)
    for step in range(4):
        if step == 2:
            state = copy.deepcopy(second.state_dict())
            second = build(half)
            second.load_state_dict(state)
        for model, each in ((whole, first), (half, second)):
            with_gradients(model, step)
            each.step()
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), half.parameters(), strict=True))


def test_a_stack_of_experts_goes_to_adamw_where_the_method_takes_matrices_alone() -> None:
    model = torch.nn.Module()
    model.experts = torch.nn.Module()
    model.experts.gate_up_proj = torch.nn.Parameter(torch.randn(4, 8, 6))
    hidden, others = split(model, LR, DECAY, 1.0, hidden=lambda p: p.ndim == 2)
    assert not hidden and sum(len(group["params"]) for group in others) == 1


def test_what_it_takes_to_reach_a_loss() -> None:
    curve = [(10, 5.0), (20, 4.0), (30, 3.0)]

    def steps(targets: list[float], curves: list[list[tuple[int, float]]]) -> float:
        found = to_reach(targets, curves, 30, 3000, None)
        assert found is not None and found["share"] == found["steps"] / 30
        return found["steps"]

    assert to_reach([3.5], [curve], 30, 3000, 100.0) == {"steps": 25, "tokens": 2500, "share": 25 / 30, "seconds": 2.5}
    assert to_reach([3.0], [curve], 30, 3000, None) == {"steps": 30, "tokens": 3000, "share": 1.0}
    assert to_reach([3.5, 2.9], [curve, curve], 30, 3000, None) is None  # one seed never does
    assert steps([3.5, 4.5], [curve, curve]) == 20
    assert steps([6.0], [curve]) == 10
    assert steps([3.5], [[(10, float("nan")), (20, 3.0)]]) == 20
