"""Which rank computes what: matrices go to owners, the load of each balanced by operations, in waves of bounded memory.

Everything here is computed by every rank for itself, and comes out the same on all.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch

from orthoopt import buckets, rules
from orthoopt.distributed.layout import Box, Layout, elements, within
from orthoopt.rules import Rule, key_of, options_of


class Unit(NamedTuple):
    """What is computed in one place: a parameter, or a range of the batch that its first dimension is."""

    param: int
    """Which of the step's parameters."""
    rows: tuple[int, int] | None
    """The range of its first dimension; None for all of it."""
    layout: Layout
    cost: float
    """Operations."""
    kind: Any
    """Equal where matrices share a bucket."""

    @property
    def whole(self) -> Box:
        """The box of all of it."""
        return within(tuple((0, size) for size in self.layout.shape), self.rows)

    def box(self, place: int) -> Box:
        """What a rank of the ring holds of it."""
        return within(self.layout.boxes[place], self.rows)

    def holders(self) -> list[int]:
        """The ranks of the ring that hold part of it."""
        return [place for place in range(len(self.layout.ranks)) if elements(self.box(place))]


class Owned(NamedTuple):
    """A unit and the place of its owner in the ring."""

    unit: Unit
    owner: int


def units_of(param: int, layout: Layout, is_batch: bool, cost: float, kind: Any) -> list[Unit]:
    """The units of a parameter.

    Args:
        param: its number.
        layout: how it lies.
        is_batch: whether its first dimension is a batch, which may be taken apart: where shards cut it, so that no
            matrix leaves the ranks that hold it, and further for balance.
        cost: operations of the whole.
        kind: see :class:`Unit`.
    """
    if elements(tuple((0, size) for size in layout.shape)) == 0:
        return []
    if not is_batch:
        return [Unit(param, None, layout, cost, kind)]
    bounds = sorted({bound for box in layout.boxes for bound in box[0] if elements(box)})
    units = []
    for start, stop in zip(bounds[:-1], bounds[1:], strict=True):
        holders = sum(elements(within(box, (start, stop))) > 0 for box in layout.boxes)
        size = -(-(stop - start) // holders)
        for first in range(start, stop, size):
            rows = (first, min(first + size, stop))
            units.append(Unit(param, rows, layout, cost * (rows[1] - rows[0]) / layout.shape[0], kind))
    return units


def waves(units: Iterable[Unit], count: int) -> list[list[Owned]]:
    """The units with their owners, same kinds together, in portions that fill about one bucket on every rank.

    A unit's owner holds part of it, so one that lies on a single rank stays there. The largest units are given away
    first, each to the rank with the least to do in its wave, and before it.

    Args:
        units: of one ring.
        count: ranks in the ring.
    """
    together: dict[Any, list[Unit]] = {}
    for unit in units:
        together.setdefault(unit.kind, []).append(unit)
    portions: list[list[Unit]] = [[]]
    size = 0
    for unit in (unit for some in together.values() for unit in some):
        if portions[-1] and size + elements(unit.whole) > buckets.MAX_ELEMENTS * count:
            portions.append([])
            size = 0
        portions[-1].append(unit)
        size += elements(unit.whole)
    total = [0.0] * count
    return [_owned(portion, total) for portion in portions if portion]


def _owned(units: Sequence[Unit], total: list[float]) -> list[Owned]:
    load = [0.0] * len(total)
    owners = [0] * len(units)
    for i in sorted(range(len(units)), key=lambda i: (-units[i].cost, i)):
        owner = min(units[i].holders(), key=lambda place: (load[place], total[place], place))
        owners[i] = owner
        load[owner] += units[i].cost
        total[owner] += units[i].cost
    return [Owned(unit, owner) for unit, owner in zip(units, owners, strict=True)]


def cost_of(rule: Rule, shapes: Sequence[tuple[int, ...]], options: dict[str, Any]) -> float:
    """Operations of one step's updates of these pieces, ``(..., rows, cols)``."""
    return sum(
        torch.Size(batch).numel() * _cost(rule.name, rows, cols, key_of(options)) for *batch, rows, cols in shapes
    )


@functools.lru_cache(maxsize=1024)
def _cost(name: str, rows: int, cols: int, options: Any) -> float:
    """Counted while the rule runs on a matrix without memory; a rule that must see values costs a few products."""
    from orthoopt.flops import FlopCounter

    counter = FlopCounter()
    try:
        with torch.inference_mode(False), torch.no_grad(), counter:
            rules.get(name).direct(torch.empty(rows, cols, device="meta"), options_of(options))
    except (RuntimeError, NotImplementedError):  # torch's own, for a rule that reads values: here there are none
        return 30.0 * rows * cols * min(rows, cols)
    return float(counter.flops.total)
