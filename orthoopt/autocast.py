"""A step inside ``torch.autocast``: its products are not the network's, and keep the dtype that a rule chose."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


def kinds_with_autocast(devices: Iterable[torch.device]) -> list[str]:
    """The kinds of device among these for which autocast is on."""
    return [kind for kind in {device.type for device in devices} if _has(kind) and torch.is_autocast_enabled(kind)]


_has = functools.cache(torch.amp.is_autocast_available)
"""Whether there is autocast for a kind of device, which does not change."""


def without_autocast(step: Callable[[Any, Mapping[Tensor, Tensor]], T]) -> Callable[[Any, Mapping[Tensor, Tensor]], T]:
    """A method of an optimizer that takes gradients, run with autocast off on their devices.

    Autocast would round every product of float32 matrices to bfloat16: polar factors and cosine transforms among them.
    """

    @functools.wraps(step)
    def run(self: Any, grads: Mapping[Tensor, Tensor]) -> T:
        on = kinds_with_autocast(param.device for param in grads)
        if not on:
            return step(self, grads)
        with contextlib.ExitStack() as stack:
            for kind in on:
                stack.enter_context(torch.autocast(kind, enabled=False))
            return step(self, grads)

    return run
