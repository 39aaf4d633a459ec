"""Dion2: the polar factor of the momentum's largest rows or columns, with no basis at all.

What :mod:`orthoopt.rules.trion` is in the identity basis, chosen by sums of magnitudes. Source: arXiv 2512.16928;
microsoft/dion, ``dion2.py``.
"""

from typing import Literal

from torch import Tensor

from orthoopt.rules._base import State
from orthoopt.rules._columns import is_right
from orthoopt.rules.trion import trion_advance, trion_rule


def dion2_advance(
    grad: Tensor,
    state: State,
    *,
    momentum: float = 0.95,
    rank: int | float = 0.25,
    selection: Literal["l2", "l1"] = "l1",
    side: Literal["auto", "left", "right"] = "auto",
    ns_steps: int = 5,
    ns_coefficients: str | tuple[float, float, float] | tuple[tuple[float, float, float], ...] = "polar_express",
    ns_dtype: Literal["auto", "float32", "float64", "bfloat16", "float16"] = "auto",
) -> tuple[Tensor, State]:
    """Polar factor of the momentum's largest rows or columns (Dion2).

    M ← M + G;  idx = top-r of ‖M_j‖;  U[idx] = NS(M[idx]), zero elsewhere;  M[idx] ← μ·M[idx].

    Args:
        grad: G, ``(..., rows, cols)``, leading dimensions a batch.
        state: ``momentum_buffer``, M, ``(..., rows, cols)``.
        momentum: μ, the share of the used rows that stays in the momentum.
        rank: r, rows kept: a whole number, or a fraction of the side's length, rounded up. 1 is one, 1.0 is all.
        selection: the norm by which they are chosen.
        side: choose rows (``left``) or columns (``right``); ``auto``: of the shorter side, rows if square.
        ns_steps: Newton-Schulz iterations.
        ns_coefficients: a table of :mod:`orthoopt.coefficients`, one (a, b, c), or several.
        ns_dtype: dtype of the iteration; ``auto`` chooses by device.

    Returns:
        The update, ``(..., rows, cols)``, and the new ``momentum_buffer``.
    """
    return trion_advance(
        grad,
        state,
        momentum=momentum,
        rank=rank,
        selection=selection,
        basis="identity",
        side="right" if is_right(side, grad.shape[-2], grad.shape[-1], square="left") else "left",
        ns_steps=ns_steps,
        ns_coefficients=ns_coefficients,
        ns_dtype=ns_dtype,
    )


dion2 = trion_rule("dion2", dion2_advance, basis="identity", square="left")
