"""Buckets: the same-shaped matrices of one step, stacked into one batched call of their rule's direction."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from orthoopt.rules import Rule

MAX_ELEMENTS = 2**25
"""The most elements stacked into one call, which bounds the memory of a step; a single matrix may exceed it."""


class Item(NamedTuple):
    """A matrix, or a batch of them, on its way through a rule."""

    rule: Rule
    options: dict[str, Any]
    matrix: Tensor
    """The signal, ``(..., rows, cols)``; may be a view of state, so it is only read."""
    target: Tensor
    """What the update is subtracted from; same shape as ``matrix``."""
    factor: float | Tensor
    """Learning rate times scale; a 0-d tensor where it lives on the device."""


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
    if item.rule.transposable and matrix.shape[-2] > matrix.shape[-1]:
        matrix, target = matrix.mT, target.mT
    if matrix.ndim == 2 or matrix.numel() <= MAX_ELEMENTS:
        yield item._replace(matrix=matrix, target=target)
        return
    size = max(1, MAX_ELEMENTS * matrix.shape[0] // matrix.numel())
    for m, t in zip(matrix.split(size), target.split(size), strict=True):
        yield item._replace(matrix=m, target=t)


def _key(item: Item) -> tuple[Any, ...]:
    chosen = tuple(_hashable(item.options[name]) for name in item.rule.direction_options)
    return item.rule.name, chosen, item.matrix.shape[-2:], item.matrix.dtype, item.matrix.device


def _hashable(value: Any) -> Any:
    return tuple(_hashable(inner) for inner in value) if isinstance(value, list | tuple) else value


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
    rule, options = chunk[0].rule, chunk[0].options
    rows, cols = chunk[0].matrix.shape[-2:]
    if len(chunk) == 1:
        stacked = chunk[0].matrix
    elif all(item.matrix.ndim == 2 for item in chunk):
        stacked = torch.stack([item.matrix for item in chunk])
    else:
        stacked = torch.cat([item.matrix.reshape(-1, rows, cols) for item in chunk])
    directions = rule.direct(stacked, options).to(chunk[0].target.dtype).reshape(-1, rows, cols)
    counts = [item.matrix.shape[:-2].numel() for item in chunk]
    updates = [part.reshape(item.target.shape) for part, item in zip(directions.split(counts), chunk, strict=True)]
    subtract([item.target for item in chunk], updates, [item.factor for item in chunk])


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
