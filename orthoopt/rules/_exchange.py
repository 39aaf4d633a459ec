"""What the parts of a cut matrix ask of each other: a rule that works on shards yields lists of these.

A plain tensor is summed over the ranks that hold the other parts of the same matrices. :class:`Max` is its largest
value over them, :class:`Gather` brings parts of a few columns to everybody, :class:`OnWhole` to one rank, which
computes, and sends parts of the result back.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any, NamedTuple, TypeAlias

from torch import Tensor


class Shard(NamedTuple):
    """Which part of a matrix a rank has: where it begins; its size is that of the tensor that goes with it."""

    rows: int
    """Of the whole matrix."""
    cols: int
    """Of the whole matrix."""
    row: int
    """Rows of the whole before this part."""
    col: int
    """Columns of the whole before this part."""
    cut_rows: bool = True
    """Whether any rank has less than all rows. The same on every rank, for what is exchanged follows from it."""
    cut_cols: bool = True
    """Whether any rank has less than all columns."""

    @property
    def mT(self) -> Shard:  # noqa: N802  # as torch names it
        """Of the transposed matrix."""
        return Shard(self.cols, self.rows, self.col, self.row, self.cut_cols, self.cut_rows)


class Max(NamedTuple):
    """The largest over the ranks, entry by entry."""

    tensor: Tensor
    """Shape and dtype are the same on every rank."""


class Gather(NamedTuple):
    """The whole, on every rank, of a tensor of which each has a part along one dimension."""

    tensor: Tensor
    """This rank's part, perhaps empty."""
    dim: int
    """-2 (parts are rows) or -1."""
    start: int
    """Where the part begins along ``dim``."""
    whole: int
    """How long the whole is along ``dim``."""


class OnWhole(NamedTuple):
    """This rank's part of ``function(whole)``, for a whole of which each rank has a part along one dimension.

    One rank gets the whole and computes. A part goes there and comes back, however many ranks there are, where
    gathering on every rank would send it to each.
    """

    tensor: Tensor
    """This rank's part, perhaps empty."""
    dim: int
    """-2 (parts are rows) or -1."""
    start: int
    """Where the part begins along ``dim``."""
    whole: int
    """How long the whole is along ``dim``."""
    function: Callable[[Tensor], Tensor]
    """Of a batch ``(batch, rows, cols)``, result of the same shape. Equal functions of equal shapes are one call."""
    follows_cut: bool = True
    """Whether ``start`` and length are those of the matrix' own cut along ``dim``; if not, ranks must tell them."""


Asked: TypeAlias = Tensor | Max | Gather | OnWhole
Rounds: TypeAlias = Generator[list[Asked], list[Tensor], Any]
