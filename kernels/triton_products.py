"""The products of :mod:`orthoopt.kernels.reference` by Triton kernels; symmetric results cost one triangle.

Each op takes what the reference takes, and computes it so where the kernels cannot run
(:func:`orthoopt.kernels.triton_dispatch.takes`) or the library is expected to be faster
(:func:`orthoopt.kernels.triton_cutover.prefers_library`). Under ``torch.compile`` the ops are custom ops, which a graph
holds whole.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from orthoopt.kernels import reference
from orthoopt.kernels.triton_dispatch import axpy, static_config, symmetric, takes
from orthoopt.kernels.triton_launch import Scalar, launch_axpy, launch_symmetric
from orthoopt.kernels.triton_support import available

__all__ = ["available", "axpy_matmul", "both_sides", "symm_matmul", "symm_poly", "syrk", "takes"]

Sides: TypeAlias = tuple[Callable[[], object], Callable[[], object]]


def syrk(x: Tensor, *, alpha: Scalar = 1.0, out: Tensor | None = None) -> Tensor:
    """``alpha·X Xᵀ``; exactly symmetric where the kernel runs.

    Args:
        x: ``(..., rows, cols)``, any strides.
        alpha: a number, or one for each matrix: a tensor of the batch's shape, or 0-d.
        out: ``(..., rows, rows)``, any strides, the dtype of ``x``; no input.

    Raises:
        ValueError: a scalar or an ``out`` of another shape, dtype or device than stated.
    """
    batch, (rows, _) = x.shape[:-2], x.shape[-2:]
    check_scalar("alpha", alpha, x)
    check_out(out, x, (*batch, rows, rows))
    return symmetric("syrk", x, x, None, alpha, 0.0, out)


def symm_poly(
    a: Tensor, linear: Scalar, quadratic: Scalar, *, identity: float = 0.0, out: Tensor | None = None
) -> Tensor:
    """``identity·I + linear·A + quadratic·A Aᵀ`` for symmetric A; exactly symmetric where the kernel runs.

    Args:
        a: ``(..., rows, rows)``, symmetric, any strides.
        linear: a number, or one for each matrix: a tensor of the batch's shape, or 0-d.
        quadratic: likewise; with the number 0 no product is computed.
        identity: coefficient of the identity, added by a pass over diagonals.
        out: shaped as ``a``, any strides, the dtype of ``a``; no input.

    Raises:
        ValueError: matrices that are not square; a scalar or an ``out`` of another shape, dtype or device than stated.
    """
    check_square("a", a)
    check_scalar("linear", linear, a)
    check_scalar("quadratic", quadratic, a)
    check_out(out, a, a.shape)
    if isinstance(quadratic, (int, float)) and quadratic == 0:
        return reference.symm_poly(a, linear, quadratic, identity=identity, out=out)
    return reference.add_identity(symmetric("symm_poly", a, a, a, quadratic, linear, out), identity)


def symm_matmul(
    a: Tensor, b: Tensor, *, c: Tensor | None = None, beta: Scalar = 0.0, alpha: Scalar = 1.0, out: Tensor | None = None
) -> Tensor:
    """``beta·C + alpha·A B`` for symmetric A, B and C, A and B commuting; exactly symmetric where the kernel runs.

    Args:
        a: ``(..., rows, rows)``, symmetric, any strides.
        b: likewise, A B = B A.
        c: likewise; None, or ``beta`` the number 0, for no addend.
        beta: a number, or one for each matrix: a tensor of the batch's shape, or 0-d.
        alpha: likewise.
        out: shaped as ``a``, any strides, the dtype of ``a``; no input.

    Raises:
        ValueError: shapes that differ or are not square; a scalar or an ``out`` of another shape, dtype or device than
            stated.
    """
    check_square("a", a)
    for name, other in (("b", b), ("c", c)):
        if other is not None and other.shape != a.shape:
            raise ValueError(f"{name} of shape {tuple(other.shape)} must have the shape of a, {tuple(a.shape)}")
    check_scalar("alpha", alpha, a)
    check_scalar("beta", beta, a)
    if isinstance(beta, (int, float)) and beta == 0:
        c = None
    check_out(out, a, a.shape)
    return symmetric("symm_matmul", a, b, c, alpha, beta if c is not None else 0.0, out)


def axpy_matmul(x: Tensor, b: Tensor, scalar: Scalar, *, alpha: Scalar = 1.0, out: Tensor | None = None) -> Tensor:
    """``scalar·X + alpha·B X``, out of place.

    Args:
        x: ``(..., rows, cols)``, any strides.
        b: ``(..., rows, rows)``, any strides.
        scalar: a number, or one for each matrix: a tensor of the batch's shape, or 0-d.
        alpha: likewise.
        out: shaped as ``x``, any strides, the dtype of ``x``; no input.

    Raises:
        ValueError: a ``b``, a scalar or an ``out`` of another shape, dtype or device than stated.
    """
    wanted = (*x.shape[:-1], x.shape[-2])
    if b.shape != wanted:
        raise ValueError(f"b of shape {tuple(b.shape)} must have the shape {wanted} for x of shape {tuple(x.shape)}")
    check_scalar("scalar", scalar, x)
    check_scalar("alpha", alpha, x)
    check_out(out, x, x.shape)
    return axpy(x, b, scalar, alpha, out)


def both_sides(x: Tensor) -> dict[str, Sides]:
    """Every op on ``x``, ``(batch, rows, cols)``, as two calls: by the library, and by the kernel.

    For benches: each side writes an output of its own, again and again.
    """
    a = reference.syrk(x)
    square, long = torch.empty_like(a), torch.empty_like(x)
    shapes = {"syrk": x, "symm_poly": a, "symm_matmul": a, "axpy_matmul": x}
    cut = {op: static_config(op, of.shape, of.dtype, of.device) for op, of in shapes.items()}
    return {
        "syrk": (
            lambda: reference.syrk(x, out=square),
            lambda: launch_symmetric(x, x, None, 1.0, 0.0, square, cut["syrk"]),
        ),
        "symm_poly": (
            lambda: reference.symm_poly(a, -4.775, 2.0315, out=square),
            lambda: launch_symmetric(a, a, a, 2.0315, -4.775, square, cut["symm_poly"]),
        ),
        "symm_matmul": (
            lambda: reference.symm_matmul(a, a, c=a, beta=3.4445, out=square),
            lambda: launch_symmetric(a, a, a, 1.0, 3.4445, square, cut["symm_matmul"]),
        ),
        "axpy_matmul": (
            lambda: reference.axpy_matmul(x, a, 3.4445, out=long),
            lambda: launch_axpy(x, a, 3.4445, 1.0, long, cut["axpy_matmul"]),
        ),
    }


def check_scalar(name: str, value: Scalar, x: Tensor) -> None:
    """Raise ValueError unless ``value`` is a number, or a tensor where ``x`` is of one number or one a matrix."""
    if isinstance(value, Tensor) and (value.shape not in ((), x.shape[:-2]) or value.device != x.device):
        raise ValueError(
            f"{name} of shape {tuple(value.shape)} on {value.device} must be a number, or a tensor of shape () or "
            f"{tuple(x.shape[:-2])} on {x.device}"
        )


def check_square(name: str, a: Tensor) -> None:
    """Raise ValueError unless the matrices are square."""
    if a.ndim < 2 or a.shape[-1] != a.shape[-2]:
        raise ValueError(f"{name} of shape {tuple(a.shape)} must be square matrices, (..., rows, rows)")


def check_out(out: Tensor | None, x: Tensor, shape: Sequence[int]) -> None:
    """Raise ValueError unless ``out`` is None or has the shape, and the dtype and device of ``x``."""
    if out is None or (out.shape == tuple(shape) and out.dtype == x.dtype and out.device == x.device):
        return
    raise ValueError(
        f"out of shape {tuple(out.shape)}, {out.dtype} on {out.device} must have shape {tuple(shape)}, "
        f"{x.dtype} on {x.device}"
    )
