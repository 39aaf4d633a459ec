"""Launching the Triton products: strides, scalars and grids. Imports Triton with the first launch."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TypeAlias

import torch
from torch import Tensor

from orthoopt.kernels.triton_support import INTERPRETED
from orthoopt.kernels.triton_tuning import Config

Scalar: TypeAlias = float | Tensor

OPTIONS = {"enable_fp_fusion": True}
"""Compiler options of every kernel. Triton 3.9 warns where fusion is left to its default, which 3.10 changes."""


def launch_symmetric(
    left: Tensor, right: Tensor, addend: Tensor | None, alpha: Scalar, beta: Scalar, out: Tensor, config: Config
) -> None:
    """``out ← alpha·L Rᵀ + beta·C`` per matrix, a product known to be symmetric.

    Args:
        left: ``(batch, rows, cols)``, any strides.
        right: likewise.
        addend: C, ``(batch, rows, rows)``, symmetric, any strides; None for none.
        alpha: a number, or a float32 tensor of one element or ``batch``.
        beta: likewise.
        out: ``(batch, rows, rows)``, any strides.
        config: how to cut it; ``tile_m == tile_n``.
    """
    from orthoopt.kernels.triton_jit_products import symmetric_product_kernel

    batch, rows, cols = left.shape
    if out.stride(-2) == 1:
        out = out.mT  # a symmetric result may be stored along its columns
    c = out if addend is None else addend
    blocks = -(-rows // config.tile_m)
    symmetric_product_kernel[(batch * (blocks * (blocks + 1) // 2),)](
        left, right, c, out, alpha, beta,
        rows, cols, blocks,
        *left.stride(), *right.stride(), *c.stride(), *out.stride(), _step(alpha), _step(beta),
        ALPHA_TENSOR=isinstance(alpha, Tensor), BETA_TENSOR=isinstance(beta, Tensor), ADDEND=addend is not None,
        EVEN_K=cols % config.tile_k == 0, UPCAST=_upcast(left.dtype),
        TILE=config.tile_m, TILE_K=config.tile_k, GROUP=config.group,
        num_warps=config.warps, num_stages=config.stages, **OPTIONS,
    )  # fmt: skip


def launch_axpy(x: Tensor, b: Tensor, scalar: Scalar, alpha: Scalar, out: Tensor, config: Config) -> None:
    """``out ← scalar·X + alpha·B X`` per matrix.

    Args:
        x: ``(batch, rows, cols)``, any strides.
        b: ``(batch, rows, rows)``, any strides.
        scalar: a number, or a float32 tensor of one element or ``batch``.
        alpha: likewise.
        out: ``(batch, rows, cols)``, any strides.
        config: how to cut it.
    """
    from orthoopt.kernels.triton_jit_products import axpy_product_kernel

    batch, rows, cols = x.shape
    blocks_m, blocks_n = -(-rows // config.tile_m), -(-cols // config.tile_n)
    axpy_product_kernel[(batch * blocks_m * blocks_n,)](
        x, b, out, scalar, alpha,
        rows, cols, blocks_m, blocks_n,
        *x.stride(), *b.stride(), *out.stride(), _step(scalar), _step(alpha),
        SCALAR_TENSOR=isinstance(scalar, Tensor), ALPHA_TENSOR=isinstance(alpha, Tensor),
        EVEN_K=rows % config.tile_k == 0, UPCAST=_upcast(x.dtype),
        TILE_M=config.tile_m, TILE_N=config.tile_n, TILE_K=config.tile_k, GROUP=config.group,
        num_warps=config.warps, num_stages=config.stages, **OPTIONS,
    )  # fmt: skip


def as_batch(x: Tensor) -> Tensor:
    """``x`` with exactly one leading dimension; a view, unless several leading dimensions do not merge."""
    return x.unsqueeze(0) if x.ndim == 2 else x.flatten(0, -3)


def stored(out: Tensor, target: Tensor) -> Tensor:
    """``out``, holding what was written to ``target``: a copy where :func:`as_batch` made one, else itself."""
    return out if target.data_ptr() == out.data_ptr() else out.copy_(target.view(out.shape))


def on_device(device: torch.device) -> AbstractContextManager[object]:
    """Triton launches on the current device: make ``device`` that one."""
    if device.type != "cuda" or device.index == torch.cuda.current_device():
        return nullcontext()
    return torch.cuda.device(device)


def as_scalar(value: Scalar) -> Scalar:
    """A number, or a float32 tensor of one dimension."""
    return value.to(torch.float32).reshape(-1).contiguous() if isinstance(value, Tensor) else float(value)


def _step(value: Scalar) -> int:
    """How far one matrix's scalar is from the next one's."""
    return int(isinstance(value, Tensor) and value.numel() > 1)


def _upcast(dtype: torch.dtype) -> bool:
    # Triton's interpreter multiplies the bit patterns of bfloat16.
    return INTERPRETED and dtype == torch.bfloat16
