"""Matrices cut into parts, and the parts of a step put together again."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from orthoopt.distributed.rounds import together
from orthoopt.distributed.shard_views import Box, Part, cut_of
from orthoopt.rules import Rule
from orthoopt.views import parse_view

MATRIX = parse_view("matrix")


@st.composite
def cuts(draw: st.DrawFn, rows: int, cols: int, along: str = "both") -> tuple[list[int], list[int]]:
    """Edges of parts along rows and along columns: none, even as torch cuts, or uneven with empty ones."""

    def edges(size: int) -> list[int]:
        if draw(st.booleans(), label="even"):
            count = draw(st.integers(1, 4), label="parts")
            step = -(-size // count)
            return [min(i * step, size) for i in range(count + 1)]
        return [0, *sorted(draw(st.lists(st.integers(0, size), max_size=3), label="cuts")), size]

    kind = draw(st.sampled_from(("rows", "cols", "both")), label="along") if along == "both" else along
    return edges(rows) if kind != "cols" else [0, rows], edges(cols) if kind != "rows" else [0, cols]


def parts_of(shape: tuple[int, ...], edges: tuple[list[int], list[int]]) -> list[Part]:
    """The parts of matrices ``(..., rows, cols)`` between these edges."""
    batch = len(shape) - 2
    boxes: list[Box] = [
        ((*[0] * batch, a, c), (*shape[:-2], b - a, d - c))
        for (a, b), (c, d) in itertools.product(*(itertools.pairwise(along) for along in edges))
    ]
    cut = cut_of(MATRIX, shape, boxes)
    assert cut is not None
    return [rank[0] for rank in cut.parts]


def inside(part: Part) -> tuple[slice, ...]:
    return tuple(slice(begin, end) for begin, end in part.ranges)


def moved_in_parts(
    rule: Rule, x: Tensor, parts: list[Part], options: dict[str, Any], states: list[dict[str, Tensor]] | None = None
) -> tuple[Tensor, list[dict[str, Any]]] | None:
    """The update of ``x`` made by its parts, and every part's new state; None where the rule wants the whole."""
    states = [{} for _ in parts] if states is None else states
    before = [x.clone(), *(value.clone() for state in states for value in state.values())]
    rounds = [
        rule.move_part(x[inside(part)], part.shard, options, state) for part, state in zip(parts, states, strict=True)
    ]
    some = [one for one in rounds if one is not None]
    if not some:
        return None
    assert len(some) == len(parts)
    results = together(some)
    update = torch.full_like(x, float("nan"), dtype=results[0][0].dtype)
    for part, (own, _) in zip(parts, results, strict=True):
        assert tuple(own.shape) == part.shape
        update[inside(part)] = own
    for old, value in zip(before, [x, *(value for state in states for value in state.values())], strict=True):
        assert torch.equal(old, value), "an input was written"
    return update, [state for _, state in results]
