"""Newton-Schulz iteration: the polar factor of a batch of matrices by matrix products alone.

With X₀ = X/(κ‖X‖_F), each step maps every singular value σ to aσ + bσ³ + cσ⁵ and leaves the singular vectors as
they are, so after a few steps the singular values lie near one: X ≈ U Vᵀ. The coefficient tables are in
:mod:`orthoopt.coefficients`, the steps in :mod:`orthoopt.iteration`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from orthoopt.coefficients import Triple, resolve_coefficients
from orthoopt.iteration import iterate
from orthoopt.iteration_form import FormName, choose_form
from orthoopt.kernels import symmetric_share
from orthoopt.start import normalize

__all__ = ["NS_DTYPES", "iteration_dtype", "newton_schulz", "normalize"]

NS_DTYPES: dict[str, torch.dtype | None] = {
    "auto": None,
    "float32": torch.float32,
    "float64": torch.float64,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


@torch.no_grad()
def newton_schulz(
    x: Tensor,
    steps: int,
    coefficients: str | Triple | Sequence[Triple],
    dtype: torch.dtype | None = None,
    form: FormName | None = None,
) -> Tensor:
    """The polar factor of each matrix to the accuracy of the coefficients, in the dtype of the iteration.

    Args:
        x: ``(..., rows, cols)``; never written.
        steps: iterations.
        coefficients: a table's name, one triple (a, b, c), or several of which the last repeats.
        dtype: of the iteration; None chooses by device, see :func:`iteration_dtype`.
        form: ``"standard"`` or ``"gram"``; None takes the cheaper, see
            :func:`orthoopt.iteration_form.choose_form`.
    """
    table = resolve_coefficients(coefficients, steps)
    dtype = dtype or iteration_dtype(x)
    rows, cols = x.shape[-2:]
    share = symmetric_share(min(rows, cols), x.device, dtype)
    chosen = choose_form(rows, cols, table, dtype, x.device.type, share, form)
    return iterate(x, table, chosen, dtype)


def iteration_dtype(x: Tensor) -> torch.dtype:
    """The dtype in which products of matrices like ``x`` are fast and good enough on the device of ``x``.

    CPUs without bfloat16 units emulate it at a small fraction of the float32 rate, so CPUs iterate in float32.
    """
    if x.dtype == torch.float64:
        return torch.float64
    if x.device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.bfloat16
    return torch.float32
