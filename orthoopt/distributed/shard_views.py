"""Which parts of which matrices a shard of a stored parameter is.

A shard is a box of the stored tensor. Seen through the parameter's view it is, for most views, a box of each piece: one
range of its batch dimensions, of its rows and of its columns. Where it is not (a range of rows across half of one head
and half of the next), there is no part to speak of, and the parameter is needed whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

from torch import Tensor

from orthoopt._view_steps import Shape
from orthoopt.distributed.shard_steps import STEPS, Move, Piece, Range
from orthoopt.rules._exchange import Shard
from orthoopt.views import View

Box: TypeAlias = tuple[tuple[int, ...], tuple[int, ...]]
"""Offsets and sizes of a shard in the stored tensor, as ``compute_local_shape_and_global_offset`` gives, swapped."""


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
    pieces = [Piece(tuple(shape), ranges, ())]
    for step in view.steps:
        cut = [STEPS[type(step)](step, piece) for piece in pieces]
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
