"""A certified upper bound on the spectral norm of a batch of matrices, in linear time."""

from __future__ import annotations

from torch import Tensor


def schur_bound(x: Tensor) -> Tensor:
    """An upper bound on ‖X‖₂ from sums of magnitudes alone: no product of matrices, no iteration.

    Schur's test: if M ≥ 0, p, q > 0, M q ≤ α p and Mᵀ p ≤ β q, then ‖M‖₂ ≤ √(αβ). Here M = |X|, and ‖X‖₂ ≤ ‖|X|‖₂.
    With p the row sums and q the column sums of |X|, (M q)ᵢ/pᵢ is a mean of q under the weights of row i, so that
    α ≤ max q = ‖X‖₁ and β ≤ max p = ‖X‖_∞: never above √(‖X‖₁‖X‖_∞), which is the same test with p = q = 1. It is
    exact for outer products, however unequal their rows and columns, and for diagonal matrices.

    Args:
        x: ``(..., rows, cols)``; entries should be near one, for products of three of them are formed.

    Returns:
        ``(..., 1, 1)``, 0 for a zero matrix; true to rounding. On a matrix of independent normal entries it is near
        √(2/π)·‖X‖_F, where ‖X‖₂ is about (√rows + √cols)/√(rows·cols)·‖X‖_F.
    """
    magnitudes = x.abs()
    p = magnitudes.sum(-1, keepdim=True)
    q = magnitudes.sum(-2, keepdim=True)
    # Elementwise products and sums, not matrix products: TF32 would round these to three digits.
    alpha = ((magnitudes * q).sum(-1, keepdim=True) / p.where(p > 0, 1)).amax(-2, keepdim=True)
    beta = ((magnitudes * p).sum(-2, keepdim=True) / q.where(q > 0, 1)).amax(-1, keepdim=True)
    return (alpha * beta).sqrt()
