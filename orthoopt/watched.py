"""Who watches steps: hooks and profilers get what torch gives them, and a step that nobody watches does not pay.

Torch puts a wrapper around the ``step`` of every optimizer class, which calls hooks and lets profilers see the step by
name. That is a good part of what a step of a small model costs the host, so the wrapper is taken when somebody looks.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch.optim import Optimizer
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

T = TypeVar("T")


def watchable(step: Callable[..., T]) -> Callable[..., T]:
    """An optimizer's ``step``, with torch's wrapper around it whenever a hook or a profiler is there to see it.

    A class that overrides ``step`` gets torch's wrapper from torch, and what it calls of its parents' goes without.
    """
    seen = Optimizer.profile_hook_step(step)

    @functools.wraps(step)
    def run(self: Optimizer, *args: Any, **kwargs: Any) -> T:
        return (seen if _is_watched(self) and _is_outermost(run, self) else step)(self, *args, **kwargs)

    run.hooked = True  # type: ignore[attr-defined]  # a mark of torch's own: the class needs no wrapper
    return run


def _is_watched(optimizer: Optimizer) -> bool:
    return bool(
        _global_optimizer_pre_hooks
        or _global_optimizer_post_hooks
        or optimizer._optimizer_step_pre_hooks
        or optimizer._optimizer_step_post_hooks
        or (not torch.compiler.is_compiling() and torch._C._autograd._profiler_enabled())  # no name is kept in a graph
    )


def _is_outermost(run: Callable[..., Any], optimizer: Optimizer) -> bool:
    """Whether the class's ``step`` is ``run``, patched or not, and not an override that torch has wrapped itself."""
    step = type(optimizer).step
    return step is run or inspect.unwrap(step, stop=lambda found: found is run) is run
