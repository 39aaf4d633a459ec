"""Hooks and profilers see every step, by torch's names and in its order; unwatched steps are the same steps."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)
from torch.profiler import ProfilerActivity, profile

import orthoopt

KINDS: list[Callable[..., Optimizer]] = [orthoopt.Muon, orthoopt.RowNorm, torch.optim.SGD]


def parameters() -> list[tuple[str, torch.nn.Parameter]]:
    generator = torch.Generator().manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(8, 6, generator=generator)) for _ in range(2)]
    for param in params:
        param.grad = torch.randn(8, 6, generator=generator)
    return [(f"layers.{number}.mlp.up_proj.weight", param) for number, param in enumerate(params)]


def names_of(run: Callable[[], Any]) -> list[str]:
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        run()
    return [event.name for event in seen.events() if event.name.startswith("Optimizer.step")]


@contextmanager
def everyone_notes(optimizer: Optimizer, notes: list[Any]) -> Iterator[None]:
    """Hooks of all four kinds that note their kind and what they were given."""

    def noting(kind: str) -> Callable[..., None]:
        return lambda who, args, kwargs: notes.append((kind, who is optimizer, args, kwargs))

    handles = [
        register_optimizer_step_pre_hook(noting("global pre")),
        register_optimizer_step_post_hook(noting("global post")),
        optimizer.register_step_pre_hook(noting("pre")),
        optimizer.register_step_post_hook(noting("post")),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("steps_before", [0, 3])
def test_hooks_are_called_as_torch_calls_them(kind: Callable[..., Optimizer], steps_before: int) -> None:
    optimizer = kind(parameters(), lr=0.01)
    for _ in range(steps_before):
        optimizer.step()
    notes: list[Any] = []
    with everyone_notes(optimizer, notes):
        optimizer.step()
        optimizer.step(closure=lambda: 2.0)
    optimizer.step()
    order = ["global pre", "pre", "post", "global post"]
    assert [kind for kind, *_ in notes] == 2 * order
    assert all(is_it for _, is_it, *_ in notes)
    # torch hands the optimizer itself on among the arguments.
    assert all(args == (optimizer,) for *_, args, _ in notes)
    assert [list(kwargs) for *_, kwargs in notes] == 4 * [[]] + 4 * [["closure"]]


@pytest.mark.parametrize("register", ["register_step_pre_hook", "register_step_post_hook"])
def test_one_hook_is_enough(register: str) -> None:
    optimizer, calls = orthoopt.RowNorm(parameters(), lr=0.01), []
    handle = getattr(optimizer, register)(lambda *_: calls.append(1))
    optimizer.step()
    handle.remove()
    optimizer.step()
    assert calls == [1]


def test_a_hook_may_replace_the_closure() -> None:
    optimizer = orthoopt.RowNorm(parameters(), lr=0.01)
    optimizer.register_step_pre_hook(lambda who, args, kwargs: ((who, lambda: 5.0), {}))
    assert optimizer.step() == 5.0


@pytest.mark.parametrize("kind", KINDS)
def test_profilers_see_steps_by_torchs_name(kind: Callable[..., Optimizer]) -> None:
    optimizer = kind(parameters(), lr=0.01)
    optimizer.step()
    assert names_of(optimizer.step) == [f"Optimizer.step#{type(optimizer).__name__}.step"]


def test_a_schedule_leaves_what_is_seen() -> None:
    optimizer, calls = orthoopt.Muon(parameters(), lr=0.01), []
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    optimizer.register_step_post_hook(lambda *_: calls.append(1))
    assert len(names_of(lambda: (optimizer.step(), schedule.step()))) == 1
    assert calls == [1]


def test_an_overriding_class_is_seen_once() -> None:
    def step(self: Any, closure: Callable[[], float] | None = None) -> Any:
        self.taken += 1
        return super(counting, self).step(closure)

    counting: Any = type("Counting", (orthoopt.RowNorm,), {"step": step, "taken": 0})
    orthoopt.RowNorm(parameters(), lr=0.01)  # so that torch has had its chance at the parent class, too
    optimizer, notes = counting(parameters(), lr=0.01), list[Any]()
    with everyone_notes(optimizer, notes):
        assert names_of(optimizer.step) == ["Optimizer.step#Counting.step"]
    assert [kind for kind, *_ in notes] == ["global pre", "pre", "post", "global post"]
    assert optimizer.taken == 1


def test_a_patched_class_is_still_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, patched = orthoopt.OrthoOpt.step, list[int]()

    @functools.wraps(plain)
    def step(self: Any, *args: Any, **kwargs: Any) -> Any:
        patched.append(1)
        return plain(self, *args, **kwargs)

    monkeypatch.setattr(orthoopt.OrthoOpt, "step", step)
    optimizer, calls = orthoopt.RowNorm(parameters(), lr=0.01), []
    optimizer.register_step_pre_hook(lambda *_: calls.append(1))
    optimizer.step()
    assert calls == [1] and patched == [1]


def test_watched_and_unwatched_steps_are_the_same() -> None:
    def trained(watched: bool) -> list[Tensor]:
        params = parameters()
        optimizer = orthoopt.Muon(params, lr=0.01)
        if watched:
            optimizer.register_step_pre_hook(lambda *_: None)
        for _ in range(3):
            optimizer.step()
        return [param.detach() for _, param in params]

    assert all(torch.equal(a, b) for a, b in zip(trained(True), trained(False), strict=True))
