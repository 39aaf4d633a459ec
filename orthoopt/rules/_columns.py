"""Choosing a few columns of every matrix in a basis: how many, of which side, and which."""

from __future__ import annotations

import math
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from orthoopt.rules._shards import part_peak

Side: TypeAlias = Literal["auto", "left", "right"]
Selection: TypeAlias = Literal["l2", "l1"]


def check_rank(rank: int | float) -> None:
    """Raise ValueError unless ``rank`` is a whole number of at least 1 or a fraction of at most 1.0."""
    if isinstance(rank, int) and rank < 1:
        raise ValueError(f"rank={rank!r} must be at least 1 column, or a fraction such as 0.25")
    if isinstance(rank, float) and not 0 < rank <= 1:
        raise ValueError(f"rank={rank!r}, a fraction, must be above 0 and at most 1.0; a whole number counts columns")


def resolve_rank(rank: int | float, size: int) -> int:
    """How many of ``size`` columns are kept: r.

    Args:
        rank: a whole number of columns, at most all of them; or a fraction of ``size``, rounded up. 1 is one column,
            1.0 is all.
        size: the length k of the chosen side.
    """
    if isinstance(rank, int):
        return min(rank, size)
    # 0.1 · 30 is a bit more than 3 in floating point.
    return min(max(1, math.ceil(round(rank * size, 6))), size)


def is_right(side: Side, rows: int, cols: int, square: Literal["left", "right"] = "right") -> bool:
    """Whether columns are chosen (``right``, k = cols) and not rows (``left``, k = rows); ``auto``: the shorter side.

    Args:
        side: as asked for.
        rows: of the matrix.
        cols: of the matrix.
        square: what ``auto`` is for square matrices.
    """
    if side == "auto":
        return square == "right" if rows == cols else rows > cols
    return side == "right"


def select_columns(coordinates: Tensor, rank: int, selection: Selection) -> Tensor:
    """The ``rank`` columns of largest norm in each matrix.

    Args:
        coordinates: ``(..., rows, k)``.
        rank: r, from :func:`resolve_rank`.
        selection: ``l2``: by ‖S_j‖₂, which keeps at least r/k of the squared Frobenius norm; ``l1``: by ‖S_j‖₁, which
            has no such bound.

    Returns:
        ``(..., r)``, int64, ascending. Of equal norms the earlier column wins, on every device.
    """
    # Squares of values near 1e-25 underflow in float32, those of 1e25 overflow.
    peak = coordinates.abs().amax((-2, -1), keepdim=True)
    x = coordinates / torch.where(peak == 0, 1, peak)
    norms = torch.linalg.vector_norm(x, ord=1 if selection == "l1" else 2, dim=-2)
    return largest_columns(norms, rank)


def largest_columns(norms: Tensor, rank: int) -> Tensor:
    """Where the ``rank`` largest norms are, ``(..., r)``, int64, ascending; of equal ones the earlier."""
    return norms.argsort(dim=-1, descending=True, stable=True)[..., :rank].sort(-1).values


def norms_of_part(coordinates: Tensor, selection: Selection, unit: Tensor | float = 1.0) -> Tensor:
    """A part's shares of ‖S_j‖₁, or of ‖S_j‖₂² for ``l2``, float64, ``(..., 1, k)``: the shares of all parts add up.

    Args:
        coordinates: some rows of ``(..., rows, k)``.
        selection: the norm.
        unit: what ``coordinates`` was divided by before, ``(..., 1, 1)``.
    """
    x, peak = part_peak(coordinates)
    sums = (x.abs() if selection == "l1" else x.square()).sum(-2, keepdim=True, dtype=torch.float64)
    return sums * (peak * unit if selection == "l1" else (peak * unit).square())


def keep_slots(old: Tensor, new: Tensor) -> tuple[Tensor, Tensor]:
    """Where each newly chosen column was before.

    The rotation between two choices of columns of one orthogonal basis, D[:, old]ᵀ D[:, new], is a partial
    permutation of zeros and ones: moving moments by it is a gather.

    Args:
        old: ``(..., r)``, ascending.
        new: ``(..., r)``, ascending.

    Returns:
        ``slots``, ``(..., r)``: the place in ``old`` of every column of ``new``; ``kept``, bool: whether it was there
        at all (where not, ``slots`` points at some other place).
    """
    slots = torch.searchsorted(old.contiguous(), new.contiguous()).clamp(max=old.shape[-1] - 1)
    return slots, old.gather(-1, slots) == new
