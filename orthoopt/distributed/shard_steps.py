"""The steps of views, taken by a box of the tensor in place of the tensor: what it becomes, if that is a box again."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import NamedTuple, TypeAlias, TypeVar

from torch import Tensor

from orthoopt._view_steps import (
    Column,
    Flatten,
    Heads,
    HeadsIn,
    HeadSize,
    Interleave,
    Join,
    Shape,
    Split,
    Step,
    Transpose,
)

T = TypeVar("T")
Range: TypeAlias = tuple[int, int]
"""Beginning and end, along one dimension."""
Move: TypeAlias = Callable[[Tensor], Tensor]


class Piece(NamedTuple):
    """A part on its way through a view's steps."""

    shape: Shape
    """Of the whole piece."""
    ranges: tuple[Range, ...]
    """Of the part, along every dimension of the piece."""
    moves: tuple[Move, ...]
    """What makes it out of the local tensor."""


def _transpose(step: Step, piece: Piece) -> list[Piece]:
    *batch, cols, rows = range(len(piece.shape))
    order = (*batch, rows, cols)
    return [Piece(_picked(piece.shape, order), _picked(piece.ranges, order), (*piece.moves, _mt))]


def _column(step: Step, piece: Piece) -> list[Piece]:
    return [Piece((*piece.shape, 1), (*piece.ranges, (0, 1)), (*piece.moves, _unsqueeze))]


def _flatten(step: Step, piece: Piece) -> list[Piece] | None:
    rows, *spans = piece.ranges
    sizes = piece.shape[1:]
    first, length, inside = 0, 1, False
    for (begin, end), size in zip(spans, sizes, strict=True):
        # Columns in one run: one index of each dimension, a range of one, all of those that follow.
        if inside and (begin, end) != (0, size):
            return None
        inside = inside or end - begin != 1
        first, length = first * size + begin, length * (end - begin)
    shape = (piece.shape[0], math.prod(sizes))
    return [Piece(shape, (rows, (first, first + length)), (*piece.moves, _flatten_kernel))]


def _split(step: Step, piece: Piece) -> list[Piece]:
    assert isinstance(step, Split)
    (*batch, (begin, end), cols), first, parts = piece.ranges, 0, []
    for size in step.sizes:
        low, high = (min(max(place - first, 0), size) for place in (begin, end))
        rows = slice(first + low - begin, first + high - begin) if high > low else slice(0, 0)
        shape = (*piece.shape[:-2], size, piece.shape[-1])
        parts.append(Piece(shape, (*batch, (low, high), cols), (*piece.moves, functools.partial(_rows, rows))))
        first += size
    return parts


def _interleave(step: Step, piece: Piece) -> list[Piece]:
    assert isinstance(step, Interleave)
    *batch, (begin, end), cols = piece.ranges
    shape, parts = (*piece.shape[:-2], piece.shape[-2] // step.count, piece.shape[-1]), []
    for i in range(step.count):
        # Rows i + count·j of the whole: the first j with i + count·j >= begin, and the first with >= end.
        low, high = (max(0, -((i - place) // step.count)) for place in (begin, end))
        rows = slice(i + step.count * low - begin, end - begin, step.count) if high > low else slice(0, 0)
        parts.append(Piece(shape, (*batch, (low, high), cols), (*piece.moves, functools.partial(_rows, rows))))
    return parts


def _heads(step: Step, piece: Piece) -> list[Piece] | None:
    assert isinstance(step, Heads | HeadSize)
    *batch, rows, cols = piece.ranges
    count = step.count if isinstance(step, Heads) else piece.shape[-2] // step.size
    size = piece.shape[-2] // count
    spans = _by_heads(rows, count, size)
    if spans is None:
        return None
    shape = (*piece.shape[:-2], count, size, piece.shape[-1])
    move = functools.partial(_unflatten_rows, _lengths(spans))
    return [Piece(shape, (*batch, *spans, cols), (*piece.moves, move))]


def _heads_in(step: Step, piece: Piece) -> list[Piece] | None:
    assert isinstance(step, HeadsIn)
    *batch, rows, cols = piece.ranges
    size = piece.shape[-1] // step.count
    spans = _by_heads(cols, step.count, size)
    if spans is None:
        return None
    heads, own = spans
    shape = (*piece.shape[:-2], step.count, piece.shape[-2], size)
    move = functools.partial(_unflatten_cols, _lengths(spans))
    return [Piece(shape, (*batch, heads, rows, own), (*piece.moves, move))]


def _join(step: Step, piece: Piece) -> list[Piece] | None:
    *batch, heads, rows, cols = piece.ranges
    size = piece.shape[-2]
    whole = (*piece.shape[:-3], piece.shape[-3] * size, piece.shape[-1])
    if rows == (0, size) or heads[1] == heads[0]:
        span = (heads[0] * size, heads[1] * size)
    elif heads[1] - heads[0] == 1 or rows[1] == rows[0]:
        span = (heads[0] * size + rows[0], heads[0] * size + rows[1])
    else:
        return None
    return [Piece(whole, (*batch, span, cols), (*piece.moves, _join_heads))]


def _by_heads(span: Range, count: int, size: int) -> tuple[Range, Range] | None:
    """A range of rows as one of heads and one within heads of this size; None where it is no such box."""
    begin, end = span
    if count == 1:
        return (0, 1), span
    if end == begin:
        return (begin // size, begin // size), (0, size)
    if begin % size == 0 and end % size == 0:
        return (begin // size, end // size), (0, size)
    head = begin // size
    return ((head, head + 1), (begin - head * size, end - head * size)) if end <= (head + 1) * size else None


def _lengths(spans: tuple[Range, Range]) -> tuple[int, int]:
    return spans[0][1] - spans[0][0], spans[1][1] - spans[1][0]


def _picked(values: tuple[T, ...], order: tuple[int, ...]) -> tuple[T, ...]:
    return tuple(values[i] for i in order)


def _mt(local: Tensor) -> Tensor:
    return local.mT


def _unsqueeze(local: Tensor) -> Tensor:
    return local.unsqueeze(-1)


def _flatten_kernel(local: Tensor) -> Tensor:
    return local.flatten(1)


def _rows(rows: slice, local: Tensor) -> Tensor:
    return local[..., rows, :]


def _unflatten_rows(sizes: tuple[int, int], local: Tensor) -> Tensor:
    return local.unflatten(-2, sizes)


def _unflatten_cols(sizes: tuple[int, int], local: Tensor) -> Tensor:
    return local.unflatten(-1, sizes).movedim(-2, -3)


def _join_heads(local: Tensor) -> Tensor:
    return local.flatten(-3, -2)


STEPS: dict[type, Callable[[Step, Piece], list[Piece] | None]] = {
    Transpose: _transpose,
    Column: _column,
    Flatten: _flatten,
    Split: _split,
    Interleave: _interleave,
    Heads: _heads,
    HeadSize: _heads,
    HeadsIn: _heads_in,
    Join: _join,
}
