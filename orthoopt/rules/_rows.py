"""Rows of a matrix as units: the mean row taken out, lengths brought to one. What the symmetry family shares."""

from typing import Literal, TypeAlias

import torch
from torch import Tensor

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
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    if eps_mode == "relative":
        damped = length + DAMPING * length.square().mean(-2, keepdim=True).sqrt()
    elif eps_mode == "add":
        damped = length + FLOOR / unit
    else:
        damped = length.clamp(min=FLOOR / unit)
    return x / torch.where(damped == 0, 1, damped)
