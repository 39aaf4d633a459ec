"""Where an iteration starts: X₀ with ‖X₀‖₂ ≤ 1/κ, and its Gram matrix.

On a host that may look at values the norm costs nothing, for ‖X‖_F² is the trace of X Xᵀ, which the first step needs
anyway; the division then meets small matrices alone. Elsewhere X is divided first.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from orthoopt.coefficients import Table
from orthoopt.kernels import syrk

_SAFE_TRACES = {torch.float32: (1e-20, 1e30), torch.float64: (1e-200, 1e200)}
"""Between these no square that counts underflows, nor a sum of squares overflows."""

_HEADROOM = 4


class Start(NamedTuple):
    """``diag(scale)·x`` is X₀, and ``products`` its Gram matrix."""

    x: Tensor
    products: Tensor
    scale: Tensor | None
    """``(batch, rows or 1, 1)``; None for ones."""


def start(x: Tensor, table: Table, dtype: torch.dtype) -> Start:
    """The start where values may not be read: two passes over X, one to find its largest magnitude, one to cast it.

    Each matrix is multiplied by the power of two that brings that magnitude near 1/16, so that float16 holds sums of
    its squares too, and then cast; the trace of its Gram matrix is its squared norm.

    Args:
        x: ``(..., rows, cols)`` with rows ≤ cols.
        table: says how to normalize.
        dtype: of the iteration.
    """
    factor = power_of_two(x, _HEADROOM).to(x.dtype)
    if table.start == "aol" and dtype == torch.float16:
        # Rows far below the largest entry have squares that float16 does not hold, and their scale brings them to one.
        wide = torch.mul(x, factor, out=torch.empty_like(x, dtype=_wide(x.dtype)))
        x = (wide * aol_scale(syrk(wide))).to(dtype)
        return Start(x, syrk(x), None)
    x = torch.mul(x, factor, out=torch.empty_like(x, dtype=dtype))
    products = syrk(x)
    if table.start == "aol":
        scale = aol_scale(products)
        return Start(x * scale, products * scale * scale.mT, None)
    squares = products.diagonal(dim1=-2, dim2=-1).sum(-1, dtype=_wide(dtype))[..., None, None] * table.kappa**2
    squares = torch.where(squares == 0, 1, squares)
    return Start(x, products.div_(squares), squares.rsqrt())


def start_on_host(x: Tensor, table: Table, products: Tensor) -> Start:
    """The start where values may be read; as accurate at every scale, and the same bits for every power of two.

    Each matrix is looked at by itself. Where one's trace is outside of what its dtype can square, it is multiplied by
    the power of two that brings its largest magnitude near one, which changes no digit, and its neighbours by one.

    Args:
        x: ``(batch, rows, cols)`` with rows ≤ cols, float32 or float64, in the dtype of the iteration.
        table: says how to normalize.
        products: ``(batch, rows, rows)``, to be written.
    """
    syrk(x, out=products)
    traces = _traces(products)
    low, high = _SAFE_TRACES[x.dtype]
    if not all(low <= trace <= high for trace in traces.tolist()):
        safe = (traces >= low) & (traces <= high)
        x = x * torch.where(safe[:, None, None], 1, power_of_two(x))
        syrk(x, out=products)
        traces = _traces(products)
    if table.start == "aol":
        scale = aol_scale(products)
        products.mul_(scale).mul_(scale.mT)
    else:
        squares = torch.where(traces == 0, 1, traces * table.kappa**2)[:, None, None]
        scale = squares.rsqrt().to(x.dtype)
        products.div_(squares.to(x.dtype))
    return Start(x, products, scale)


def normalize(x: Tensor, kappa: float = 1.0) -> Tensor:
    """``x / (kappa·‖x‖_F)`` per matrix, in float32 or wider, right at every scale the dtype holds.

    Squares of values near 1e-25 underflow in float32, so each matrix is first divided by its largest magnitude. No
    absolute floor is added: it would make small gradients smaller.

    Args:
        x: ``(..., rows, cols)``.
        kappa: divides the result, so that the largest singular value is at most ``1/kappa``.

    Returns:
        A new tensor; a zero matrix gives exact zeros.
    """
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    peak = x.abs().amax((-2, -1), keepdim=True)
    x = x / torch.where(peak == 0, 1, peak)
    norm = torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True).mul_(kappa)
    return x.div_(torch.where(norm == 0, 1, norm))


def _traces(products: Tensor) -> Tensor:
    return products.diagonal(dim1=-2, dim2=-1).sum(-1, dtype=torch.float64)


def power_of_two(x: Tensor, headroom: int = 0) -> Tensor:
    """The power of two, a matrix, that brings its largest magnitude to [½, 1)/2^headroom; to multiply by it is exact.

    Args:
        x: ``(..., rows, cols)``, floating.
        headroom: how many powers of two lower.

    Returns:
        ``(..., 1, 1)``, float32 or wider; of zero matrices and of those with entries that are not finite as of ones
        with a peak of one.
    """
    peak = torch.linalg.vector_norm(x, torch.inf, (-2, -1), keepdim=True).to(_wide(x.dtype))
    exponent = torch.frexp(torch.where(peak.isfinite(), peak, 0)).exponent + headroom
    largest = 1000 if peak.dtype == torch.float64 else 120
    return torch.ldexp(torch.ones_like(peak), -exponent.clamp(-largest, largest))


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def aol_scale(products: Tensor) -> Tensor:
    """Almost-orthogonal rescaling (arXiv 2512.04632): rows scaled by (Σⱼ|Aᵢⱼ|)^-½ bound ‖X‖₂ by one."""
    row_sums = products.abs().sum(-1, keepdim=True)
    return torch.where(row_sums > 0, row_sums, 1).rsqrt()
