"""The matrices of parameters, prepared once: views, scales and buckets stay the same from step to step.

Taking a parameter apart, and finding the bucket of each of its matrices, costs the host more than a GPU needs for the
products of a small model. So it is remembered for as long as the parameter and its state are where they were.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from orthoopt import buckets, matrix_state
from orthoopt._work import Work
from orthoopt.buckets import Item, Terms
from orthoopt.fusible import Fusible, fusible
from orthoopt.rules import key_of
from orthoopt.scale import scale_factor
from orthoopt.views import View

_NO_SOURCE = torch.empty(0)
_PLAIN = (Tensor, torch.nn.Parameter)


class _Known(NamedTuple):
    """What is remembered of one parameter."""

    key: tuple[Any, ...]
    """Rule, options, view, scale: what the items were made for."""
    place: tuple[Any, ...]
    """Where the parameter's memory was, and how it was laid out."""
    state: dict[str, tuple[Tensor, int]]
    """The state tensors that the items hold parts of, and where their memory was."""
    items: list[Item]


class Matrices:
    """The matrices of an optimizer's parameters."""

    def __init__(self) -> None:
        self._known: dict[Tensor, _Known] = {}
        self._order: tuple[int, ...] = ()
        self._fusible: list[Fusible] = []
        self._chunks: list[list[Item]] = []
        self._settled: dict[int, tuple[Work, list[tuple[Item, int]]]] = {}

    def settle(self, work: Sequence[Work]) -> bool:
        """Let :meth:`of` take these very parts as it has last found their parameters, until it is told others.

        False, with nothing remembered, where a parameter is not seen in its own memory.
        """
        self._settled = {}
        parts = [part for part in work if part.rule.is_matrix]
        if not all(param in self._known for part in parts for param in part.params):
            return False
        for part in parts:
            places = enumerate(part.params)
            self._settled[id(part)] = part, [(x, place) for place, param in places for x in self._known[param].items]
        return True

    def of(
        self,
        work: Work,
        sources: Sequence[Tensor],
        terms: Terms,
        states: Mapping[Tensor, dict[str, Any]],
        state_of: Callable[[Tensor], dict[str, Any]],
    ) -> tuple[list[Item], list[tuple[Tensor, Tensor]]]:
        """The items of a group's parameters, ready for this step.

        Args:
            work: the group's part of the step.
            sources: gradients or signals, each shaped as its parameter.
            terms: what they share.
            states: the optimizer's state.
            state_of: the state of a parameter, completed where something of it is missing.

        Returns:
            The items, and (parameter, what is written in its place) where a view cannot share its memory.
        """
        if id(work) in self._settled:
            return _refilled(self._settled[id(work)][1], work.view, sources, terms), []
        group, view, remembers = work.group, work.view, terms.moving.remembers
        key = (work.rule.name, key_of(work.options), view.spec, group["scale"], group.get("padding_row"), remembers)
        items: list[Item] = []
        copies: list[tuple[Tensor, Tensor]] = []
        for param, source in zip(work.params, sources, strict=True):
            known = self._known.get(param) if type(param) in _PLAIN else None
            if known is None or not _holds(known, key, param, states.get(param, {})):
                state = state_of(param)
                written = param.detach()
                if view.shares_memory(param):
                    known = _prepare(work, key, param, written, state, terms)
                    self._known[param] = known
                else:
                    self._known.pop(param, None)
                    written = written.contiguous()
                    copies.append((param, written))
                    known = _prepare(work, key, param, written, state, terms)
            items += _refilled([(item, 0) for item in known.items], view, [source], terms)
        return items, copies

    def bytes_needed(self) -> int | None:
        """What the largest bucket of the last step needs; see :func:`orthoopt.buckets.bytes_needed`."""
        needs = [buckets.bytes_needed(chunk) for chunk in self._chunks]
        known = [need for need in needs if need is not None]
        return max(known, default=0) if len(known) == len(needs) else None

    def prepare(self, items: Sequence[Item]) -> None:
        """What :meth:`apply` can do before anything moves; it, or :meth:`release`, must follow with the same items."""
        self._sort(items)
        for some in self._fusible:
            some.prepare()

    def apply(self, items: Sequence[Item]) -> None:
        """Let every item have its update; gradients are not held any longer then."""
        self._sort(items)
        try:
            for some in self._fusible:
                some.apply()
            for chunk in self._chunks:
                buckets.apply_chunk(chunk)
        finally:
            self.release(items)

    def release(self, items: Sequence[Item]) -> None:
        """Let go of the gradients that these items hold."""
        for some in self._fusible:
            some.release()
        for item in items:
            item.source = _NO_SOURCE

    def _sort(self, items: Sequence[Item]) -> None:
        order = tuple(map(id, items))
        if order != self._order:
            # The chunks keep the items alive, so that no other can take one's identity.
            self._order = order
            self._fusible, rest = fusible(items)
            self._chunks = buckets.chunks(rest)


def _refilled(items: Sequence[tuple[Item, int]], view: View, sources: Sequence[Tensor], terms: Terms) -> list[Item]:
    """Items, each with the place of its source, for another step."""
    pieces = [view.targets(source) for source in sources] if view.steps else [[source] for source in sources]
    for item, place in items:
        piece = pieces[place][item.piece]
        item.source = piece if item.part is None else piece[item.part]
        item.terms = terms
    return [item for item, _ in items]


def _holds(known: _Known, key: tuple[Any, ...], param: Tensor, state: dict[str, Any]) -> bool:
    return (
        known.key == key
        and known.place == _place(param)
        and all(state.get(name) is t and t.data_ptr() == place for name, (t, place) in known.state.items())
    )


def _place(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.data_ptr(), tensor.shape, tensor.stride()


def _prepare(
    work: Work, key: tuple[Any, ...], param: Tensor, written: Tensor, state: dict[str, Any], terms: Terms
) -> _Known:
    rule, options, view, group = work.rule, work.options, work.view, work.group
    assert rule.rms is not None
    targets, shapes = view.targets(written), view.piece_shapes(tuple(param.shape))
    buffers: Sequence[Tensor | None] = [None] * len(targets)
    if terms.moving.remembers:
        if not view.shares_memory(state["momentum_buffer"]):
            state["momentum_buffer"] = state["momentum_buffer"].contiguous()
        buffers = view.targets(state["momentum_buffer"])
    own = matrix_state.of_pieces(rule, state, param, view, options)
    items: list[Item] = []
    for index, (shape, target, buffer, remembered) in enumerate(zip(shapes, targets, buffers, own, strict=True)):
        rows, cols = shape[-2:]
        scale = scale_factor(group["scale"], rows, cols, rule.rms(rows, cols, options))
        padding_row = group.get("padding_row")
        item = Item(rule, options, shape, target, target, terms, scale, buffer, remembered, padding_row, piece=index)
        items += buckets.bounded(item)
    if type(param) not in _PLAIN:
        return _Known(key, (), {}, items)
    held = {name: (tensor, tensor.data_ptr()) for name, tensor in state.items() if isinstance(tensor, Tensor)}
    return _Known(key, _place(written), held, items)
