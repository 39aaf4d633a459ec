"""Row-norm rule: every row of the momentum brought to length one.

For parameters whose rows are exchangeable units, each with a rotation-invariant feature space: embeddings, heads,
routers. Centring subtracts the mean row, for a softmax's logits do not change when all rows move together. Source:
symmetry-compatible optimizers, arXiv 2605.18106; timlautk/equivariant_optimizers.
"""

import math
from typing import Literal

import torch
from torch import Tensor

from orthoopt.rules._base import Equivariance, Options, register
from orthoopt.rules._momentum import momentum_rule

DAMPING = 1e-5
"""Relative damping ρ: a row shorter than about ρ times the root mean square row length fades out."""


def row_norm_direction(
    momentum: Tensor,
    *,
    axis: Literal["rows", "cols"] = "rows",
    centre: Literal["none", "pre", "both"] = "none",
    eps_mode: Literal["relative", "add", "clamp"] = "relative",
) -> Tensor:
    """Rows (or columns) of the momentum brought to length one.

    Args:
        momentum: ``(..., rows, cols)``, leading dimensions a batch.
        axis: normalize ``rows``, or ``cols`` (the row rule applied to the transpose).
        centre: subtract the mean row before (``pre``), or before and after (``both``, so that columns of the update
            sum to zero exactly); for a softmax head or router, never for a tied embedding.
        eps_mode: how short rows are damped. ``relative``: row/(‖row‖ + ρ·RMS of the row norms), ρ = 1e-5, invariant
            to the gradient's scale. ``add``: row/(‖row‖ + 1e-8), as published. ``clamp``: row/max(‖row‖, 1e-8).

    Returns:
        The update, ``(..., rows, cols)``; zero rows give zeros.
    """
    if axis == "cols":
        return row_norm_direction(momentum.mT, centre=centre, eps_mode=eps_mode).mT
    # Dividing by the largest magnitude first keeps squares inside float32 at any scale of the gradient.
    peak = momentum.abs().amax((-2, -1), keepdim=True)
    x = momentum / torch.where(peak == 0, 1, peak)
    if centre != "none":
        x = x - x.mean(-2, keepdim=True)
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    if eps_mode == "relative":
        damped = length + DAMPING * length.square().mean(-2, keepdim=True).sqrt()
    else:
        # In units of the peak; an absolute floor makes the update depend on the gradient's scale.
        floor = 1e-8 / torch.where(peak == 0, 1, peak)
        damped = length + floor if eps_mode == "add" else torch.maximum(length, floor)
    x = x / torch.where(damped == 0, 1, damped)
    return x - x.mean(-2, keepdim=True) if centre == "both" else x


def _rms(rows: int, cols: int, options: Options) -> float:
    return 1 / math.sqrt(cols if options["axis"] == "rows" else rows)


def _equivariance(options: Options, rows: int, cols: int) -> Equivariance:
    shift = options["centre"] == "both"
    if options["axis"] == "rows":
        return Equivariance("permutation", "orthogonal", breaks=(("left", "orthogonal"),), shift=shift)
    # Centring then subtracts the mean column: the shift is by one column vector.
    return Equivariance("orthogonal", "permutation", breaks=(("right", "orthogonal"),))


row_norm = register(
    momentum_rule(
        "row_norm",
        row_norm_direction,
        rms=_rms,
        equivariance=_equivariance,
        nesterov=False,
        scale_invariant=lambda options: options["eps_mode"] == "relative",
    )
)
