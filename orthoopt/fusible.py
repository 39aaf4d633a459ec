"""Matrices that need no bucket: a rule may take them as they are stored, momentum to update in one pass over memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from orthoopt import buckets
from orthoopt.buckets import Item, grouped
from orthoopt.rules import key_of


class _Alike(NamedTuple):
    """Items that share terms, and lists that stay the same objects for as long as the same items do."""

    items: list[Item]
    targets: list[Tensor]
    buffers: list[Tensor]
    scales: list[float]
    memo: dict[Any, Any]


class Fusible:
    """Items of any shapes that a rule may take in one pass over memory, each seen as it is stored."""

    def __init__(self, items: list[Item]) -> None:
        self.items = items
        self._alike: list[_Alike] = []
        self._owners: tuple[int, ...] = ()
        self._ready: list[tuple[_Alike, Callable[[], bool] | None]] = []

    def prepare(self) -> None:
        """Have at hand what :meth:`apply` will do with the sources and terms that the items have now."""
        self._sort()
        self._ready = [(alike, _step_of(alike)) for alike in self._alike]

    def apply(self) -> None:
        """Let every item have its update, by the rule's ``prepare_step`` where it takes them."""
        if torch.compiler.is_compiling():
            buckets.apply(self.items)
            return
        if not self._ready:
            self.prepare()
        ready, self._ready = self._ready, []
        for alike, step in ready:
            if step is None or not step():
                buckets.apply(alike.items)

    def release(self) -> None:
        """Forget what was prepared."""
        self._ready = []

    def _sort(self) -> None:
        """Let ``_alike`` be by the items' terms; as it is, where the same items share them as in the last step."""
        numbers: dict[int, int] = {}
        owners = tuple(numbers.setdefault(id(item.terms), len(numbers)) for item in self.items)
        if owners == self._owners:
            return
        self._owners, self._alike = owners, []
        for pairs in grouped(zip(owners, self.items, strict=True), lambda pair: pair[0]):
            items = [item for _, item in pairs]
            buffers = [item.buffer for item in items if item.buffer is not None]
            self._alike.append(
                _Alike(items, [item.target for item in items], buffers, [item.scale for item in items], {})
            )


def _step_of(alike: _Alike) -> Callable[[], bool] | None:
    first = alike.items[0]
    terms, prepare = first.terms, first.rule.prepare_step
    assert prepare is not None
    if terms.decay.is_cautious:
        return None
    return prepare(
        alike.targets, [item.source for item in alike.items], alike.buffers, terms.moving, first.options,
        scales=alike.scales, lr=terms.lr, keep=terms.decay.keep, gate=terms.gate, memo=alike.memo, alike=terms.alike,
    )  # fmt: skip


def fusible(items: Iterable[Item]) -> tuple[list[Fusible], list[Item]]:
    """The items that may be taken in one pass, by rule and options, and the rest."""
    rest: list[Item] = []
    some: list[Item] = []
    for item in items:
        plain = item.shape == tuple(item.target.shape) and item.buffer is not None and item.padding_row is None
        (some if plain and item.rule.prepare_step is not None else rest).append(item)
    return [Fusible(alike) for alike in grouped(some, lambda item: (item.rule.name, key_of(item.options)))], rest
