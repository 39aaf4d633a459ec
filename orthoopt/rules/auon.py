"""AuON rule: the momentum brought to a length that bounds its spectral norm, in linear time.

The paper wants the trust region of a polar factor, ‖U‖₂ ≤ 1, without products of matrices. Its cosh factor does not
bound anything (see :mod:`orthoopt.rules._cosh`); the default here divides by a certified bound instead, and the
published forms are variants. Source: AuON, arXiv 2509.24320 (September 2025 text), sections 3.1 and 3.2;
ryyzn9/AuON auon/optimizer.py.
"""

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from orthoopt.kernels import Moving, prepare_auon_step
from orthoopt.newton_schulz import normalize
from orthoopt.rules._base import Equivariance, Options, Rounds, Shard, Tensors, register
from orthoopt.rules._cosh import cosh_brake
from orthoopt.rules._momentum import momentum_rule
from orthoopt.rules._shards import (
    Largest,
    OfAll,
    OfCols,
    OfRows,
    own_cols,
    own_rows,
    part_peak,
    peak_of,
    scaled,
    totals,
)
from orthoopt.scale import TARGET_RMS
from orthoopt.schur_bound import schur_bound

PAPER_GAIN = 1.0
REPOSITORY_GAIN = 1.5


def auon_direction(
    momentum: Tensor, *, variant: Literal["spectral_bound", "paper", "repository"] = "spectral_bound"
) -> Tensor:
    """Momentum divided by a bound on its spectral norm, in linear time (AuON).

    Args:
        momentum: ``(..., rows, cols)``, leading dimensions a batch.
        variant: ``spectral_bound``: X / min(b(X), ‖X‖_F) with the certified b of :mod:`orthoopt.schur_bound`, so that
            ‖U‖₂ ≤ 1 ≤ ‖U‖_F. ``paper``: X/‖X‖_F over the cosh factor, gain 1; Frobenius-normalized momentum but for
            O(1/N). ``repository``: the momentum itself over the cosh factor, gain 1.5; that is SGD, and its step is
            as long as the gradients.

    Returns:
        The update, ``(..., rows, cols)``; zero matrices give zeros.
    """
    x = normalize(momentum)
    if variant == "repository":
        return momentum / cosh_brake(x, REPOSITORY_GAIN)
    if variant == "paper":
        return x.div_(cosh_brake(x, PAPER_GAIN))
    bound = schur_bound(x).clamp_(max=1)  # ‖X‖_F = 1 bounds it too
    return x.div_(bound.where(bound > 0, 1))


def _on_shards(part: Tensor, shard: Shard, options: Options) -> Rounds:
    """Two rounds: the Frobenius norm, then sums of what it has normalized; for ``spectral_bound`` one a cut line."""
    x, unit = part_peak(part)
    magnitudes = x.abs()
    squares = OfAll(x.square().sum((-2, -1), keepdim=True, dtype=torch.float64) * unit.square())
    if options["variant"] != "spectral_bound":
        (total,) = yield from totals(shard, [squares])
        x = _divided(x, unit, total)
        gain = PAPER_GAIN if options["variant"] == "paper" else REPOSITORY_GAIN
        # sinh² and not cosh²: what is near zero keeps its digits in a sum of a few.
        share = OfAll((gain * x).sinh_().square_().sum((-2, -1), keepdim=True, dtype=torch.float64))
        (spread,) = yield from totals(shard, [share])
        brake = (1 + spread / (shard.rows * shard.cols)).sqrt().to(x.dtype)
        return (part.to(x.dtype) if options["variant"] == "repository" else x) / brake
    p = OfRows(magnitudes.sum(-1, keepdim=True, dtype=torch.float64) * unit)
    q = OfCols(magnitudes.sum(-2, keepdim=True, dtype=torch.float64) * unit)
    total, rows, cols = yield from totals(shard, [squares, p, q])
    x = _divided(x, unit, total)
    rows, cols = (_divided_sums(sums, total, x.dtype) for sums in (rows, cols))
    # As in schur_bound, (M q)ᵢ/pᵢ and (Mᵀ p)ⱼ/qⱼ.
    magnitudes = x.abs()
    weighted = (magnitudes * own_cols(shard, cols, x)).sum(-1, keepdim=True)
    across = (magnitudes * own_rows(shard, rows, x)).sum(-2, keepdim=True)
    alpha, beta = yield from totals(shard, [
        OfRows(weighted) if shard.cut_cols else Largest(peak_of(weighted / rows.where(rows > 0, 1))),
        OfCols(across) if shard.cut_rows else Largest(peak_of(across / cols.where(cols > 0, 1))),
    ])  # fmt: skip
    alpha = peak_of(alpha / rows.where(rows > 0, 1)) if shard.cut_cols else alpha
    beta = peak_of(beta / cols.where(cols > 0, 1)) if shard.cut_rows else beta
    bound = (alpha * beta).sqrt().clamp(max=1)
    return x / bound.where(bound > 0, 1)


def _divided(x: Tensor, unit: Tensor, squares: Tensor) -> Tensor:
    """``unit·x`` over the norm whose square is given."""
    return scaled(x, unit / torch.where(squares == 0, 1, squares).sqrt())


def _divided_sums(sums: Tensor, squares: Tensor, dtype: torch.dtype) -> Tensor:
    return (sums / torch.where(squares == 0, 1, squares).sqrt()).to(dtype)


def _rms(rows: int, cols: int, options: Options) -> float:
    if options["variant"] == "repository":
        # As long as the momentum, which no shape tells. Counting as AdamW's makes "match_rms_adamw" leave it alone.
        return TARGET_RMS
    if options["variant"] == "paper":
        return 1 / math.sqrt(rows * cols)
    # Sums of magnitudes of normal entries: b(X) is near √(2/π)·‖X‖_F.
    return math.sqrt(math.pi / 2 / (rows * cols))


def _prepare_step(
    params: Tensors, grads: Tensors, buffers: Tensors, moving: Moving, options: Options, **terms: Any
) -> Callable[[], bool] | None:
    if options["variant"] == "repository":
        return None
    return prepare_auon_step(params, grads, buffers, moving, variant=options["variant"], **terms)


auon = register(
    momentum_rule(
        "auon",
        auon_direction,
        on_shards=_on_shards,
        prepare_step=_prepare_step,
        rms=_rms,
        # "paper" and "repository" follow every rotation of vec(X), but for the O(1/N) of the cosh factor.
        equivariance=Equivariance("signed_permutation", "signed_permutation"),
        scale_invariant=lambda options: options["variant"] != "repository",
    )
)
