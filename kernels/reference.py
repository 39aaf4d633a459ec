"""Every kernel op in plain torch: the definition of correct, and the fallback wherever no kernel is faster.

Matrices are ``(..., rows, cols)`` of any strides; scalars are numbers or tensors of the batch's shape, one a matrix.
Every op makes a new tensor, or writes all of ``out``, which may hold anything before but no part of an input.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TypeAlias

import torch
from torch import Tensor

Scalar: TypeAlias = float | Tensor

_BAND = 128
_MOST_BANDS = 4
_BANDED_DTYPES = (torch.float32, torch.float64)


def syrk(x: Tensor, *, alpha: Scalar = 1.0, out: Tensor | None = None) -> Tensor:
    """``alpha·X Xᵀ``, the Gram matrix of each matrix of ``x``.

    Args:
        x: ``(..., rows, cols)``.
        alpha: coefficient.
        out: ``(..., rows, rows)``.
    """
    return _product(x, x.mT, alpha=alpha, out=out, symmetric=True)


def symm_poly(
    a: Tensor, linear: Scalar, quadratic: Scalar, *, identity: float = 0.0, out: Tensor | None = None
) -> Tensor:
    """``identity·I + linear·A + quadratic·A Aᵀ`` for symmetric A.

    Args:
        a: ``(..., rows, rows)``, symmetric.
        linear: coefficient of A.
        quadratic: coefficient of A²; with the number 0 no product is computed.
        identity: coefficient of the identity, which is added last: in 16 bits that rounds what is small beside it away.
        out: shaped like ``a``.
    """
    if not isinstance(quadratic, Tensor) and quadratic == 0:
        result = torch.mul(a, _per_matrix(linear), out=out)
    else:
        result = _product(a, a, c=a, beta=linear, alpha=quadratic, out=out, symmetric=True)
    return add_identity(result, identity)


def add_identity(square: Tensor, amount: float) -> Tensor:
    """``(..., rows, rows)`` + ``amount``·I, in place."""
    if amount != 0:
        square.diagonal(dim1=-2, dim2=-1).add_(amount)
    return square


def symm_matmul(
    a: Tensor,
    b: Tensor,
    *,
    c: Tensor | None = None,
    beta: Scalar = 0.0,
    alpha: Scalar = 1.0,
    out: Tensor | None = None,
) -> Tensor:
    """``beta·C + alpha·A B`` for symmetric matrices that commute, so that the result is symmetric.

    Args:
        a: ``(..., rows, rows)``, symmetric.
        b: likewise.
        c: likewise; None for zeros.
        beta: coefficient of C.
        alpha: coefficient of the product.
        out: shaped like ``a``.
    """
    return _product(a, b, c=c, beta=beta, alpha=alpha, out=out, symmetric=True)


def axpy_matmul(x: Tensor, b: Tensor, scalar: Scalar, *, alpha: Scalar = 1.0, out: Tensor | None = None) -> Tensor:
    """``scalar·X + alpha·B X``, out of place.

    Args:
        x: ``(..., rows, cols)``.
        b: ``(..., rows, rows)``.
        scalar: coefficient of X; with the number 0 only the product is computed.
        alpha: coefficient of the product.
        out: shaped like ``x``.
    """
    return _product(b, x, c=x, beta=scalar, alpha=alpha, out=out)


def symmetric_bands(rows: int, device: str, dtype: torch.dtype) -> tuple[int, ...]:
    """The edges of the row bands in which a symmetric product is computed.

    Torch has no product that computes one triangle. In bands of rows, each up to its last column, four bands compute
    5/8 of the entries; the rest is mirrored. Bands of at least 128 rows run at the full rate of a CPU's library.
    """
    count = min(_MOST_BANDS, rows // _BAND) if device == "cpu" and dtype in _BANDED_DTYPES else 1
    return tuple(rows * i // max(count, 1) for i in range(max(count, 1) + 1))


def symmetric_share(rows: int, device: str, dtype: torch.dtype) -> float:
    """The share of a symmetric product's entries that is computed; the rest is mirrored."""
    edges = symmetric_bands(rows, device, dtype)
    return sum((high - low) * high for low, high in pairwise(edges)) / max(1, rows * rows)


def _product(
    a: Tensor,
    b: Tensor,
    *,
    c: Tensor | None = None,
    beta: Scalar = 0.0,
    alpha: Scalar = 1.0,
    out: Tensor | None = None,
    symmetric: bool = False,
) -> Tensor:
    """``beta·C + alpha·A B`` in as few library calls as it takes, for any number of leading dimensions."""
    shape = (*a.shape[:-1], b.shape[-1])
    if isinstance(beta, Tensor) or isinstance(alpha, Tensor):
        result = _product(a, b, out=out, symmetric=symmetric).mul_(_per_matrix(alpha))
        return result if c is None else result.add_(c * _per_matrix(beta))
    if c is None or beta == 0:
        c, beta = None, 0.0
    if out is None:
        out = torch.empty(shape, dtype=a.dtype, device=a.device)
    if len(shape) > 3:
        flat = _product(
            a.flatten(0, -3),
            b.flatten(0, -3),
            c=None if c is None else c.flatten(0, -3),
            beta=beta,
            alpha=alpha,
            symmetric=symmetric,
        )
        return out.copy_(flat.unflatten(0, shape[:-2]))
    edges = symmetric_bands(shape[-2], a.device.type, a.dtype) if symmetric else (0, shape[-2])
    for low, high in pairwise(edges):
        width = high if symmetric else shape[-1]
        corner = None if c is None else c[..., low:high, :width]
        _into(out[..., low:high, :width], a[..., low:high, :], b[..., :width], corner, beta, alpha)
        if low:
            out[..., :low, low:high].copy_(out[..., low:high, :low].mT)
    return out


def _into(out: Tensor, a: Tensor, b: Tensor, c: Tensor | None, beta: float, alpha: float) -> None:
    if c is None and (alpha == 1 or not out.is_contiguous()):
        # On CPUs ``baddbmm`` takes no batched call for a part of a tensor, as ``bmm`` does.
        (torch.mm if out.ndim == 2 else torch.bmm)(a, b, out=out)
        if alpha != 1:
            out.mul_(alpha)
        return
    # With beta 0 what stands in ``out`` is ignored, not-a-number too.
    call = torch.addmm if out.ndim == 2 else torch.baddbmm
    call(out if c is None else c, a, b, beta=beta, alpha=alpha, out=out)


def _per_matrix(scalar: Scalar) -> Scalar:
    """A scalar that broadcasts over matrices."""
    return scalar[..., None, None] if isinstance(scalar, Tensor) else scalar
