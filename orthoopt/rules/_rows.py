"""Rows of a matrix as units: the mean row taken out, lengths brought to one. What the symmetry family shares."""

from typing import Literal, TypeAlias

import torch
from torch import Tensor

from orthoopt.rules._exchange import Rounds, Shard
from orthoopt.rules._shards import (
    Largest,
    OfAll,
    OfCols,
    OfRows,
    Total,
    own_cols,
    own_rows,
    part_peak,
    peak_of,
    scaled,
    totals,
)

Axis: TypeAlias = Literal["rows", "cols"]
Centre: TypeAlias = Literal["none", "pre", "both"]
EpsMode: TypeAlias = Literal["relative", "add", "clamp"]

DAMPING = 1e-5
"""Relative damping ρ: a row shorter than about ρ times the root mean square row length fades out."""

FLOOR = 1e-8
"""The published eps, in the units of the gradient."""

_ROUNDINGS = 32.0


def by_peak(x: Tensor) -> tuple[Tensor, Tensor]:
    """Each matrix divided by its largest magnitude, in float32 or wider, and that magnitude, ``(..., 1, 1)``.

    Squares then stay inside float32 at any scale of the gradient. A zero matrix stays zero; its magnitude reads 1.
    """
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    peak = x.abs().amax((-2, -1), keepdim=True)
    peak = torch.where(peak == 0, 1, peak)
    return x / peak, peak


def subtract_mean_row(x: Tensor) -> Tensor:
    """Π X: the columns of the result sum to zero."""
    return x - x.mean(-2, keepdim=True)


def centre_rows(x: Tensor) -> Tensor:
    """Π X of matrices whose largest magnitude is one (:func:`by_peak`).

    Of a matrix with equal rows only rounding is left, which a normalization would blow up to full length: exact zero.
    """
    centred = subtract_mean_row(x)
    left = centred.abs().amax((-2, -1), keepdim=True)
    return torch.where(left > _ROUNDINGS * torch.finfo(x.dtype).eps, centred, 0)


def normalize_rows(x: Tensor, eps_mode: EpsMode, unit: Tensor | float = 1.0) -> Tensor:
    """Rows brought to length one; zero rows give zeros.

    Args:
        x: ``(..., rows, cols)``.
        eps_mode: how short rows are damped. ``relative``: row/(‖row‖ + ρ·RMS of the row norms), which does not see
            the scale of ``x``. ``add``: row/(‖row‖ + 1e-8). ``clamp``: row/max(‖row‖, 1e-8).
        unit: what ``x`` was divided by before, ``(..., 1, 1)``: the absolute 1e-8 is meant for ``unit·x``.
    """
    # Where ``unit`` is large the floor lies far below float32's squares: short rows must keep their lengths.
    wide = torch.float64 if eps_mode != "relative" and x.device.type != "mps" else None
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=wide).to(x.dtype)
    if eps_mode == "relative":
        damped = length + DAMPING * length.square().mean(-2, keepdim=True).sqrt()
    elif eps_mode == "add":
        damped = length + FLOOR / unit
    else:
        damped = length.clamp(min=FLOOR / unit)
    return x / torch.where(damped == 0, 1, damped)


def row_norm_of_part(part: Tensor, shard: Shard, axis: Axis, centre: Centre, eps_mode: EpsMode) -> Rounds:
    """Rows, or columns, of cut matrices brought to length one: the ``on_shards`` of ``row_norm``.

    Where rows are whole the relative damping costs one number a matrix, absolute damping nothing; where columns are
    cut, one number a row. Centring costs one number a column before, and, for ``both``, after.

    Args:
        part: ``(..., local rows, local cols)``.
        shard: which part of the matrices it is.
        axis: as in ``row_norm``.
        centre: as in ``row_norm``.
        eps_mode: see :func:`normalize_rows`.
    """
    if axis == "cols":
        update: Tensor = yield from row_norm_of_part(part.mT, shard.mT, "rows", centre, eps_mode)
        return update.mT
    x, unit = part_peak(part)
    if centre != "none":
        x, unit = yield from centre_part(part, shard)
    squares = x.square().sum(-1, keepdim=True, dtype=torch.float64) * unit.square()
    asked: list[Total] = [OfRows(squares)]
    if centre != "none":
        asked.append(Largest(peak_of(x).double()))
    if eps_mode == "relative" and not shard.cut_cols:
        asked.append(OfAll(squares.sum(-2, keepdim=True)))
    squares, *others = yield from totals(shard, asked)
    if centre != "none":
        x = without_rounding(x, others[0])
    length = own_rows(shard, squares, part).sqrt()
    if eps_mode == "relative":
        total = squares.sum(-2, keepdim=True) if shard.cut_cols else others[-1]
        length = length + DAMPING * (total / shard.rows).sqrt()
    elif eps_mode == "add":
        length = length + FLOOR
    else:
        length = length.clamp(min=FLOOR)
    update = scaled(x, unit / torch.where(length == 0, 1, length))
    return (yield from subtract_mean_row_of_part(update, shard)) if centre == "both" else update


def centre_part(part: Tensor, shard: Shard) -> Rounds:
    """Its rows of Π X, as float32 or wider, in units of the largest magnitude of X, and that, ``(..., 1, 1)``.

    Of equal rows rounding is left; see :func:`without_rounding`.
    """
    x, unit = part_peak(part)
    sums = x.sum(-2, keepdim=True, dtype=torch.float64) * unit
    # What is centred needs units that all parts share.
    sums, unit = yield from totals(shard, [OfCols(sums), Largest(unit)])
    unit = torch.where(unit == 0, 1, unit)
    mean = own_cols(shard, sums, part) / shard.rows / unit
    return part.to(x.dtype) / unit.to(x.dtype) - mean.to(x.dtype), unit


def without_rounding(x: Tensor, largest: Tensor) -> Tensor:
    """Zeros where ``largest``, the largest magnitude of all centred parts, is rounding; as :func:`centre_rows` does."""
    return torch.where(largest > _ROUNDINGS * torch.finfo(x.dtype).eps, x, 0)


def subtract_mean_row_of_part(x: Tensor, shard: Shard) -> Rounds:
    """Its rows of Π X."""
    (sums,) = yield from totals(shard, [OfCols(x.sum(-2, keepdim=True, dtype=torch.float64))])
    return x - (own_cols(shard, sums, x) / shard.rows).to(x.dtype)
