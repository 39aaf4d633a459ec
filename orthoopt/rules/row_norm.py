"""Row-norm rule: every row of the momentum brought to length one.

For parameters whose rows are exchangeable units, each with a rotation-invariant feature space: embeddings, heads,
routers. Centring subtracts the mean row, for a softmax's logits do not change when all rows move together. Source:
symmetry-compatible optimizers, arXiv 2605.18106; timlautk/equivariant_optimizers.
"""

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor

from orthoopt.kernels import Moving, prepare_row_norm_step
from orthoopt.rules._base import SHIFT, Breaks, Equivariance, Options, Rounds, Shard, Tensors, register
from orthoopt.rules._momentum import momentum_rule
from orthoopt.rules._rows import (
    Axis,
    Centre,
    EpsMode,
    by_peak,
    centre_rows,
    normalize_rows,
    row_norm_of_part,
    subtract_mean_row,
)


def row_norm_direction(
    momentum: Tensor,
    *,
    axis: Axis = "rows",
    centre: Centre = "none",
    eps_mode: EpsMode = "relative",
) -> Tensor:
    """Rows (or columns) of the momentum brought to length one.

    Args:
        momentum: ``(..., rows, cols)``, leading dimensions a batch.
        axis: normalize ``rows``, or ``cols`` (the row rule applied to the transpose).
        centre: subtract the mean row before (``pre``), or before and after (``both``, so that columns of the update
            sum to zero exactly: rows of unequal length leave the subspace when they are normalized); for a softmax
            head or router, never for a tied embedding.
        eps_mode: how short rows are damped. ``relative``: row/(‖row‖ + ρ·RMS of the row norms), ρ = 1e-5, invariant
            to the gradient's scale. ``add``: row/(‖row‖ + 1e-8), as published. ``clamp``: row/max(‖row‖, 1e-8).

    Returns:
        The update, ``(..., rows, cols)``; zero rows give zeros.
    """
    if axis == "cols":
        return row_norm_direction(momentum.mT, centre=centre, eps_mode=eps_mode).mT
    x, peak = by_peak(momentum)
    if centre != "none":
        x = centre_rows(x)
    x = normalize_rows(x, eps_mode, peak)
    return subtract_mean_row(x) if centre == "both" else x


def _rms(rows: int, cols: int, options: Options) -> float:
    return 1 / math.sqrt(cols if options["axis"] == "rows" else rows)


def _equivariance(options: Options, rows: int, cols: int) -> Equivariance:
    if options["axis"] == "cols":
        # Centring then subtracts the mean column: the shift is by one column vector.
        return Equivariance("orthogonal", "permutation", breaks=(("right", "orthogonal"),))
    breaks: Breaks = (("left", "orthogonal"),) if options["centre"] != "none" else (("left", "orthogonal"), SHIFT)
    return Equivariance("permutation", "orthogonal", breaks=breaks, shift=options["centre"] == "both")


def _prepare_step(
    params: Tensors, grads: Tensors, buffers: Tensors, moving: Moving, options: Options, **terms: Any
) -> Callable[[], bool] | None:
    if options["axis"] != "rows" or options["centre"] != "none":
        return None
    return prepare_row_norm_step(params, grads, buffers, moving, eps_mode=options["eps_mode"], **terms)


def _on_shards(part: Tensor, shard: Shard, options: Options) -> Rounds:
    return row_norm_of_part(part, shard, options["axis"], options["centre"], options["eps_mode"])


row_norm = register(
    momentum_rule(
        "row_norm",
        row_norm_direction,
        on_shards=_on_shards,
        prepare_step=_prepare_step,
        rms=_rms,
        equivariance=_equivariance,
        nesterov=False,
        scale_invariant=lambda options: options["eps_mode"] == "relative",
    )
)
