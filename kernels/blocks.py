"""Tensors as blocks that a tile kernel can walk: at most three dimensions, strides for each tensor that takes part."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

ROWS, COLS, NEITHER = 0, 1, 2
"""How a side is stored: rows contiguous, columns contiguous, or neither."""

VECTOR = 8
"""Elements that extents and strides are multiples of where loads are vectors: 16 bytes of a 16-bit dtype."""

Strides = tuple[int, ...]


class Block(NamedTuple):
    """A batch of equally shaped matrices as several tensors hold it, the *sides*."""

    shape: tuple[int, int, int]
    """(batch, rows, cols)."""
    strides: tuple[tuple[int, int, int], ...]
    """Of each side, in elements; 0 where the extent is one."""
    offsets: tuple[int, ...]
    """Of each side, in elements from its tensor's first."""

    @property
    def orders(self) -> tuple[int, ...]:
        """Of each side: :data:`ROWS`, :data:`COLS` or :data:`NEITHER`."""
        return tuple(_order(self.shape, strides) for strides in self.strides)

    @property
    def tile(self) -> tuple[int, int]:
        """Rows and columns of a tile: runs of 512 bytes in float32 where the sides agree, square where they do not."""
        orders = {order for order in self.orders if order != NEITHER}
        if self.shape[1] == 1:
            return 1, 4096
        if orders == {COLS}:
            return 128, 32
        return (32, 128) if orders == {ROWS} else (64, 64)

    def aligned(self, remainders: Sequence[int], sizes: Sequence[int]) -> bool:
        """Whether every run of every side starts at 16 bytes and is a multiple of :data:`VECTOR` elements long.

        Args:
            remainders: of each side's address, modulo 16.
            sizes: bytes an element of each side.
        """
        for order, strides, offset, remainder, size in zip(
            self.orders, self.strides, self.offsets, remainders, sizes, strict=True
        ):
            if order == NEITHER:
                return False
            across, along = (strides[1], self.shape[2]) if order == ROWS else (strides[2], self.shape[1])
            if (remainder + offset * size) % 16 or any(x % VECTOR for x in (strides[0], across, along)):
                return False
        return True


def _order(shape: tuple[int, int, int], strides: tuple[int, int, int]) -> int:
    if strides[2] == 1 or (shape[2] == 1 and strides[1] != 1):
        return ROWS
    return COLS if strides[1] == 1 else NEITHER


def elementwise_blocks(shape: Sequence[int], strides: Sequence[Strides], primary: int) -> list[Block]:
    """The elements that several tensors share, in any order that suits memory.

    Dimensions are merged where all sides allow; tensors that are dense and alike become one run.

    Args:
        shape: of every side.
        strides: of each side.
        primary: the side whose storage order is followed.

    Returns:
        One block, or several where more than three dimensions are left.
    """
    dims = [(size, tuple(side[d] for side in strides)) for d, size in enumerate(shape) if size != 1]
    dims.sort(key=lambda dim: -dim[1][primary])
    merged: list[tuple[int, Strides]] = []
    for size, steps in dims:
        if merged and all(outer == inner * size for outer, inner in zip(merged[-1][1], steps, strict=True)):
            merged[-1] = (merged[-1][0] * size, steps)
        else:
            merged.append((size, steps))
    none = (1, (0,) * len(strides))
    cols = merged.pop() if merged else none
    # Another side may run along another dimension: that one is the tile's other side.
    crossing = [d for d, (_, steps) in enumerate(merged) if 1 in steps]
    rows = merged.pop(crossing[-1] if crossing else -1) if merged else none
    return _blocks(merged, rows, cols)


def matrix_blocks(shape: Sequence[int], strides: Sequence[Strides]) -> list[Block]:
    """Matrices ``(..., rows, cols)``: leading dimensions are merged where all sides allow, the last two stay."""
    *batch, rows, cols = [
        (size, tuple(side[d] if size != 1 else 0 for side in strides)) for d, size in enumerate(shape)
    ]
    merged: list[tuple[int, Strides]] = []
    for size, steps in batch:
        if size == 1:
            continue
        if merged and all(outer == inner * size for outer, inner in zip(merged[-1][1], steps, strict=True)):
            merged[-1] = (merged[-1][0] * size, steps)
        else:
            merged.append((size, steps))
    return _blocks(merged, rows, cols)


def _blocks(outer: list[tuple[int, Strides]], rows: tuple[int, Strides], cols: tuple[int, Strides]) -> list[Block]:
    """One block for the largest of the outer dimensions, repeated over the others."""
    outer = sorted(outer, key=lambda dim: dim[0])
    sides = len(cols[1])
    batch = outer.pop() if outer else (1, (0,) * sides)
    inner = tuple((batch[1][s], rows[1][s], cols[1][s]) for s in range(sides))
    shape = (batch[0], rows[0], cols[0])
    if math.prod(shape) == 0:
        return []
    made = []
    for place in itertools.product(*(range(size) for size, _ in outer)):
        offsets = tuple(sum(i * steps[s] for i, (_, steps) in zip(place, outer, strict=True)) for s in range(sides))
        made.append(Block(shape, inner, offsets))
    return made
