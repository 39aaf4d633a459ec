"""Rules that work on shards: no matrix is gathered, ranks exchange the little that each rule asks for."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from orthoopt import buckets
from orthoopt.buckets import Item, Terms
from orthoopt.distributed import rounds
from orthoopt.distributed.layout import Layout, elements, extent
from orthoopt.distributed.rounds import Extent
from orthoopt.distributed.shard_views import Part, cut_of
from orthoopt.kernels import momentum_into
from orthoopt.rules import Rule, key_of
from orthoopt.rules._exchange import Shard
from orthoopt.scale import scale_factor
from orthoopt.views import View, parse_view


class Cutting(NamedTuple):
    """How a parameter's pieces are cut over the ranks of its ring, where its rule can work on that."""

    parts: tuple[Part, ...]
    """This rank's, one a piece."""
    extents: tuple[tuple[Extent, ...], ...]
    """For each piece those of all ranks."""


def cutting_of(rule: Rule, options: dict[str, Any], view: View, layout: Layout, dtype: torch.dtype) -> Cutting | None:
    """How a rule can work on shards of a parameter; None where its matrices have to be whole.

    Args:
        rule: the rule.
        options: its options.
        view: how the parameter is seen as matrices, or as vectors.
        layout: how it lies.
        dtype: of the arithmetic.
    """
    if rule.on_shards is None:
        return None
    return _cutting_of(rule.name, key_of(options), view.spec, layout, dtype)


@functools.lru_cache(maxsize=4096)
def _cutting_of(rule: str, options: Any, spec: str, layout: Layout, dtype: torch.dtype) -> Cutting | None:
    from orthoopt import rules

    return _probe(rules.get(rule), rules.options_of(options), parse_view(spec), layout, dtype)


def _probe(rule: Rule, options: dict[str, Any], view: View, layout: Layout, dtype: torch.dtype) -> Cutting | None:
    found = _vectors(layout) if not view.is_matrix else _matrices(view, layout)
    if found is None:
        return None
    like = torch.empty(extent(layout.box), dtype=dtype, device="meta")
    storage = like.untyped_storage()._cdata
    for part in found.parts:
        piece = part.of(like)
        if piece.untyped_storage()._cdata != storage:
            return None  # a copy: writing it would not write the parameter
        state = {key: torch.empty_like(piece) for key in rule.viewed}
        if rule.is_matrix:
            whole = torch.empty((*piece.shape[:-2], part.shard.rows, part.shard.cols), dtype=dtype, device="meta")
            state |= rule.init_matrix(whole, options)
        generator = rule.move_part(piece, part.shard, options, state)
        if generator is None:
            return None
        generator.close()
    return found


def _matrices(view: View, layout: Layout) -> Cutting | None:
    boxes = [(tuple(start for start, _ in box), extent(box)) for box in layout.boxes]
    cut = cut_of(view, layout.shape, boxes)
    if cut is None or cut.apart:
        return None
    pieces = range(len(cut.parts[0]))
    extents = tuple(tuple(_extent(found[piece]) for found in cut.parts) for piece in pieces)
    return Cutting(tuple(cut.parts[layout.place]), extents)


def _extent(part: Part) -> Extent:
    rows, cols = part.shape[-2:]
    return Extent(part.shard.row, rows, part.shard.col, cols)


def _vectors(layout: Layout) -> Cutting:
    """The whole tensor as one row, its elements in the order of ranks."""
    lengths = [elements(box) for box in layout.boxes]
    starts = [sum(lengths[:rank]) for rank in range(len(lengths))]
    extents = tuple(Extent(0, 1, start, length) for start, length in zip(starts, lengths, strict=True))
    start, length = starts[layout.place], lengths[layout.place]
    shard = Shard(1, sum(lengths), 0, start, cut_rows=False)
    return Cutting((Part(0, shard, ((0, 1), (start, start + length)), (_as_row,)),), (extents,))


def _as_row(local: Tensor) -> Tensor:
    return local.reshape(1, -1)


@dataclass(slots=True, eq=False)
class CutParam:
    """A parameter whose rule works on shards, on its way through a step."""

    rule: Rule
    options: dict[str, Any]
    cutting: Cutting
    group: Mapping[str, Any]
    ring: Any
    """The process group of the ranks that hold it."""
    local: Tensor
    source: Tensor
    """Of its gradient or signal, as ``terms.moving`` takes it."""
    state: dict[str, Any]
    terms: Terms

    def signal(self) -> Tensor:
        """Move the momentum; what the rule gets, shaped as the local part."""
        moving, gate = self.terms.moving, self.terms.gate
        wide = torch.promote_types(self.local.dtype, torch.float32)
        if moving.remembers:
            out = torch.empty(self.source.shape, dtype=wide, device=self.source.device)
            momentum_into([self.source], [self.state["momentum_buffer"]], [out], moving, gate)
            return out
        source = self.source.to(wide)
        source = source if gate is None else torch.where(gate > 0, source, 0)
        return source if moving.from_grad == 1 else source * moving.from_grad

    def state_of(self, part: Part) -> dict[str, Tensor]:
        """What the rule remembers of a piece: this rank's part of what is shaped as it, all of the rest."""
        own = {key: part.of(self.state[key]) for key in self.rule.viewed if key in self.state}
        suffix = "" if len(self.cutting.parts) == 1 else f".{part.piece}"
        rows, cols = part.shard.rows, part.shard.cols
        if self.rule.is_matrix:
            like = torch.empty((*part.shape[:-2], rows, cols), device="meta")
            own |= {key: self.state[key + suffix] for key in self.rule.init_matrix(like, self.options)}
        return own


def run(params: Sequence[CutParam]) -> None:
    """Let parameters whose rules work on shards have their updates; every rank of their rings calls it alike."""
    if not params:
        return
    written = {param: param.local.contiguous() for param in params}
    work: list[tuple[CutParam, Part, dict[str, Tensor]]] = []
    generators, groups, extents = [], [], []
    for param in params:
        signal = param.signal()
        for part, extent_of_ranks in zip(param.cutting.parts, param.cutting.extents, strict=True):
            state = param.state_of(part)
            generator = param.rule.move_part(part.of(signal), part.shard, param.options, state)
            assert generator is not None
            work.append((param, part, state))
            generators.append(generator)
            groups.append(param.ring)
            extents.append(extent_of_ranks)
    items: list[Item] = []
    updates: list[Tensor] = []
    for (param, part, state), (update, moved) in zip(work, rounds.run(generators, groups, extents), strict=True):
        for key, value in moved.items():
            if value is not state[key]:
                buckets.write_state([state[key]], [value], param.terms.gate)
        if update.numel():
            items.append(_item(param, part, written[param], update))
            updates.append(update)
    buckets.subtract(items, updates)
    for param, local in written.items():
        if local is not param.local:
            param.local.copy_(local)


def _item(param: CutParam, part: Part, local: Tensor, update: Tensor) -> Item:
    scale = 1.0
    if param.rule.is_matrix:
        rows, cols = part.shard.rows, part.shard.cols
        assert param.rule.rms is not None
        scale = scale_factor(param.group["scale"], rows, cols, param.rule.rms(rows, cols, param.options))
    padding = param.group.get("padding_row")
    if padding is not None and part.shard.row <= padding < part.shard.row + update.shape[-2]:
        update[..., padding - part.shard.row, :] = 0
    return Item(param.rule, param.options, part.shape, part.of(local), update, param.terms, scale)
