"""Every kernel op in plain torch: the definition of correct, and the fallback wherever no kernel is faster."""

from __future__ import annotations

import torch
from torch import Tensor


def gram(x: Tensor) -> Tensor:
    """The Gram matrix X Xᵀ of each matrix of ``x``.

    Args:
        x: ``(..., rows, cols)``, any strides.

    Returns:
        ``(..., rows, rows)``, the dtype of ``x``.
    """
    return x @ x.mT


def gram_polynomial(a: Tensor, linear: float, quadratic: float) -> Tensor:
    """``linear·A + quadratic·A²`` for symmetric A.

    Args:
        a: ``(..., rows, rows)``, symmetric.
        linear: coefficient of A.
        quadratic: coefficient of A²; with 0 no product is computed.

    Returns:
        A new tensor shaped like ``a``.
    """
    if quadratic == 0:
        return a * linear
    return _addmm(a, a, a, beta=linear, alpha=quadratic)


def axpy_matmul(x: Tensor, b: Tensor, scalar: float) -> Tensor:
    """``scalar·X + B X``, out of place.

    Args:
        x: ``(..., rows, cols)``.
        b: ``(..., rows, rows)``.
        scalar: coefficient of X.

    Returns:
        A new tensor shaped like ``x``.
    """
    return _addmm(x, b, x, beta=scalar, alpha=1.0)


def _addmm(c: Tensor, a: Tensor, b: Tensor, *, beta: float, alpha: float) -> Tensor:
    """``beta·C + alpha·A B`` in one library call, for any number of leading dimensions."""
    if c.ndim == 2:
        return torch.addmm(c, a, b, beta=beta, alpha=alpha)
    if c.ndim == 3:
        return torch.baddbmm(c, a, b, beta=beta, alpha=alpha)
    flat = torch.baddbmm(c.flatten(0, -3), a.flatten(0, -3), b.flatten(0, -3), beta=beta, alpha=alpha)
    return flat.unflatten(0, c.shape[:-2])
