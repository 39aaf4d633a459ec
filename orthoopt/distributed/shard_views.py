"""Which parts of which matrices a shard of a stored parameter is.

A shard is a box of the stored tensor. Seen through the parameter's view it is, for most views, a box of each piece: one
range of its batch dimensions, of its rows and of its columns. Where it is not (a range of rows across half of one head
and half of the next), there is no part to speak of, and the parameter is needed whole.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
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
from orthoopt.rules._exchange import Shard
from orthoopt.views import View

Range: TypeAlias = tuple[int, int]
"""Beginning and end, along one dimension."""
Box: TypeAlias = tuple[tuple[int, ...], tuple[int, ...]]
"""Offsets and sizes of a shard in the stored tensor, as ``compute_local_shape_and_global_offset`` gives, swapped."""
T = TypeVar("T")
Move: TypeAlias = Callable[[Tensor], Tensor]


class Part(NamedTuple):
    """What one rank has of one piece."""

    piece: int
    """Its index among ``view.pieces``."""
    shard: Shard
    """Of the matrices ``(rows, cols)`` of that piece."""
    ranges: tuple[Range, ...]
    """Along every dimension of the piece, batch dimensions first."""
    moves: tuple[Move, ...]
    """What makes it out of the local tensor."""

    @property
    def shape(self) -> Shape:
        """Of the part."""
        return tuple(end - begin for begin, end in self.ranges)

    @property
    def batch(self) -> tuple[Range, ...]:
        """Which of the piece's matrices there are, along every batch dimension."""
        return self.ranges[:-2]

    def of(self, local: Tensor) -> Tensor:
        """The part ``(..., rows, cols)`` of a local tensor, whose shape is the box's sizes.

        Writing to it writes ``local``; only kernels whose strides forbid flattening, and joined heads, are copied.
        """
        for move in self.moves:
            local = move(local)
        return local


class Cut(NamedTuple):
    """How a parameter's matrices are cut over ranks."""

    parts: list[list[Part]]
    """For every rank one part a piece, in the order of the pieces; some are empty."""
    apart: bool
    """Whether every rank has whole matrices, some of the batch each: then nothing need be exchanged."""


class _Piece(NamedTuple):
    """A part on its way through a view's steps."""

    shape: Shape
    ranges: tuple[Range, ...]
    moves: tuple[Move, ...]


def pieces_of_shard(view: View, shape: Shape, box: Box) -> list[Part] | None:
    """The parts of pieces that a box of a stored tensor is made of, one a piece; None where they are not boxes.

    Args:
        view: how the parameter is seen as matrices.
        shape: of the stored tensor.
        box: offsets and sizes, as many as ``shape`` has dimensions. An empty box has empty parts.

    Raises:
        ValueError: the view does not fit the shape, or the box does not lie in it.
    """
    view.piece_shapes(shape)
    offsets, sizes = (tuple(numbers) for numbers in box)
    if not len(shape) == len(offsets) == len(sizes) or any(
        not 0 <= offset <= offset + size <= whole for offset, size, whole in zip(offsets, sizes, shape, strict=True)
    ):
        raise ValueError(f"the box of offsets {offsets} and sizes {sizes} does not lie in a tensor of shape {shape}")
    ranges = tuple((offset, offset + size) for offset, size in zip(offsets, sizes, strict=True))
    pieces = [_Piece(tuple(shape), ranges, ())]
    for step in view.steps:
        cut = [_STEPS[type(step)](step, piece) for piece in pieces]
        if any(parts is None for parts in cut):
            return None
        pieces = [part for parts in cut for part in parts or ()]
    found = []
    for index, (piece_shape, spans, moves) in enumerate(pieces):
        rows, cols = piece_shape[-2:]
        found.append(Part(index, Shard(rows, cols, spans[-2][0], spans[-1][0]), spans, moves))
    return found


def cut_of(view: View, shape: Shape, boxes: Sequence[Box]) -> Cut | None:
    """How the boxes of all ranks cut a parameter's matrices: the same answer on every rank.

    Args:
        view: how the parameter is seen as matrices.
        shape: of the stored tensor.
        boxes: of every rank that holds another part of it, in the order of ranks; together they are the tensor.

    Returns:
        None if some rank's parts are not boxes of the pieces, or if some matrices are cut, but not all over all ranks.
    """
    over_ranks = [pieces_of_shard(view, shape, box) for box in boxes]
    parts = [found for found in over_ranks if found is not None]
    if len(parts) < len(over_ranks):
        return None
    wholes = view.piece_shapes(shape)
    for index, whole in enumerate(wholes):
        cut_rows, cut_cols = (any(found[index].shape[dim] < whole[dim] for found in parts) for dim in (-2, -1))
        for found in parts:
            part = found[index]
            found[index] = part._replace(shard=part.shard._replace(cut_rows=cut_rows, cut_cols=cut_cols))
    held = [(part, wholes[part.piece]) for found in parts for part in found]
    # A rank without any matrix has whole ones, whatever the rows and columns of its empty part say.
    if all(part.shape[-2:] == whole[-2:] or 0 in part.shape[:-2] for part, whole in held):
        return Cut(parts, apart=True)
    return Cut(parts, apart=False) if all(part.shape[:-2] == whole[:-2] for part, whole in held) else None


def _transpose(step: Step, piece: _Piece) -> list[_Piece]:
    *batch, cols, rows = range(len(piece.shape))
    order = (*batch, rows, cols)
    return [_Piece(_picked(piece.shape, order), _picked(piece.ranges, order), (*piece.moves, _mt))]


def _column(step: Step, piece: _Piece) -> list[_Piece]:
    return [_Piece((*piece.shape, 1), (*piece.ranges, (0, 1)), (*piece.moves, _unsqueeze))]


def _flatten(step: Step, piece: _Piece) -> list[_Piece] | None:
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
    return [_Piece(shape, (rows, (first, first + length)), (*piece.moves, _flatten_kernel))]


def _split(step: Step, piece: _Piece) -> list[_Piece]:
    assert isinstance(step, Split)
    (*batch, (begin, end), cols), first, parts = piece.ranges, 0, []
    for size in step.sizes:
        low, high = (min(max(place - first, 0), size) for place in (begin, end))
        rows = slice(first + low - begin, first + high - begin) if high > low else slice(0, 0)
        shape = (*piece.shape[:-2], size, piece.shape[-1])
        parts.append(_Piece(shape, (*batch, (low, high), cols), (*piece.moves, functools.partial(_rows, rows))))
        first += size
    return parts


def _interleave(step: Step, piece: _Piece) -> list[_Piece]:
    assert isinstance(step, Interleave)
    *batch, (begin, end), cols = piece.ranges
    shape, parts = (*piece.shape[:-2], piece.shape[-2] // step.count, piece.shape[-1]), []
    for i in range(step.count):
        # Rows i + count·j of the whole: the first j with i + count·j >= begin, and the first with >= end.
        low, high = (max(0, -((i - place) // step.count)) for place in (begin, end))
        rows = slice(i + step.count * low - begin, end - begin, step.count) if high > low else slice(0, 0)
        parts.append(_Piece(shape, (*batch, (low, high), cols), (*piece.moves, functools.partial(_rows, rows))))
    return parts


def _heads(step: Step, piece: _Piece) -> list[_Piece] | None:
    assert isinstance(step, Heads | HeadSize)
    *batch, rows, cols = piece.ranges
    count = step.count if isinstance(step, Heads) else piece.shape[-2] // step.size
    size = piece.shape[-2] // count
    spans = _by_heads(rows, count, size)
    if spans is None:
        return None
    shape = (*piece.shape[:-2], count, size, piece.shape[-1])
    move = functools.partial(_unflatten_rows, _lengths(spans))
    return [_Piece(shape, (*batch, *spans, cols), (*piece.moves, move))]


def _heads_in(step: Step, piece: _Piece) -> list[_Piece] | None:
    assert isinstance(step, HeadsIn)
    *batch, rows, cols = piece.ranges
    size = piece.shape[-1] // step.count
    spans = _by_heads(cols, step.count, size)
    if spans is None:
        return None
    heads, own = spans
    shape = (*piece.shape[:-2], step.count, piece.shape[-2], size)
    move = functools.partial(_unflatten_cols, _lengths(spans))
    return [_Piece(shape, (*batch, heads, rows, own), (*piece.moves, move))]


def _join(step: Step, piece: _Piece) -> list[_Piece] | None:
    *batch, heads, rows, cols = piece.ranges
    size = piece.shape[-2]
    whole = (*piece.shape[:-3], piece.shape[-3] * size, piece.shape[-1])
    if rows == (0, size) or heads[1] == heads[0]:
        span = (heads[0] * size, heads[1] * size)
    elif heads[1] - heads[0] == 1 or rows[1] == rows[0]:
        span = (heads[0] * size + rows[0], heads[0] * size + rows[1])
    else:
        return None
    return [_Piece(whole, (*batch, span, cols), (*piece.moves, _join_heads))]


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


_STEPS: dict[type, Callable[[Step, _Piece], list[_Piece] | None]] = {
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
