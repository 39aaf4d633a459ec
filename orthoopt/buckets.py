"""Buckets: the same-shaped matrices of one step, stacked into one batched call of their rule's direction.

Bucket after bucket, momenta move straight into the stack, the rule makes updates of it, and parameters take them. So a
step holds one stack and its updates beside parameters, gradients and state, never those of all parameters.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from orthoopt.kernels import STILL, Moving, momentum_into, subtract_updates
from orthoopt.rules import Rule, hashable
from orthoopt.weight_decay import shrink_cautiously

MAX_ELEMENTS = 2**25
"""The most elements stacked into one call, which bounds the memory of a step; a single matrix may exceed it."""


class Item(NamedTuple):
    """A matrix, or a batch of them, on its way through a step."""

    rule: Rule
    options: dict[str, Any]
    shape: tuple[int, ...]
    """``(..., rows, cols)``: the matrices as the rule sees them."""
    source: Tensor
    """The gradient, shaped as ``target`` is; only read."""
    target: Tensor
    """What the update is subtracted from: the elements of the matrices in their order, their batch dimensions first."""
    lr: float | Tensor
    """A 0-d tensor where it lives on the device."""
    scale: float = 1.0
    """Of the update, beside the learning rate."""
    keep: float | Tensor = 1.0
    """What weight decay leaves of the parameter."""
    buffer: Tensor | None = None
    """The momentum, shaped as ``target`` is; moved in place."""
    moving: Moving = STILL
    """How the momentum moves; ``STILL`` where ``source`` is the signal already."""
    state: dict[str, Tensor] = {}
    """What the rule remembers about these matrices; moved in place."""
    cautious: float | Tensor = 0.0
    """Cautious weight decay, learning rate times coefficient."""
    gate: Tensor | None = None
    """0-d, 1 or 0: whether state may move; None means yes."""
    lies_down: bool = False
    """Whether the bucket has the transposes of these matrices."""
    padding_row: int | None = None
    """The row of ``target`` that gets no update, whatever the rule makes of its zero gradient."""

    @property
    def batch(self) -> int:
        """How many matrices these are."""
        return math.prod(self.shape[:-2])

    @property
    def elements(self) -> int:
        """Their elements together."""
        return math.prod(self.shape)

    @property
    def stacked_shape(self) -> tuple[int, int, int]:
        """``(batch, rows, cols)`` in the bucket."""
        *_, rows, cols = self.shape
        return (self.batch, cols, rows) if self.lies_down else (self.batch, rows, cols)

    @property
    def dtype(self) -> torch.dtype:
        """Of the arithmetic: float32 or wider."""
        return torch.promote_types(self.source.dtype, torch.float32)


def apply(items: Iterable[Item]) -> None:
    """``target ← keep·target − lr·scale·direction(momentum)`` for every item, one direction call a bucket."""
    for chunk in chunks(items):
        _apply_chunk(chunk)


def chunks(items: Iterable[Item]) -> Iterator[list[Item]]:
    """The items by bucket, in portions of at most :data:`MAX_ELEMENTS`."""
    buckets: dict[tuple[Any, ...], list[Item]] = {}
    for item in items:
        for part in _bounded(item):
            buckets.setdefault(_key(part), []).append(part)
    for bucket in buckets.values():
        yield from _portions(bucket)


def _bounded(item: Item) -> Iterator[Item]:
    """The item oriented for its bucket, cut along its batch where it is larger than a bucket may be."""
    shape = item.shape
    if shape[-2] > shape[-1] and item.rule.transposable(item.options):
        item = item._replace(lies_down=True)
    if len(shape) == 2 or item.elements <= MAX_ELEMENTS:
        yield item
        return
    size = max(1, MAX_ELEMENTS * shape[0] // item.elements)
    for start in range(0, shape[0], size):
        part = slice(start, start + size)
        yield item._replace(
            shape=(min(size, shape[0] - start), *shape[1:]),
            source=item.source[part],
            target=item.target[part],
            buffer=None if item.buffer is None else item.buffer[part],
            state={key: value[part] for key, value in item.state.items()},
        )


def _key(item: Item) -> tuple[Any, ...]:
    values = [item.options[name] for name in item.rule.direction_options]
    chosen = tuple((type(value), hashable(value)) for value in values)  # a rank of 1 is not a rank of 1.0
    return item.rule.name, chosen, item.stacked_shape[1:], item.dtype, item.source.device


def _portions(bucket: list[Item]) -> Iterator[list[Item]]:
    portion: list[Item] = []
    elements = 0
    for item in bucket:
        if portion and elements + item.elements > MAX_ELEMENTS:
            yield portion
            portion, elements = [], 0
        portion.append(item)
        elements += item.elements
    yield portion


def _apply_chunk(chunk: list[Item]) -> None:
    first = chunk[0]
    if first.rule.fused_step is not None and _in_one_pass(chunk):
        return
    counts = [item.batch for item in chunk]
    stacked = _signals(chunk)
    state = {key: _stack([_state_of(item, key) for item in chunk]) for key in first.state}
    updates, moved = first.rule.move(stacked, state, first.options)
    del stacked
    for key, value in moved.items():
        if value is not state[key]:
            _write_state([item.state[key] for item in chunk], value.split(counts), first.gate)
    parts = zip(updates.split(counts), chunk, strict=True)
    _subtract(chunk, [_as_target(part, item) for part, item in parts])


def _in_one_pass(chunk: list[Item]) -> bool:
    """Let the rule do everything itself for items that it takes alike; whether it did."""
    first = chunk[0]
    assert first.rule.fused_step is not None
    if torch.compiler.is_compiling() or any(item.shape != item.target.shape or item.buffer is None for item in chunk):
        return False
    if any(not _is_number(item.cautious, 0) or item.padding_row is not None for item in chunk):
        return False
    alike = _by(chunk, lambda item: (item.moving, _identity(item.lr), _identity(item.keep)))
    if len(alike) != 1:
        for items in alike:
            _apply_chunk(items)
        return True
    buffers = [item.buffer for item in chunk if item.buffer is not None]
    return first.rule.fused_step(
        [item.target for item in chunk], [item.source for item in chunk], buffers, first.moving, first.options,
        scales=[item.scale for item in chunk], lr=first.lr, keep=first.keep, gate=first.gate,
    )  # fmt: skip


def _signals(chunk: list[Item]) -> Tensor:
    """What the rule gets: ``(batch, rows, cols)``; may be a view of a gradient or of state, so it is only read."""
    first = chunk[0]
    if len(chunk) == 1 and (alone := _signal_in_place(first)) is not None:
        return alone
    counts = [item.batch for item in chunk]
    stacked = first.source.new_empty((sum(counts), *first.stacked_shape[1:]), dtype=first.dtype)
    outs = [_as_target(part, item) for part, item in zip(stacked.split(counts), chunk, strict=True)]
    pairs = list(zip(chunk, outs, strict=True))
    for some in _by(pairs, lambda pair: pair[0].moving):
        moving = some[0][0].moving
        if moving.remembers:
            buffers = [item.buffer for item, _ in some if item.buffer is not None]
            momentum_into([item.source for item, _ in some], buffers, [out for _, out in some], moving, first.gate)
            continue
        for item, out in some:
            out.copy_(_gradient(item))
    return stacked


def _signal_in_place(item: Item) -> Tensor | None:
    """The signal of an item that is a bucket by itself, where it need not be written anew."""
    moving = item.moving
    if not moving.remembers:
        return _as_stacked(_gradient(item), item)
    if item.buffer is None or moving.from_grad != 0 or moving.from_buffer != 1:
        return None
    momentum_into([item.source], [item.buffer], None, moving, item.gate)
    return _as_stacked(item.buffer, item)


def _gradient(item: Item) -> Tensor:
    """The signal of an item without momentum; itself where nothing is to be done."""
    source = item.source.to(item.dtype)
    if item.gate is not None:
        source = torch.where(item.gate > 0, source, 0)
    return source if item.moving.from_grad == 1 else source * item.moving.from_grad


def _subtract(chunk: list[Item], updates: list[Tensor]) -> None:
    """Let the parameters have their updates, shaped as they are."""
    pairs = list(zip(chunk, updates, strict=True))
    for item, update in pairs:
        if item.padding_row is not None:
            update[..., item.padding_row, :] = 0
        if not _is_number(item.cautious, 0):
            shrink_cautiously(item.target, update, item.cautious)
    for some in _by(pairs, lambda pair: (_identity(pair[0].lr), _identity(pair[0].keep))):
        first = some[0][0]
        targets, scales = [item.target for item, _ in some], [item.scale for item, _ in some]
        subtract_updates(targets, [update for _, update in some], scales, first.lr, first.keep)


def _by(things: Iterable[Any], key: Any) -> list[list[Any]]:
    """Those with equal keys together, in the order of their first."""
    found: dict[Any, list[Any]] = {}
    for thing in things:
        found.setdefault(key(thing), []).append(thing)
    return list(found.values())


def _identity(value: float | Tensor) -> Any:
    return (id(value),) if isinstance(value, Tensor) else value


def _is_number(value: float | Tensor, number: float) -> bool:
    return not isinstance(value, Tensor) and value == number


def _stack(tensors: Sequence[Tensor]) -> Tensor:
    """One tensor out of many with one batch dimension each."""
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors))


def _as_stacked(tensor: Tensor, item: Item) -> Tensor:
    """What is shaped as the target, ``(batch, rows, cols)`` as the bucket has it."""
    *_, rows, cols = item.shape
    stacked = tensor.reshape(item.batch, rows, cols)
    return stacked.mT if item.lies_down else stacked


def _as_target(part: Tensor, item: Item) -> Tensor:
    """A part of the bucket, shaped as the target; shares memory with the bucket."""
    return (part.mT if item.lies_down else part).view(item.target.shape)


def _state_of(item: Item, key: str) -> Tensor:
    """The state of the item's matrices under this key, with one batch dimension."""
    value = item.state[key]
    if key in item.rule.viewed:  # as the target, perhaps not in the shape of the matrices
        return _as_stacked(value, item)
    dims = len(item.shape) - 2
    return value.reshape(value.shape[:dims].numel(), *value.shape[dims:])


def _write_state(targets: Iterable[Tensor], values: Iterable[Tensor], gate: Tensor | None) -> None:
    for target, value in zip(targets, values, strict=True):
        value = value.reshape(target.shape)
        target.copy_(value if gate is None else torch.where(gate > 0, value, target))
