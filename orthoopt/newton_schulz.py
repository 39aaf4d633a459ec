"""Newton-Schulz iteration: the polar factor of a batch of matrices by matrix products alone.

With X₀ = X/(κ‖X‖_F), each step maps every singular value σ to aσ + bσ³ + cσ⁵ and leaves the singular vectors as
they are, so after a few steps the singular values lie near one: X ≈ U Vᵀ. The coefficient tables are in
:mod:`orthoopt.coefficients`, the steps in :mod:`orthoopt.iteration`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from orthoopt import iteration
from orthoopt.coefficients import Table, Triple, resolve_coefficients
from orthoopt.iteration import iterate
from orthoopt.iteration_form import Form, FormName, choose_form, default_restarts, is_bounded
from orthoopt.kernels import symmetric_share
from orthoopt.kernels.triton_gram import small_gram
from orthoopt.kernels.triton_support import INTERPRETED
from orthoopt.start import normalize

__all__ = ["NS_DTYPES", "iteration_dtype", "newton_schulz", "normalize"]

SMALL_SIDE = 128
"""Up to this shorter side one kernel may take a whole iteration on a GPU."""

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
    rows, cols = x.shape[-2:]
    if dtype is None and form is None:
        on_chip = _on_chip(x, table)
        if on_chip is not None:
            return on_chip
        dtype = preferred_dtype(rows, cols, table, iteration_dtype(x), x.device.type)
    dtype = dtype or iteration_dtype(x)
    return iterate(x, table, form_of(rows, cols, table, dtype, x.device, form), dtype)


def form_of(
    rows: int, cols: int, table: Table, dtype: torch.dtype, device: torch.device, forced: FormName | None = None
) -> Form:
    """The form in which matrices of this shape are iterated, and why; see :func:`choose_form`."""
    share = symmetric_share(min(rows, cols), device, dtype)
    return choose_form(rows, cols, table, dtype, device.type, share, forced)


def bytes_needed(
    batch: int,
    rows: int,
    cols: int,
    steps: int,
    coefficients: str | Triple | Sequence[Triple],
    dtype: torch.dtype | None,
    given: torch.dtype,
    device: torch.device,
) -> int:
    """What :func:`newton_schulz` holds beside its input at most, its result included.

    Args:
        batch: matrices in the call.
        rows: of a matrix.
        cols: of a matrix.
        steps: as there.
        coefficients: as there.
        dtype: as there.
        given: dtype of the input.
        device: of the input.
    """
    table = resolve_coefficients(coefficients, steps)
    like = torch.empty(0, dtype=given, device=device)
    chosen = dtype or preferred_dtype(rows, cols, table, iteration_dtype(like), device.type)
    form = form_of(rows, cols, table, chosen, device)
    return iteration.bytes_needed(batch, rows, cols, form.name, chosen, len(form.restarts), device.type)


def preferred_dtype(rows: int, cols: int, table: Table, dtype: torch.dtype, device: str) -> torch.dtype:
    """What matrices of this shape iterate in where bfloat16 is fast: float16 where that allows the cheaper Gram form.

    Its rounding is an eighth of bfloat16's, which the Gram form needs, and which makes it no less accurate than the
    standard form in bfloat16.

    Args:
        rows: of a matrix.
        cols: of a matrix.
        table: the coefficients.
        dtype: from :func:`iteration_dtype`.
        device: its type.
    """
    if dtype == torch.bfloat16 and choose_form(rows, cols, table, torch.float16, device).name == "gram":
        return torch.float16
    return dtype


def signal_dtype(
    rows: int,
    cols: int,
    steps: int,
    coefficients: str | Triple | Sequence[Triple],
    dtype: torch.dtype | None,
    device: torch.device,
) -> torch.dtype | None:
    """bfloat16 where :func:`newton_schulz` of float32 matrices begins by rounding to it, else None.

    float16 needs a scale first, which is not known while the matrices are written; sides that one kernel takes whole
    do not iterate in bfloat16.
    """
    if device.type != "cuda" or (dtype is None and min(rows, cols) <= SMALL_SIDE):
        return None
    table = resolve_coefficients(coefficients, steps)
    like = torch.empty(0, device=device)
    chosen = dtype or preferred_dtype(rows, cols, table, iteration_dtype(like), device.type)
    return chosen if chosen == torch.bfloat16 else None


def _on_chip(x: Tensor, table: Table) -> Tensor | None:
    """The result by one kernel for small sides on GPUs, where there is one that takes these matrices."""
    if x.device.type != ("cpu" if INTERPRETED else "cuda"):
        return None
    dtype = torch.float16 if is_bounded(table) and x.dtype != torch.float64 else torch.float32
    restarts = default_restarts(table.rows, dtype)
    return small_gram(x, table.rows, kappa=table.kappa, start=table.start, dtype=dtype, restarts=restarts)


def iteration_dtype(x: Tensor) -> torch.dtype:
    """The dtype in which products of matrices like ``x`` are fast and good enough on the device of ``x``.

    CPUs without bfloat16 units emulate it at a small fraction of the float32 rate, so CPUs iterate in float32.
    """
    if x.dtype == torch.float64:
        return torch.float64
    if x.device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.bfloat16
    return torch.float32
