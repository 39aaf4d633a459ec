"""Buckets: the same-shaped matrices of one step, stacked into one batched call of their rule's direction.

Bucket after bucket, momenta move straight into the stack, the rule makes updates of it, and parameters take them. So a
step holds one stack and its updates beside parameters, gradients and state, never those of all parameters.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from orthoopt.kernels import STILL, Moving, momentum_into, subtract_updates
from orthoopt.rules import Rule, hashable
from orthoopt.weight_decay import Decay, shrink_cautiously

T = TypeVar("T")

MAX_ELEMENTS = 2**25
"""The most elements stacked into one call, which bounds the memory of a step; a single matrix may exceed it."""


class Terms(NamedTuple):
    """What a group's parameters share in one step."""

    lr: float | Tensor
    """A 0-d tensor where it lives on the device."""
    decay: Decay = Decay()
    moving: Moving = STILL
    """How the momentum moves; ``STILL`` where an item's ``source`` is its signal already."""
    gate: Tensor | None = None
    """0-d, 1 or 0: whether state may move; None means yes."""
    alike: bool = False
    """Whether gradients are as in the last step, but for values and addresses."""


@dataclass(slots=True, eq=False)
class Item:
    """A matrix, or a batch of them, on its way through a step. ``source`` and ``terms`` are new at every step."""

    rule: Rule
    options: dict[str, Any]
    shape: tuple[int, ...]
    """``(..., rows, cols)``: the matrices as the rule sees them."""
    target: Tensor
    """What the update is subtracted from: the elements of the matrices in their order, their batch dimensions first."""
    source: Tensor
    """The gradient, shaped as ``target`` is; only read."""
    terms: Terms
    scale: float = 1.0
    """Of the update, beside the learning rate."""
    buffer: Tensor | None = None
    """The momentum, shaped as ``target`` is; moved in place."""
    state: dict[str, Tensor] = field(default_factory=dict)
    """What the rule remembers about these matrices; moved in place."""
    padding_row: int | None = None
    """The row of ``target`` that gets no update, whatever the rule makes of its zero gradient."""
    lies_down: bool = False
    """Whether the bucket has the transposes of these matrices."""
    piece: int = 0
    """Which of its parameter's pieces this is."""
    part: slice | None = None
    """Which part of that piece's batch; None for all of it."""

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
    for chunk in chunks([part for item in items for part in bounded(item)]):
        apply_chunk(chunk)


def bounded(item: Item) -> Iterator[Item]:
    """The item oriented for its bucket, cut along its batch where it is larger than a bucket may be."""
    shape = item.shape
    if shape[-2] > shape[-1] and item.rule.transposable(item.options):
        item = dataclasses.replace(item, lies_down=True)
    if len(shape) == 2 or item.elements <= MAX_ELEMENTS:
        yield item
        return
    size = max(1, MAX_ELEMENTS * shape[0] // item.elements)
    for start in range(0, shape[0], size):
        part = slice(start, start + size)
        yield dataclasses.replace(
            item,
            shape=(min(size, shape[0] - start), *shape[1:]),
            target=item.target[part],
            source=item.source[part],
            buffer=None if item.buffer is None else item.buffer[part],
            state={key: value[part] for key, value in item.state.items()},
            part=part,
        )


def chunks(items: Iterable[Item]) -> list[list[Item]]:
    """The items, bounded already, by bucket, in portions of at most :data:`MAX_ELEMENTS`."""
    return [portion for bucket in grouped(items, _key) for portion in _portions(bucket)]


def bytes_needed(chunk: list[Item]) -> int | None:
    """What a bucket needs beside parameters, gradients and state: its stack of signals, and what its rule works in.

    None where the rule does not say.
    """
    first = chunk[0]
    if first.rule.workspace is None:
        return None
    *_, rows, cols = first.stacked_shape
    batch, dtype = sum(item.batch for item in chunk), _signal_dtype(first)
    work = first.rule.workspace(batch, rows, cols, first.options, dtype, first.target.device)
    return batch * rows * cols * dtype.itemsize + work


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


def apply_chunk(chunk: list[Item]) -> None:
    """One call of a rule: its matrices' momenta, the update and what becomes of it."""
    subtract(chunk, updates_of(chunk))


def updates_of(chunk: list[Item]) -> list[Tensor]:
    """The updates of one bucket, shaped as the targets; momenta and state move, targets do not."""
    first = chunk[0]
    counts = [item.batch for item in chunk]
    stacked = _signals(chunk)
    state = {key: _stack([_state_of(item, key) for item in chunk]) for key in first.state}
    updates, moved = first.rule.move(stacked, state, first.options)
    del stacked
    for key, value in moved.items():
        if value is not state[key]:
            write_state([item.state[key] for item in chunk], value.split(counts), first.terms.gate)
    parts = [_as_target(part, item) for part, item in zip(updates.split(counts), chunk, strict=True)]
    for item, part in zip(chunk, parts, strict=True):
        if item.padding_row is not None:
            part[..., item.padding_row, :] = 0
    return parts


def _signals(chunk: list[Item]) -> Tensor:
    """What the rule gets: ``(batch, rows, cols)``; may be a view of a gradient or of state, so it is only read."""
    first = chunk[0]
    if len(chunk) == 1 and (alone := _signal_in_place(first)) is not None:
        return alone
    counts = [item.batch for item in chunk]
    stacked = first.source.new_empty((sum(counts), *first.stacked_shape[1:]), dtype=_signal_dtype(first))
    outs = [_as_target(part, item) for part, item in zip(stacked.split(counts), chunk, strict=True)]
    pairs = list(zip(chunk, outs, strict=True))
    for some in grouped(pairs, lambda pair: pair[0].terms.moving):
        moving, gate = some[0][0].terms.moving, first.terms.gate
        if moving.remembers:
            buffers = [item.buffer for item, _ in some if item.buffer is not None]
            momentum_into([item.source for item, _ in some], buffers, [out for _, out in some], moving, gate)
            continue
        for item, out in some:
            out.copy_(_gradient(item))
    return stacked


def _signal_dtype(item: Item) -> torch.dtype:
    """Of the stack that an item is part of."""
    wide = torch.promote_types(item.target.dtype, torch.float32)
    *_, rows, cols = item.stacked_shape
    wanted = item.rule.signal_dtype(item.options, rows, cols, item.target.device) if wide == torch.float32 else None
    return wanted or wide


def _signal_in_place(item: Item) -> Tensor | None:
    """The signal of an item that is a bucket by itself, where it need not be written anew."""
    moving = item.terms.moving
    if not moving.remembers:
        return _as_stacked(_gradient(item), item)
    if item.buffer is None or moving.from_grad != 0 or moving.from_buffer != 1:
        return None
    momentum_into([item.source], [item.buffer], None, moving, item.terms.gate)
    return _as_stacked(item.buffer, item)


def _gradient(item: Item) -> Tensor:
    """The signal of an item without momentum; itself where nothing is to be done."""
    source = item.source.to(item.dtype)
    if item.terms.gate is not None:
        source = torch.where(item.terms.gate > 0, source, 0)
    return source if item.terms.moving.from_grad == 1 else source * item.terms.moving.from_grad


def subtract(chunk: Sequence[Item], updates: Sequence[Tensor]) -> None:
    """Let the targets have their updates, shaped as they are."""
    pairs = list(zip(chunk, updates, strict=True))
    for item, update in pairs:
        if item.terms.decay.is_cautious:
            _subtract_cautiously(item, update)
    plain = [pair for pair in pairs if not pair[0].terms.decay.is_cautious]
    for some in grouped(plain, lambda pair: _by_identity(pair[0].terms)):
        targets, terms = [item.target for item, _ in some], some[0][0].terms
        scales = [item.scale for item, _ in some]
        subtract_updates(targets, [update for _, update in some], scales, terms.lr, terms.decay.keep)


def _subtract_cautiously(item: Item, update: Tensor) -> None:
    """Decay and update of one item, rounded to the parameter's dtype once: what decays alone would be rounded away."""
    wide = item.target.to(item.dtype)
    shrink_cautiously(wide, update, item.terms.decay.cautious)
    subtract_updates([wide], [update], [item.scale], item.terms.lr)
    if wide is not item.target:
        item.target.copy_(wide)


def grouped(things: Iterable[T], key: Callable[[T], Any]) -> list[list[T]]:
    """Those with equal keys together, in the order of their first."""
    found: dict[Any, list[T]] = {}
    for thing in things:
        found.setdefault(key(thing), []).append(thing)
    return list(found.values())


def _by_identity(terms: Terms) -> tuple[Any, ...]:
    """Something that is equal for terms that one call can serve; tensors are never compared by their values."""
    values = (terms.lr, terms.decay.keep)
    return (terms.moving, *((id(value),) if isinstance(value, Tensor) else value for value in values))


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


def write_state(targets: Iterable[Tensor], values: Iterable[Tensor], gate: Tensor | None) -> None:
    """Let state tensors have new values, of as many elements, where the gate is open."""
    for target, value in zip(targets, values, strict=True):
        value = value.reshape(target.shape)
        target.copy_(value if gate is None else torch.where(gate > 0, value, target))
