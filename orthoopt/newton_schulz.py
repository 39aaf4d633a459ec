"""Newton-Schulz iteration: the polar factor of a batch of matrices by matrix products alone.

With X₀ = X/(κ‖X‖_F), each step maps every singular value σ to aσ + bσ³ + cσ⁵ and leaves the singular vectors as
they are, so after a few steps the singular values lie near one: X ≈ U Vᵀ. The coefficient tables are in
:mod:`orthoopt.coefficients`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from orthoopt.coefficients import Triple, resolve_coefficients
from orthoopt.kernels import axpy_matmul, gram, gram_polynomial

NS_DTYPES: dict[str, torch.dtype | None] = {
    "auto": None,
    "float32": torch.float32,
    "float64": torch.float64,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


@torch.no_grad()
def orthogonalize(
    x: Tensor,
    steps: int = 5,
    coefficients: str | Triple | Sequence[Triple] = "polar_express",
    *,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """The polar factor U Vᵀ of each matrix, to the accuracy of the coefficients; the input is never written.

    Args:
        x: ``(..., rows, cols)``, real floating point; leading dimensions are a batch.
        steps: Newton-Schulz iterations, at least 1.
        coefficients: the name of a table (``orthoopt.coefficients.names()``), one triple (a, b, c) used in every
            step, or a sequence of triples of which the last repeats.
        dtype: dtype of the iteration. By default float64 for float64 input, float32 on CPUs, and on CUDA devices
            bfloat16 where the hardware has it. The norm is always taken in float32 or wider.

    Returns:
        A new tensor with the shape and dtype of ``x``. Zero matrices give exact zeros; null directions stay null.

    Raises:
        TypeError: ``x`` is complex or an integer tensor.
        ValueError: fewer than two dimensions, an unknown table, or a number of steps the table does not allow.
    """
    if not x.is_floating_point():
        raise TypeError(f"orthogonalize needs a real floating point tensor, got dtype {x.dtype}")
    if x.ndim < 2:
        raise ValueError(f"orthogonalize needs (..., rows, cols), got shape {tuple(x.shape)}")
    return newton_schulz(x, steps, coefficients, dtype).to(x.dtype)


def newton_schulz(
    x: Tensor, steps: int, coefficients: str | Triple | Sequence[Triple], dtype: torch.dtype | None = None
) -> Tensor:
    """:func:`orthogonalize` without its checks; the result keeps the dtype of the iteration."""
    table = resolve_coefficients(coefficients, steps)
    tall = x.shape[-2] > x.shape[-1]
    x = normalize(x.mT if tall else x, table.kappa).to(dtype or iteration_dtype(x))
    products = gram(x)
    if table.start == "aol":
        # Almost-orthogonal rescaling (arXiv 2512.04632): rows scaled by (Σⱼ|Aᵢⱼ|)^-½ bound ‖X‖₂ by one.
        row_sums = products.abs().sum(-1, keepdim=True)
        scale = torch.where(row_sums > 0, row_sums, 1).rsqrt()
        x, products = x * scale, products * scale * scale.mT
    for step, (a, b, c) in enumerate(table.rows):
        if step:
            products = gram(x)
        x = axpy_matmul(x, gram_polynomial(products, b, c), a)
    return x.mT if tall else x


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


def iteration_dtype(x: Tensor) -> torch.dtype:
    """The dtype in which products of matrices like ``x`` are fast and good enough on the device of ``x``.

    CPUs without bfloat16 units emulate it at a small fraction of the float32 rate, so CPUs iterate in float32.
    """
    if x.dtype == torch.float64:
        return torch.float64
    if x.device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.bfloat16
    return torch.float32
