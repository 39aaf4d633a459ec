"""Gram form of the Newton-Schulz iteration, asked for: the same polynomials, on products of the shorter side alone.

With R = X₀X₀ᵀ and Q = I, each step computes Z = bR + cR², Q ← (aI + Z)Q, R ← (aI + Z)R(aI + Z), and the result is QX₀.
All are polynomials of one symmetric matrix, so they commute and stay symmetric; the long side enters twice instead of
twice a step. A restart (X ← QX, R ← XXᵀ, Q ← I) changes nothing but rounding. Source: Dao-AILab/gram-newton-schulz;
arXiv 2608.11612. The steps are in :mod:`orthoopt.iteration`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from orthoopt.coefficients import Table, Triple, resolve_coefficients
from orthoopt.iteration import iterate
from orthoopt.iteration_form import check_dtype, gram_form, is_bounded
from orthoopt.kernels import symmetric_share
from orthoopt.newton_schulz import iteration_dtype


@torch.no_grad()
def gram_newton_schulz(
    x: Tensor,
    steps: int,
    coefficients: str | Triple | Sequence[Triple],
    dtype: torch.dtype | None = None,
    restarts: Iterable[int] | None = None,
) -> Tensor:
    """:func:`orthoopt.newton_schulz.newton_schulz` in Gram form, whatever the shape.

    Args:
        x: ``(..., rows, cols)``; never written.
        steps: iterations.
        coefficients: a table's name, one triple (a, b, c), or several of which the last repeats.
        dtype: of the iteration. None: as for the standard form, except that bfloat16 is replaced by float16, or by
            float32 where the table is not bounded up to :data:`orthoopt.iteration_form.SAFETY`.
        restarts: steps, counted from 0, before which to restart; None places them by
            :func:`orthoopt.iteration_form.gram_form`.

    Raises:
        ValueError: bfloat16, or float16 with an unbounded table; or a restart that is not one of the steps 1, 2, ...
    """
    table = resolve_coefficients(coefficients, steps)
    check_dtype(table, coefficients, dtype)
    chosen = dtype or gram_dtype(x, table)
    rows, cols = x.shape[-2:]
    form = gram_form(rows, cols, table, chosen, symmetric_share(min(rows, cols), x.device, chosen))
    if restarts is not None:
        form = form._replace(restarts=tuple(sorted(set(restarts))))
    if not set(form.restarts) <= set(range(1, steps)):
        raise ValueError(f"restarts={list(form.restarts)!r} must be among the steps 1 to {steps - 1}")
    return iterate(x, table, form, chosen)


def gram_dtype(x: Tensor, table: Table) -> torch.dtype:
    """The dtype of the iteration where none is asked for; never bfloat16, in which the Gram form blows up."""
    chosen = iteration_dtype(x)
    if chosen != torch.bfloat16:
        return chosen
    return torch.float16 if is_bounded(table) else torch.float32
