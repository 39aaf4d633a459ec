"""QDWH: the polar factor to working precision by the dynamically weighted Halley iteration.

Each step maps every singular value σ ∈ [l, 1] to σ(a + bσ²)/(1 + cσ²), with the weights a, b, c that bring the lower
end of that interval nearest to one; six steps take l = 2e-16 to one in float64. Source: Nakatsukasa, Bai, Gygi,
"Optimizing Halley's iteration for computing the matrix polar decomposition", SIAM J. Matrix Anal. Appl. 31(5), 2010.
The first, steep steps run on a QR factorization and need no inverse; the later ones on a Cholesky factorization.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from orthoopt.newton_schulz import normalize

CHOLESKY_LIMIT = 100.0
"""Largest c for which a step may form I + cXᵀX, whose condition number is at most 1 + c (timlautk/polargrad's too)."""

_SQUARING_RATIO = 1.25
"""Longer than this many times the shorter side, a matrix is first reduced to a square one."""


def qdwh(x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """The polar factor of each matrix to working precision, null directions cut.

    The weights depend on the dtype alone, so every matrix of every batch takes the same steps: nothing waits for the
    device, and neighbours do not matter. A bound on each smallest singular value would cost a factorization, be
    worthless for rank-deficient matrices, and save at most two steps.

    Args:
        x: ``(..., rows, cols)``; never written.
        dtype: of the computation; float16 and bfloat16 are promoted to float32. None follows ``x``.

    Returns:
        The factor in the dtype of the computation. Directions whose singular value is below a tenth of
        :func:`null_tolerance` stay null, those above ten times it are one; a zero matrix gives exact zeros.
    """
    tall = x.shape[-2] >= x.shape[-1]
    whole = normalize((x if tall else x.mT).to(working_dtype(x, dtype)))
    rows, cols = whole.shape[-2:]
    basis, factor = None, whole
    if rows > _SQUARING_RATIO * cols:
        basis, factor = torch.linalg.qr(whole)
    for a, b, c in weights(whole.dtype):
        step = _cholesky_step if c <= CHOLESKY_LIMIT else _qr_step
        factor = step(factor, a, b, c)
    if basis is not None:
        factor = basis @ factor
    factor = factor @ _kept_directions(factor, whole, null_tolerance(rows, cols, whole.dtype))
    zero = whole.abs().amax((-2, -1), keepdim=True) == 0
    factor = factor.masked_fill(zero, 0)
    return factor if tall else factor.mT


def working_dtype(x: Tensor, dtype: torch.dtype | None) -> torch.dtype:
    """``dtype``, or that of ``x``, but float32 at least: factorizations have no narrower one."""
    return torch.promote_types(dtype or x.dtype, torch.float32)


def null_tolerance(rows: int, cols: int, dtype: torch.dtype) -> float:
    """Singular values below this many times ‖X‖_F are rounding: their singular vectors mean nothing.

    Rounding a matrix of low rank leaves singular values of about eps·‖X‖_F at any size; the sums in UᵀX grow as the
    root of their length.
    """
    return (16 + math.sqrt(max(rows, cols))) * torch.finfo(dtype).eps


@functools.cache
def weights(dtype: torch.dtype) -> tuple[tuple[float, float, float], ...]:
    """The (a, b, c) of every step, from l = eps until l is one to rounding."""
    lower = eps = torch.finfo(dtype).eps
    found = []
    while 1 - lower > 5 * eps:
        square = lower * lower
        d = (4 * (1 - square) / square**2) ** (1 / 3)
        root = math.sqrt(1 + d)
        a = root + 0.5 * math.sqrt(8 - 4 * d + 8 * (2 - square) / (square * root))
        b = (a - 1) ** 2 / 4
        c = a + b - 1
        found.append((a, b, c))
        lower = min(1.0, lower * (a + b * square) / (1 + c * square))
    return tuple(found)


def _qr_step(x: Tensor, a: float, b: float, c: float) -> Tensor:
    """(b/c)X + (a − b/c)X(I + cXᵀX)⁻¹, the inverse as Q₁Q₂ᵀ/√c from [√c·X; I] = [Q₁; Q₂]R."""
    rows, cols = x.shape[-2:]
    eye = torch.eye(cols, dtype=x.dtype, device=x.device).expand(*x.shape[:-2], cols, cols)
    q, _ = torch.linalg.qr(torch.cat([math.sqrt(c) * x, eye], -2))
    return (b / c) * x + ((a - b / c) / math.sqrt(c)) * (q[..., :rows, :] @ q[..., rows:, :].mT)


def _cholesky_step(x: Tensor, a: float, b: float, c: float) -> Tensor:
    """The same map by the factorization I + cXᵀX = LLᵀ, well conditioned for small c."""
    shifted = c * (x.mT @ x) + torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
    factor, _ = torch.linalg.cholesky_ex(shifted)  # without its check, which would wait for the device
    return (b / c) * x + (a - b / c) * torch.cholesky_solve(x.mT, factor).mT


def _kept_directions(factor: Tensor, x: Tensor, tolerance: float) -> Tensor:
    """The projector onto the right singular vectors of X whose singular values are above ``tolerance``.

    The iteration blows rounding in null directions up to anything between zero and one. H = UᵀX has the singular
    values of X as eigenvalues; σ/(σ + tolerance) tells the two kinds apart, and p ← 3p² − 2p³ makes the
    difference sharp: 1/11 goes to 2e-10 in four steps, to 1e-19 in five.
    """
    hermitian = factor.mT @ x
    eye = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
    cholesky, _ = torch.linalg.cholesky_ex((hermitian + hermitian.mT) / 2 + tolerance * eye)
    projector = eye - tolerance * torch.cholesky_inverse(cholesky)
    for _ in range(5 if x.dtype == torch.float64 else 4):
        square = projector @ projector
        projector = 3 * square - 2 * (projector @ square)
    return projector
