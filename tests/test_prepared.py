"""What is remembered of parameters between steps: never longer than it is true, and no gradient with it."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable

import numpy as np
import pytest
import torch
from optimizers import ALL_RULES, MATRIX_RULES, equal, optimizer_of, parameters, run, set_gradients, snapshot
from torch import nn

from orthoopt import OrthoOpt, buckets

Change = Callable[[OrthoOpt, dict[str, nn.Parameter]], None]


def _parameter_moves(optimizer: OrthoOpt, params: dict[str, nn.Parameter]) -> None:
    params["wide"].data = params["wide"].detach().clone()


def _parameter_becomes_another(optimizer: OrthoOpt, params: dict[str, nn.Parameter]) -> None:
    params["tall"].data = torch.ones_like(params["tall"])


def _parameter_is_laid_out_anew(optimizer: OrthoOpt, params: dict[str, nn.Parameter]) -> None:
    """The same memory, other strides: its matrices transposed."""
    params["stack"].data = params["stack"].detach().view(3, 2, 5).mT


def _state_is_replaced(optimizer: OrthoOpt, params: dict[str, nn.Parameter]) -> None:
    for state in optimizer.state.values():
        for key, value in state.items():
            state[key] = value.clone() * 0.5 if value.is_floating_point() and value.ndim else value


def _checkpoint_is_loaded(optimizer: OrthoOpt, params: dict[str, nn.Parameter]) -> None:
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))


def _scale_changes(optimizer: OrthoOpt, params: dict[str, nn.Parameter]) -> None:
    for group in optimizer.param_groups:
        if "scale" in group:
            group["scale"] = "spectral"


def _momentum_is_cycled(optimizer: OrthoOpt, params: dict[str, nn.Parameter]) -> None:
    for group in optimizer.param_groups:
        if "momentum" in group:
            group["momentum"] = 0.7


def _learning_rate_moves(optimizer: OrthoOpt, params: dict[str, nn.Parameter]) -> None:
    for group in optimizer.param_groups:
        group["lr"] *= 0.5
        group["weight_decay"] = 0.3


def _parameter_is_added(optimizer: OrthoOpt, params: dict[str, nn.Parameter]) -> None:
    params["late"] = nn.Parameter(torch.ones(4, 9))
    optimizer.add_param_group({"params": [("late", params["late"])], "rule": optimizer.param_groups[0]["rule"]})


@pytest.mark.parametrize(
    "change",
    [
        _parameter_moves, _parameter_becomes_another, _parameter_is_laid_out_anew,
        _state_is_replaced, _checkpoint_is_loaded, _scale_changes,
        _momentum_is_cycled, _learning_rate_moves, _parameter_is_added,
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", ALL_RULES)
def test_a_change_between_steps_is_seen(name: str, change: Change) -> None:
    """An optimizer that forgets everything before each step is the reference."""
    results = []
    for forgets in (False, True):
        params = parameters()
        optimizer = optimizer_of(name, params)
        for step in range(4):
            if step == 2:
                change(optimizer, params)
            if forgets:
                optimizer.__setstate__({})
            run(optimizer, params, step, step + 1)
        results.append(snapshot(optimizer))
    assert equal(*results)


@pytest.mark.parametrize("name", ["trion", "dion2"])
def test_a_rank_of_one_that_becomes_a_share_is_seen(name: str) -> None:
    """One column or row a step, then all of them: 1 and 1.0 are equal."""
    results = []
    for forgets in (False, True):
        params = parameters()
        optimizer = optimizer_of(name, params)
        for group in optimizer.param_groups:
            group["rank"] = 1
        run(optimizer, params, 0, 2)
        for group in optimizer.param_groups:
            group["rank"] = 1.0
        if forgets:
            optimizer.__setstate__({})
        run(optimizer, params, 2, 4)
        results.append(snapshot(optimizer))
    assert equal(*results)


@pytest.mark.parametrize("name", MATRIX_RULES)
def test_gradients_come_and_go(name: str) -> None:
    """Experts without tokens have no gradient in some steps; which ones differs."""
    results = []
    for forgets in (False, True):
        params = parameters()
        optimizer = optimizer_of(name, params)
        for step, left_out in enumerate(("wide", "stack", None, "wide", "tall", None)):
            set_gradients(params, step)
            if left_out:
                params[left_out].grad = None
            if forgets:
                optimizer.__setstate__({})
            optimizer.step()
        results.append(snapshot(optimizer))
    assert equal(*results)


@pytest.mark.parametrize("name", ALL_RULES)
@pytest.mark.parametrize("steps", [1, 2])
def test_gradients_are_not_held_after_a_step(name: str, steps: int) -> None:
    params = parameters()
    optimizer = optimizer_of(name, params)
    run(optimizer, params, 0, steps - 1)
    memories = []
    for param in params.values():
        memory = np.ones(param.shape, np.float32)  # it lives for as long as any tensor looks into it
        memories.append(weakref.ref(memory))
        param.grad = torch.from_numpy(memory)
        del memory
    optimizer.step()
    assert all(memory() is not None for memory in memories)
    for param in params.values():
        param.grad = None
    gc.collect()
    assert all(memory() is None for memory in memories)


def test_the_same_step_builds_no_bucket_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    params = parameters()
    optimizer = optimizer_of("spectral", params)
    run(optimizer, params, 0, 1)
    built: list[int] = []
    chunks = buckets.chunks
    monkeypatch.setattr(buckets, "chunks", lambda items: built.append(len(items)) or chunks(items))
    run(optimizer, params, 1, 3)
    assert built == []
    params["late"] = nn.Parameter(torch.ones(4, 9))
    optimizer.add_param_group({"params": [("late", params["late"])], "rule": "spectral"})
    run(optimizer, params, 3, 5)
    assert len(built) == 1


def test_an_error_in_a_step_leaves_no_gradient_behind() -> None:
    params = parameters()
    optimizer = optimizer_of("spectral", params)
    run(optimizer, params, 0, 1)
    items = [item for known in optimizer._matrices._known.values() for item in known.items]
    optimizer.param_groups[0]["ns_steps"] = "five"
    set_gradients(params, 1)
    with pytest.raises(ValueError, match="'five'"):
        optimizer.step()
    assert all(item.source.numel() == 0 for item in items)
