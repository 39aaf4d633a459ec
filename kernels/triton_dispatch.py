"""What computes a product: the Triton kernel with its tiles, or the reference; and both as custom ops.

A compiled graph holds the custom ops whole. Eager calls pass them by: they would cost more than the launch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from orthoopt.kernels import reference
from orthoopt.kernels.triton_cutover import prefers_library
from orthoopt.kernels.triton_launch import (
    Scalar,
    as_batch,
    as_scalar,
    launch_axpy,
    launch_symmetric,
    on_device,
    stored,
)
from orthoopt.kernels.triton_support import available
from orthoopt.kernels.triton_tuning import Config, default_config, tuned_config, wants_autotuning

DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def takes(*matrices: Tensor | None, scalars: Sequence[Scalar] = ()) -> bool:
    """Whether the kernels can compute with these tensors: on a device where they run, of one 16- or 32-bit dtype.

    They have no derivative, so none may require one; and no stride may be so long that a tile spans 2³¹ elements.

    Args:
        matrices: operands and output, ``(..., rows, cols)``; None for absent ones.
        scalars: numbers, or tensors of one number a matrix.
    """
    present = [matrix for matrix in matrices if matrix is not None]
    first = present[0]
    if not available(first.device) or first.numel() == 0 or first.dtype not in DTYPES:
        return False
    numbers = [scalar for scalar in scalars if isinstance(scalar, Tensor)]
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (*present, *numbers)):
        return False
    return all(
        matrix.dtype == first.dtype and matrix.device == first.device and max(matrix.stride()[-2:]) < 2**22
        for matrix in present
    )


@lru_cache(maxsize=4096)
def static_config(op: str, shape: torch.Size, dtype: torch.dtype, device: torch.device) -> Config:
    """How the kernel cuts this op on matrices of ``shape``, ``(..., rows, cols)``."""
    kind = "rectangular" if op == "axpy_matmul" else "symmetric"
    rows, cols = shape[-2:]
    return default_config(kind, shape[:-2].numel(), rows, cols, dtype, device)


@lru_cache(maxsize=4096)
def plan(op: str, shape: torch.Size, dtype: torch.dtype, device: torch.device) -> Config | None:
    """:func:`static_config`; None where the library is expected to be faster."""
    rows, cols = shape[-2:]
    if prefers_library(op, shape[:-2].numel(), rows, cols, dtype, device):
        return None
    return static_config(op, shape, dtype, device)


def symmetric(
    op: str, left: Tensor, right: Tensor, addend: Tensor | None, alpha: Scalar, beta: Scalar, out: Tensor | None
) -> Tensor:
    """``alpha·L Rᵀ + beta·C``, known to be symmetric, as the op of that name.

    Args:
        op: "syrk", "symm_poly" or "symm_matmul".
        left: ``(..., rows, cols)``.
        right: shaped as ``left``.
        addend: C, ``(..., rows, rows)``; None for none.
        alpha: a number, or one for each matrix.
        beta: likewise.
        out: ``(..., rows, rows)``; None for a new tensor.
    """
    if not takes(left, right, addend, out, scalars=(alpha, beta)):
        return _symmetric_reference(op, left, right, addend, alpha, beta, out)
    if not torch.compiler.is_compiling():
        return _symmetric_now(op, left, right, addend, alpha, beta, out)
    out = left.new_empty(*left.shape[:-1], left.shape[-2]) if out is None else out
    _symmetric_op(op, left, right, addend, *_split(alpha), *_split(beta), out)
    return out


def axpy(x: Tensor, b: Tensor, scalar: Scalar, alpha: Scalar, out: Tensor | None) -> Tensor:
    """``scalar·X + alpha·B X``; see :func:`orthoopt.kernels.triton_products.axpy_matmul`."""
    if not takes(x, b, out, scalars=(scalar, alpha)):
        return reference.axpy_matmul(x, b, scalar, alpha=alpha, out=out)
    if not torch.compiler.is_compiling():
        return _axpy_now(x, b, scalar, alpha, out)
    out = torch.empty_like(x) if out is None else out
    _axpy_op(x, b, *_split(scalar), *_split(alpha), out)
    return out


def _symmetric_now(
    op: str, left: Tensor, right: Tensor, addend: Tensor | None, alpha: Scalar, beta: Scalar, out: Tensor | None
) -> Tensor:
    config = plan(op, left.shape, left.dtype, left.device)
    if config is None:
        return _symmetric_reference(op, left, right, addend, alpha, beta, out)
    out = left.new_empty(*left.shape[:-1], left.shape[-2]) if out is None else out
    target = as_batch(out)
    c = None if addend is None else as_batch(addend)

    def run(config: Config) -> None:
        launch_symmetric(as_batch(left), as_batch(right), c, as_scalar(alpha), as_scalar(beta), target, config)

    _launch("symmetric", config, (op, left.shape), (left, right, target), run)
    return stored(out, target)


def _symmetric_reference(
    op: str, left: Tensor, right: Tensor, addend: Tensor | None, alpha: Scalar, beta: Scalar, out: Tensor | None
) -> Tensor:
    if op == "syrk":
        return reference.syrk(left, alpha=alpha, out=out)
    if op == "symm_poly":
        return reference.symm_poly(left, beta, alpha, out=out)
    return reference.symm_matmul(left, right, c=addend, beta=beta, alpha=alpha, out=out)


def _axpy_now(x: Tensor, b: Tensor, scalar: Scalar, alpha: Scalar, out: Tensor | None) -> Tensor:
    config = plan("axpy_matmul", x.shape, x.dtype, x.device)
    if config is None:
        return reference.axpy_matmul(x, b, scalar, alpha=alpha, out=out)
    out = torch.empty_like(x) if out is None else out  # of a transposed view, one that is transposed likewise
    target = as_batch(out)

    def run(config: Config) -> None:
        launch_axpy(as_batch(x), as_batch(b), as_scalar(scalar), as_scalar(alpha), target, config)

    _launch("rectangular", config, ("axpy_matmul", x.shape), (x, b, target), run)
    return stored(out, target)


def _launch(
    kind: str, config: Config, key: tuple[object, ...], tensors: Sequence[Tensor], run: Callable[[Config], None]
) -> None:
    first = tensors[0]
    with on_device(first.device):
        if wants_autotuning(first.device):
            key = (*key, *(tensor.stride() for tensor in tensors), first.dtype, first.device)
            config = tuned_config(kind, key, first.dtype, first.device, run)
        run(config)


def _split(value: Scalar) -> tuple[float, Tensor | None]:
    """A number and a tensor, one of which counts: the schema of a custom op has no "either"."""
    return (1.0, value) if isinstance(value, Tensor) else (float(value), None)


@torch.library.custom_op("orthoopt::symmetric_product", mutates_args=("out",))
def _symmetric_op(
    op: str,
    left: Tensor,
    right: Tensor,
    addend: Tensor | None,
    alpha: float,
    alphas: Tensor | None,
    beta: float,
    betas: Tensor | None,
    out: Tensor,
) -> None:
    _symmetric_now(op, left, right, addend, alpha if alphas is None else alphas, beta if betas is None else betas, out)


@torch.library.custom_op("orthoopt::axpy_product", mutates_args=("out",))
def _axpy_op(
    x: Tensor, b: Tensor, scalar: float, scalars: Tensor | None, alpha: float, alphas: Tensor | None, out: Tensor
) -> None:
    _axpy_now(x, b, scalar if scalars is None else scalars, alpha if alphas is None else alphas, out)


@_symmetric_op.register_fake
@_axpy_op.register_fake
def _nothing(*_: object) -> None:
    """All that the ops return is in ``out``."""
