"""Sums over whole rows, whole columns and whole matrices, of which every rank has a part."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from orthoopt.rules._exchange import Asked, Max, Shard


class OfRows(NamedTuple):
    """Each row's share of a sum over its columns, ``(..., local rows, 1)``."""

    tensor: Tensor


class OfCols(NamedTuple):
    """Each column's share of a sum over its rows, ``(..., 1, local cols)``."""

    tensor: Tensor


class OfAll(NamedTuple):
    """A share of a sum over the matrix, ``(..., 1, 1)``."""

    tensor: Tensor


class Largest(NamedTuple):
    """A value of which the largest over all parts is wanted, ``(..., 1, 1)``."""

    tensor: Tensor


Total: TypeAlias = OfRows | OfCols | OfAll | Largest


def totals(shard: Shard, shares: Sequence[Total]) -> Generator[list[Asked], list[Tensor], list[Tensor]]:
    """Totals over all parts, in one round; none where this cut needs none.

    Returns:
        One tensor a share. For :class:`OfRows` those of the rows that this rank knows then: all rows of the matrix
        where columns are cut, else its own; likewise for columns. See :func:`own_rows`, :func:`own_cols`.
    """
    results = [share.tensor for share in shares]
    asked: list[Asked] = []
    places: list[int] = []
    for place, share in enumerate(shares):
        wanted = _asked(shard, share)
        if wanted is not None:
            asked.append(wanted)
            places.append(place)
    if asked:
        for place, answer in zip(places, (yield asked), strict=True):
            results[place] = answer
    return results


def own_rows(shard: Shard, values: Tensor, part: Tensor) -> Tensor:
    """Of what ``totals`` gave for rows, those of ``part``."""
    rows = part.shape[-2]
    return values.narrow(-2, shard.row if rows else 0, rows) if shard.cut_cols else values


def own_cols(shard: Shard, values: Tensor, part: Tensor) -> Tensor:
    """Of what ``totals`` gave for columns, those of ``part``."""
    cols = part.shape[-1]
    return values.narrow(-1, shard.col if cols else 0, cols) if shard.cut_rows else values


def peak_of(x: Tensor) -> Tensor:
    """The largest magnitude of each matrix, ``(..., 1, 1)``; 0 of an empty part."""
    return x.abs().amax((-2, -1), keepdim=True) if x.numel() else x.new_zeros((*x.shape[:-2], 1, 1))


def part_peak(part: Tensor) -> tuple[Tensor, Tensor]:
    """A part divided by its own largest magnitude, in float32 or wider, and that as float64, ``(..., 1, 1)``.

    Parts of one matrix have peaks of their own, so a sum over a part is in its own units. Totals are of products with
    powers of the peak, in float64, which holds the squares of all that float32 does. The peak of zeros is 0.
    """
    x = part.to(torch.promote_types(part.dtype, torch.float32))
    peak = peak_of(x)
    return x / torch.where(peak == 0, 1, peak), peak.double()


def scaled(x: Tensor, factor: Tensor) -> Tensor:
    """``factor·x`` for a float64 factor, kept inside the dtype of ``x``: what would overflow stands beside zeros."""
    largest = torch.finfo(x.dtype).max
    return x * factor.clamp(max=largest).to(x.dtype)


def _asked(shard: Shard, share: Total) -> Asked | None:
    if isinstance(share, OfRows):
        if not shard.cut_cols:
            return None
        return _padded(share.tensor, -2, shard.row, shard.rows) if shard.cut_rows else share.tensor
    if isinstance(share, OfCols):
        if not shard.cut_rows:
            return None
        return _padded(share.tensor, -1, shard.col, shard.cols) if shard.cut_cols else share.tensor
    if not (shard.cut_rows or shard.cut_cols):
        return None
    return Max(share.tensor) if isinstance(share, Largest) else share.tensor


def _padded(values: Tensor, dim: int, start: int, whole: int) -> Tensor:
    """Zeros for the rows or columns of others."""
    shape = list(values.shape)
    length, shape[dim] = shape[dim], whole
    result = values.new_zeros(shape)
    if length:
        result.narrow(dim, start, length).copy_(values)
    return result
