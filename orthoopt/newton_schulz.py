"""Newton-Schulz iteration: the polar factor of a batch of matrices by matrix products alone.

With X₀ = X/(κ‖X‖_F), each step maps every singular value σ to aσ + bσ³ + cσ⁵ and leaves the singular vectors as
they are, so after a few steps the singular values lie near one: X ≈ U Vᵀ. The coefficient tables are in
:mod:`orthoopt.coefficients`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from orthoopt.coefficients import Table, Triple, resolve_coefficients
from orthoopt.kernels import axpy_matmul, gram, gram_polynomial

NS_DTYPES: dict[str, torch.dtype | None] = {
    "auto": None,
    "float32": torch.float32,
    "float64": torch.float64,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


def newton_schulz(
    x: Tensor, steps: int, coefficients: str | Triple | Sequence[Triple], dtype: torch.dtype | None = None
) -> Tensor:
    """The polar factor of each matrix to the accuracy of the coefficients, in the dtype of the iteration.

    Args:
        x: ``(..., rows, cols)``; never written.
        steps: iterations.
        coefficients: a table's name, one triple (a, b, c), or several of which the last repeats.
        dtype: of the iteration; None chooses by device, see :func:`iteration_dtype`.
    """
    table = resolve_coefficients(coefficients, steps)
    tall = x.shape[-2] > x.shape[-1]
    x, products = start(x.mT if tall else x, table, dtype or iteration_dtype(x))
    for step, (a, b, c) in enumerate(table.rows):
        if step:
            products = gram(x)
        x = axpy_matmul(x, gram_polynomial(products, b, c), a)
    return x.mT if tall else x


def start(x: Tensor, table: Table, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """X₀ with ‖X₀‖₂ ≤ 1/κ, normalized before it is cast to ``dtype``, and its Gram matrix X₀X₀ᵀ.

    Args:
        x: ``(..., rows, cols)`` with rows ≤ cols.
        table: says how to normalize.
        dtype: of the iteration.
    """
    x = normalize(x, table.kappa).to(dtype)
    products = gram(x)
    if table.start == "aol":
        # Almost-orthogonal rescaling (arXiv 2512.04632): rows scaled by (Σⱼ|Aᵢⱼ|)^-½ bound ‖X‖₂ by one.
        row_sums = products.abs().sum(-1, keepdim=True)
        scale = torch.where(row_sums > 0, row_sums, 1).rsqrt()
        x, products = x * scale, products * scale * scale.mT
    return x, products


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
