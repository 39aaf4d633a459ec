"""Buckets: the same-shaped matrices of one step, stacked into one batched call of their rule's direction."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from orthoopt.rules import Rule, hashable
from orthoopt.weight_decay import shrink_cautiously

MAX_ELEMENTS = 2**25
"""The most elements stacked into one call, which bounds the memory of a step; a single matrix may exceed it."""


class Item(NamedTuple):
    """A matrix, or a batch of them, on its way through a rule."""

    rule: Rule
    options: dict[str, Any]
    matrix: Tensor
    """The signal, ``(..., rows, cols)``; may be a view of state, so it is only read."""
    target: Tensor
    """What the update is subtracted from: the elements of ``matrix`` in their order, its batch dimensions first."""
    factor: float | Tensor
    """Learning rate times scale; a 0-d tensor where it lives on the device."""
    state: dict[str, Tensor] = {}
    """What the rule remembers about these matrices; moved in place."""
    decay: float | Tensor = 0.0
    """Cautious weight decay, learning rate times coefficient."""
    gate: Tensor | None = None
    """0-d, 1 or 0: whether state may move; None means yes."""
    lies_down: bool = False
    """Whether ``matrix`` is the transpose of what ``target`` holds."""
    padding_row: int | None = None
    """The row of ``target`` that gets no update, whatever the rule makes of its zero gradient."""


def apply(items: Iterable[Item]) -> None:
    """``target ← target − factor · direction(matrix)`` for every item, one direction call a bucket."""
    buckets: dict[tuple[Any, ...], list[Item]] = {}
    for item in items:
        for part in _bounded(item):
            buckets.setdefault(_key(part), []).append(part)
    for bucket in buckets.values():
        for chunk in _chunks(bucket):
            _apply_chunk(chunk)


def _bounded(item: Item) -> Iterator[Item]:
    """The item oriented for its bucket, cut along its batch where it is larger than a bucket may be."""
    matrix, target = item.matrix, item.target
    if item.rule.transposable(item.options) and matrix.shape[-2] > matrix.shape[-1]:
        matrix = matrix.mT
        item = item._replace(matrix=matrix, lies_down=True)
    if matrix.ndim == 2 or matrix.numel() <= MAX_ELEMENTS:
        yield item
        return
    size = max(1, MAX_ELEMENTS * matrix.shape[0] // matrix.numel())
    for start in range(0, matrix.shape[0], size):
        part = slice(start, start + size)
        state = {key: value[part] for key, value in item.state.items()}
        yield item._replace(matrix=matrix[part], target=target[part], state=state)


def _key(item: Item) -> tuple[Any, ...]:
    values = [item.options[name] for name in item.rule.direction_options]
    chosen = tuple((type(value), hashable(value)) for value in values)  # a rank of 1 is not a rank of 1.0
    return item.rule.name, chosen, item.matrix.shape[-2:], item.matrix.dtype, item.matrix.device


def _chunks(bucket: list[Item]) -> Iterator[list[Item]]:
    chunk: list[Item] = []
    elements = 0
    for item in bucket:
        if chunk and elements + item.matrix.numel() > MAX_ELEMENTS:
            yield chunk
            chunk, elements = [], 0
        chunk.append(item)
        elements += item.matrix.numel()
    yield chunk


def _apply_chunk(chunk: list[Item]) -> None:
    first = chunk[0]
    counts = [item.matrix.shape[:-2].numel() for item in chunk]
    stacked = _stack([_with_one_batch(item.matrix, item) for item in chunk])
    state = {key: _stack([_state_of(item, key) for item in chunk]) for key in first.state}
    updates, moved = first.rule.move(stacked, state, first.options)
    for key, value in moved.items():
        if value is not state[key]:
            _write_state([item.state[key] for item in chunk], value.split(counts), first.gate)
    parts = updates.to(first.target.dtype).split(counts)
    shaped = [
        (part.mT if item.lies_down else part).reshape(item.target.shape)
        for part, item in zip(parts, chunk, strict=True)
    ]
    for item, update in zip(chunk, shaped, strict=True):
        if item.padding_row is not None:
            update[..., item.padding_row, :] = 0
        if isinstance(item.decay, Tensor) or item.decay != 0:
            shrink_cautiously(item.target, update, item.decay)
    subtract([item.target for item in chunk], shaped, [item.factor for item in chunk])


def _stack(tensors: list[Tensor]) -> Tensor:
    """One tensor out of many with one batch dimension each."""
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors)


def _with_one_batch(tensor: Tensor, item: Item) -> Tensor:
    """The elements of the item's matrices, ``(batch, rows, cols)``."""
    *batch, rows, cols = item.matrix.shape
    return tensor.reshape(math.prod(batch), rows, cols)


def _state_of(item: Item, key: str) -> Tensor:
    """The state of the item's matrices under this key, with one batch dimension."""
    value, dims = item.state[key], item.matrix.ndim - 2
    if key in item.rule.viewed:  # as the target, perhaps not in the shape of the matrices
        return _with_one_batch(value, item)
    return value.reshape(value.shape[:dims].numel(), *value.shape[dims:])


def _write_state(targets: Iterable[Tensor], values: Iterable[Tensor], gate: Tensor | None) -> None:
    for target, value in zip(targets, values, strict=True):
        value = value.reshape(target.shape)
        target.copy_(value if gate is None else torch.where(gate > 0, value, target))


def subtract(targets: list[Tensor], updates: list[Tensor], factors: list[float | Tensor]) -> None:
    """``target ← target − factor · update``, as few calls as there are distinct factors."""
    by_factor: dict[float | int, tuple[float | Tensor, list[Tensor], list[Tensor]]] = {}
    for target, update, factor in zip(targets, updates, factors, strict=True):
        key = id(factor) if isinstance(factor, Tensor) else factor
        entry = by_factor.setdefault(key, (factor, [], []))
        entry[1].append(target)
        entry[2].append(update)
    for factor, some_targets, some_updates in by_factor.values():
        if isinstance(factor, Tensor):
            # foreach takes alpha as a host number, and reading one off the device would wait for it.
            torch._foreach_sub_(some_targets, torch._foreach_mul(some_updates, factor))
        else:
            torch._foreach_add_(some_targets, some_updates, alpha=-factor)
