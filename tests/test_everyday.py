"""Everyday training: each situation gives what a plain run without it gives."""

from __future__ import annotations

import copy
import multiprocessing
import threading
from collections.abc import Callable

import pytest
import torch
from everyday import (
    Tower,
    assert_near,
    everything,
    optimizer_of,
    same,
    step_in_a_child,
    train,
    train_backwards,
)
from torch import Tensor, nn
from torch.func import functional_call, grad
from torch.nn.utils import parametrizations, parametrize
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.checkpoint import checkpoint

import orthoopt
from orthoopt import OrthoOpt, plans

PLANS = plans.names()


@pytest.mark.parametrize("plan", PLANS)
def test_accumulated_gradients_are_those_of_the_big_batch(plan: str) -> None:
    one, other = Tower(torch.float64), Tower(torch.float64)
    a, b = optimizer_of(one, plan), optimizer_of(other, plan)
    for step in range(3):
        x = torch.randn(8, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(step))
        a.zero_grad()
        one(x).square().mean().backward()
        a.step()
        b.zero_grad()
        for part in x.split(2):
            (other(part).square().mean() / 4).backward()
        b.step()
    assert_near(one, other)


@pytest.mark.parametrize("plan", ["symmetry", "root"])
def test_gradient_checkpointing_changes_nothing(plan: str) -> None:
    one, other = Tower(torch.float64), Tower(torch.float64)
    a, b = optimizer_of(one, plan), optimizer_of(other, plan)

    def remade(x: Tensor) -> Tensor:
        return checkpoint(other, x, use_reentrant=False)

    train_backwards(one, a, 3)
    train_backwards(other, b, 3, forward=remade)
    assert_near(one, other)


@pytest.mark.parametrize("plan", PLANS)
def test_frozen_for_a_while(plan: str) -> None:
    """Nothing of what is frozen moves, its state included, and the rest goes on as by itself."""
    model = Tower()
    optimizer = optimizer_of(model, plan)
    train(model, optimizer, 2)
    frozen = [model.middle.weight, model.middle.bias, model.first.bias]
    for param in frozen:
        param.requires_grad_(False).grad = None
    before = [everything(optimizer, param) for param in frozen]
    moving = model.first.weight.detach().clone()
    train(model, optimizer, 2)
    assert before == [everything(optimizer, param) for param in frozen]
    assert not torch.equal(moving, model.first.weight)
    twins = copy.deepcopy((model, optimizer))
    for one in (model, twins[0]):
        for param in one.parameters():
            param.requires_grad_(True)
    train(model, optimizer, 2)
    train(*twins, 2)
    assert same(optimizer, twins[1])
    assert before != [everything(optimizer, param) for param in frozen]


def test_a_group_that_is_frozen_whole_and_one_that_comes_later() -> None:
    model = Tower()
    model.requires_grad_(False)
    model.head.requires_grad_(True)
    optimizer = optimizer_of(model, "muon")
    train(model, optimizer, 2)
    model.middle.requires_grad_(True)
    added = orthoopt.param_groups(nn.ModuleDict({"middle": model.middle}), "muon", lr=0.01)
    for group in added:
        optimizer.add_param_group(group)
    before = model.middle.weight.detach().clone()
    train(model, optimizer, 1)
    assert not torch.equal(before, model.middle.weight)
    model.head.requires_grad_(False)
    for param in model.head.parameters():
        param.grad = None
    kept = everything(optimizer, model.head.weight)
    train(model, optimizer, 1)
    assert kept == everything(optimizer, model.head.weight)
    # A step with nothing to do, and what was added survives a load.
    model.requires_grad_(False)
    optimizer.zero_grad()
    optimizer.step()
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))


@pytest.mark.parametrize("plan", PLANS)
def test_gradients_set_to_none_or_to_zero(plan: str) -> None:
    """The same, where every parameter gets a gradient; one that gets none moves by its momentum only if it is zero."""
    one, other = Tower(), Tower()
    a, b = optimizer_of(one, plan), optimizer_of(other, plan)
    train(one, a, 3, set_to_none=True)
    train(other, b, 3, set_to_none=False)
    assert same(a, b)


@pytest.mark.parametrize("plan", PLANS)
def test_two_optimizers_over_the_parts_of_a_model(plan: str) -> None:
    one, other = Tower(torch.float64), Tower(torch.float64)
    whole = optimizer_of(one, plan)
    body = nn.ModuleDict({"first": other.first, "middle": other.middle})
    names = {name: role for name, role, *_ in orthoopt.roles(other)}
    groups = orthoopt.param_groups(other, plan, lr=0.01)
    inside = {id(param) for param in body.parameters()}

    def of(chosen: Callable[[Tensor], bool]) -> OrthoOpt:
        some = [{**g, "params": [(n, p) for n, p in g["params"] if chosen(p)]} for g in groups]
        return OrthoOpt([g for g in some if g["params"]], lr=0.01)

    halves = of(lambda p: id(p) in inside), of(lambda p: id(p) not in inside)
    assert sum(len(half.all_params) for half in halves) == len(names)
    for step in range(3):
        train_backwards(one, whole, 1, first=step)
        other.loss(step).backward()
        for half in halves:
            half.step()
        other.zero_grad()
    assert_near(one, other)


def test_threads_that_train_a_model_each() -> None:
    """As each alone: workspaces, caches and native loops are not shared by what runs at one time."""
    todo = [
        (plan, seed) for plan in ("muon", "root", "trion", "auon", "polargrad", "symmetry_hybrid") for seed in (0, 1)
    ]

    def made() -> list[tuple[Tower, OrthoOpt]]:  # here, for threads share the generator that weights come from
        models = [Tower(width=24, seed=seed) for _, seed in todo]
        return [(model, optimizer_of(model, plan)) for model, (plan, _) in zip(models, todo, strict=True)]

    alone = made()
    for model, optimizer in alone:
        train(model, optimizer, 8)
    for _ in range(2):
        beside = made()
        threads = [threading.Thread(target=train, args=(*one, 8)) for one in beside]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for case, (_, one), (_, other) in zip(todo, alone, beside, strict=True):
            assert same(one, other), case


@pytest.mark.parametrize("method", ["spawn", "fork"])
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_an_optimizer_in_another_process(method: str) -> None:
    """Sent to a new one, or found there after a fork: it goes on as here."""
    model = Tower()
    optimizer = optimizer_of(model, "symmetry")
    train(model, optimizer, 2)
    context = multiprocessing.get_context(method)
    ours, theirs = context.Pipe()
    process = context.Process(target=step_in_a_child, args=(theirs, copy.deepcopy((model, optimizer))), daemon=True)
    process.start()
    theirs.close()
    assert ours.poll(120), "the child said nothing"
    there = ours.recv()
    process.join(30)
    train(model, optimizer, 3, first=2)
    here = [param.detach().tolist() for param in model.parameters()]
    assert process.exitcode == 0 and there == here


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_model_that_is_converted(plan: str, dtype: torch.dtype) -> None:
    """Before the first step: as if it had been so from the start. Later: state stays what it was, or follows."""
    late, early = Tower(), Tower().to(dtype)
    a = optimizer_of(late, plan)
    late.to(dtype)
    b = optimizer_of(early, plan)
    train(late, a, 2)
    train(early, b, 2)
    assert same(a, b)
    back = torch.float32
    late.to(back)
    train(late, a, 2)
    for param in late.parameters():
        assert param.dtype is back and bool(torch.isfinite(param).all())
        for key, value in a.state.get(param, {}).items():
            assert not value.is_floating_point() or value.dtype is back, key


@pytest.mark.parametrize("plan", PLANS)
def test_data_that_are_swapped(plan: str) -> None:
    """``param.data = ...``: other memory, the same values, as loaders and EMA code do it."""
    one, other = Tower(), Tower()
    a, b = optimizer_of(one, plan), optimizer_of(other, plan)
    for step in range(3):
        train(one, a, 1, first=step)
        train(other, b, 1, first=step)
        for param in other.parameters():
            param.data = param.data.clone()
    assert same(a, b)


@pytest.mark.parametrize("plan", ["muon", "symmetry", "trion"])
def test_parametrized_weights(plan: str) -> None:
    """The parameters of a parametrization are trained, whatever is computed from them."""
    model = Tower()
    parametrizations.weight_norm(model.middle)
    parametrize.register_parametrization(model.first, "weight", Doubled())
    optimizer = optimizer_of(model, plan)
    listed = {id(param) for param in optimizer.all_params}
    assert listed == {id(param) for param in model.parameters()}
    first = model.loss(0)
    train_backwards(model, optimizer, 4)
    assert model.loss(0) < first


class Doubled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


def test_weights_tied_after_construction() -> None:
    """The tied weight is trained once, the one that nobody uses any more stays."""
    model = Tower(square=True)
    optimizer = optimizer_of(model, "muon")
    left = model.middle.weight
    model.middle.weight = model.first.weight
    kept = left.detach().clone()
    train(model, optimizer, 2)
    assert torch.equal(left, kept) and left not in optimizer.state
    twin = Tower(square=True)
    twin.middle.weight = twin.first.weight
    groups = [
        {**g, "params": [(n, twin.get_parameter(n)) for n in g["param_names"] if n != "middle.weight"]}
        for g in optimizer.param_groups
    ]
    other = OrthoOpt([{k: v for k, v in g.items() if k != "param_names"} for g in groups if g["params"]])
    train(twin, other, 2)
    for name in ("first.weight", "first.bias", "head.weight"):
        # One stack fewer holds the matrices: sums of float32 in another order.
        torch.testing.assert_close(twin.get_parameter(name), model.get_parameter(name), atol=1e-5, rtol=1e-5)


def test_an_average_beside_it() -> None:
    one, other = Tower(), Tower()
    a, b = optimizer_of(one, "root"), optimizer_of(other, "root")
    average = AveragedModel(other, multi_avg_fn=get_ema_multi_avg_fn(0.5))
    expected = [param.detach().clone() for param in one.parameters()]
    for step in range(3):
        train(one, a, 1, first=step)
        train(other, b, 1, first=step)
        average.update_parameters(other)
        mix = 0.0 if step == 0 else 0.5
        expected = [
            mix * kept + (1 - mix) * param.detach() for kept, param in zip(expected, one.parameters(), strict=True)
        ]
    assert same(a, b)
    for ours, theirs in zip(average.module.parameters(), expected, strict=True):
        torch.testing.assert_close(ours.detach(), theirs, atol=1e-6, rtol=1e-6)  # three averages of order one


@pytest.mark.parametrize("plan", PLANS)
def test_optimizers_in_the_backward_pass(plan: str) -> None:
    """One for each parameter, stepped by a hook as soon as its gradient is there."""
    one, other = Tower(torch.float64), Tower(torch.float64)
    whole = optimizer_of(one, plan)
    owners = {}
    for group in orthoopt.param_groups(other, plan, lr=0.01):
        for name, param in group["params"]:
            owners[param] = OrthoOpt([{**group, "params": [(name, param)]}], lr=0.01)

            def hook(param: Tensor) -> None:
                owners[param].step()
                owners[param].zero_grad()

            param.register_post_accumulate_grad_hook(hook)
    for step in range(3):
        train_backwards(one, whole, 1, first=step)
        other.loss(step).backward()
        assert all(param.grad is None for param in other.parameters())
    assert_near(one, other)


def test_functional_calls_see_the_trained_weights_and_leave_no_trace() -> None:
    one, other = Tower(), Tower()
    a, b = optimizer_of(one, "symmetry"), optimizer_of(other, "symmetry")
    x = torch.randn(4, 6)
    for step in range(2):
        train(one, a, 1, first=step)
        train(other, b, 1, first=step)
        weights = {name: param.detach() for name, param in other.named_parameters()}
        grads = grad(lambda w: functional_call(other, w, (x,)).square().mean())(weights)
        assert grads.keys() == weights.keys() and all(param.grad is None for param in other.parameters())
    assert same(a, b)


@pytest.mark.parametrize("plan", PLANS)
def test_modes_of_torch(plan: str) -> None:
    """A default dtype, inference beside and around a step, no_grad and deterministic algorithms."""
    plain = Tower()
    expected = optimizer_of(plain, plan)
    train(plain, expected, 4)
    model = Tower()
    optimizer = optimizer_of(model, plan)
    train(model, optimizer, 1)
    torch.set_default_dtype(torch.float64)
    try:
        train(model, optimizer, 1, first=1)
    finally:
        torch.set_default_dtype(torch.float32)
    with torch.inference_mode():
        model(torch.randn(2, 6))
    torch.use_deterministic_algorithms(True)
    try:
        train(model, optimizer, 1, first=2)
    finally:
        torch.use_deterministic_algorithms(False)
    with torch.no_grad():
        train(model, optimizer, 1, first=3)
    assert same(expected, optimizer)


@pytest.mark.parametrize("plan", PLANS)
def test_a_step_within_inference_mode_does_not_spoil_the_next(plan: str) -> None:
    plain, model = Tower(), Tower()
    expected, optimizer = optimizer_of(plain, plan), optimizer_of(model, plan)
    train(plain, expected, 2)
    for param in model.parameters():
        param.grad = torch.zeros_like(param)
    source = torch.Generator().manual_seed(0)
    for param in model.parameters():
        param.grad.copy_(torch.randn(param.shape, generator=source))
    with torch.inference_mode():
        optimizer.step()
    train(model, optimizer, 1, first=1)
    assert same(expected, optimizer)
