"""The matrix products of an iteration: Triton kernels on GPUs, compiled loops on CPUs, else the reference."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from orthoopt.kernels import native_products, reference, triton_products
from orthoopt.kernels.reference import Scalar
from orthoopt.kernels.triton_support import INTERPRETED, available

_TILE = 128


def syrk(x: Tensor, *, alpha: Scalar = 1.0, out: Tensor | None = None) -> Tensor:
    """``alpha·X Xᵀ``; see :func:`orthoopt.kernels.reference.syrk`."""
    return _on(x).syrk(x, alpha=alpha, out=out)


def symm_poly(
    a: Tensor, linear: Scalar, quadratic: Scalar, *, identity: float = 0.0, out: Tensor | None = None
) -> Tensor:
    """``identity·I + linear·A + quadratic·A Aᵀ``; see :func:`orthoopt.kernels.reference.symm_poly`."""
    return _on(a).symm_poly(a, linear, quadratic, identity=identity, out=out)


def symm_matmul(
    a: Tensor,
    b: Tensor,
    *,
    c: Tensor | None = None,
    beta: Scalar = 0.0,
    alpha: Scalar = 1.0,
    out: Tensor | None = None,
) -> Tensor:
    """``beta·C + alpha·A B``, symmetric; see :func:`orthoopt.kernels.reference.symm_matmul`."""
    return _on(a).symm_matmul(a, b, c=c, beta=beta, alpha=alpha, out=out)


def axpy_matmul(x: Tensor, b: Tensor, scalar: Scalar, *, alpha: Scalar = 1.0, out: Tensor | None = None) -> Tensor:
    """``scalar·X + alpha·B X``; see :func:`orthoopt.kernels.reference.axpy_matmul`."""
    return _on(x).axpy_matmul(x, b, scalar, alpha=alpha, out=out)


def adds_in_passing(x: Tensor) -> bool:
    """Whether what is added to a symmetric product of such matrices costs no pass over memory of its own."""
    return _on(x) is not reference


def symmetric_share(rows: int, device: torch.device | str, dtype: torch.dtype) -> float:
    """The share of a symmetric product's entries that is computed on a device; the rest is mirrored."""
    device = torch.device(device)
    if device.type == "cuda" and torch.cuda.is_available() and available(device):
        blocks = -(-rows // _TILE)
        return (blocks + 1) / (2 * blocks)
    if device.type == "cpu" and dtype == torch.float32 and native_products.is_on():
        return native_products.symmetric_share(rows)
    return reference.symmetric_share(rows, device.type, dtype)


def _on(x: Tensor) -> Any:
    if x.device.type == "cuda" or INTERPRETED:
        return triton_products
    return native_products if native_products.takes(x) else reference
