"""Gram form of the Newton-Schulz iteration: the same polynomials, on products of the shorter side alone.

With R = X₀X₀ᵀ and Q = I, each step computes Z = bR + cR², Q ← (aI + Z)Q, R ← (aI + Z)R(aI + Z), and the result is QX₀.
All are polynomials of one symmetric matrix, so they commute and stay symmetric; the long side enters twice instead of
twice a step. A restart (X ← QX, R ← XXᵀ, Q ← I) changes nothing but rounding. Source: Dao-AILab/gram-newton-schulz;
arXiv 2608.11612.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from orthoopt.coefficients import Table, Triple, names, resolve_coefficients
from orthoopt.kernels import axpy_matmul, gram, gram_polynomial
from orthoopt.newton_schulz import iteration_dtype, start

SAFETY = 1.05
"""In float16 rounding lifts singular values this far above one; a table must be bounded there."""

_DRIFT = 0.1


def gram_newton_schulz(
    x: Tensor,
    steps: int,
    coefficients: str | Triple | Sequence[Triple],
    dtype: torch.dtype | None = None,
    restarts: Iterable[int] | None = None,
) -> Tensor:
    """:func:`orthoopt.newton_schulz.newton_schulz` in Gram form; pays for matrices at least twice as long as wide.

    Args:
        x: ``(..., rows, cols)``; never written.
        steps: iterations.
        coefficients: a table's name, one triple (a, b, c), or several of which the last repeats.
        dtype: of the iteration. None: as for the standard form, except that bfloat16 is replaced by float16, or by
            float32 where the table is not bounded up to :data:`SAFETY`.
        restarts: steps, counted from 0, before which to restart; None places them by :func:`default_restarts`.

    Raises:
        ValueError: bfloat16, or float16 with an unbounded table; or a restart that is not one of the steps 1, 2, ...
    """
    table = resolve_coefficients(coefficients, steps)
    check_dtype(table, coefficients, dtype)
    chosen = dtype or gram_dtype(x, table)
    breaks = set(default_restarts(table.rows, chosen) if restarts is None else restarts)
    if not breaks <= set(range(1, steps)):
        raise ValueError(f"restarts={sorted(breaks)!r} must be among the steps 1 to {steps - 1}")
    tall = x.shape[-2] > x.shape[-1]
    x, products = start(x.mT if tall else x, table, chosen)
    product: Tensor | None = None  # Q; None for the identity
    for step, (a, b, c) in enumerate(table.rows):
        z = gram_polynomial(products, b, c)
        ends = step + 1 == steps or step + 1 in breaks
        if product is not None:
            product = axpy_matmul(product, z, a)
        elif not ends:
            # The only place where aI is added rather than multiplied into a product's epilogue: there is no product.
            product = z.diagonal_scatter(z.diagonal(dim1=-2, dim2=-1) + a, dim1=-2, dim2=-1)
        if not ends:
            products = axpy_matmul(axpy_matmul(products, z, a), z, a)
            continue
        x = axpy_matmul(x, z, a) if product is None else product @ x
        if step + 1 < steps:
            products, product = gram(x), None
    return x.mT if tall else x


def default_restarts(rows: Sequence[Triple], dtype: torch.dtype) -> tuple[int, ...]:
    """The steps before which rounding asks for a restart.

    Rounding gives the Gram matrix eigenvalues down to −δ where it should have zeros. Each step multiplies them by a²,
    and beyond about −1 they explode; so R is made anew before δ·Πa² exceeds a tenth. δ is 4e-4 in float16 (arXiv
    2608.11612) and four roundings otherwise: for five-step tables float16 restarts before step 2 (Polar Express) or 3
    (``muon``), float32 and float64 not at all.
    """
    spurious = 4e-4 if dtype == torch.float16 else 4 * torch.finfo(dtype).eps
    found = []
    growth = 1.0
    for step, (a, _, _) in enumerate(rows[:-1], start=1):
        growth *= a * a
        if spurious * growth > _DRIFT:
            found.append(step)
            growth = 1.0
    return tuple(found)


def gram_dtype(x: Tensor, table: Table) -> torch.dtype:
    """The dtype of the iteration where none is asked for; never bfloat16, in which the Gram form blows up."""
    chosen = iteration_dtype(x)
    if chosen != torch.bfloat16:
        return chosen
    return torch.float16 if _is_bounded(table.rows, table.kappa) else torch.float32


def check_dtype(table: Table, coefficients: object, dtype: torch.dtype | None) -> None:
    """Raise ValueError for a dtype in which the Gram form of this table is not safe."""
    if dtype == torch.bfloat16:
        raise ValueError(
            "method='gram' does not run in bfloat16: rounding gives the Gram matrix negative eigenvalues that explode; "
            "use float16, float32 or float64, or method='newton_schulz'"
        )
    if dtype == torch.float16 and not _is_bounded(table.rows, table.kappa):
        raise ValueError(
            f"method='gram' in float16 needs coefficients bounded on [0, {SAFETY}], and {coefficients!r} are not; "
            f"these are: {', '.join(_bounded_tables())}"
        )


@functools.cache
def _bounded_tables() -> list[str]:
    tables = {name: resolve_coefficients(name, 4 if name == "aol4" else 5) for name in names()}
    return [name for name, table in tables.items() if _is_bounded(table.rows, table.kappa)]


@functools.lru_cache(maxsize=256)
def _is_bounded(rows: tuple[Triple, ...], kappa: float) -> bool:
    """Whether singular values up to :data:`SAFETY` stay within [0, 1.35] through all steps."""
    sigma = torch.linspace(0, SAFETY / kappa, 10_001, dtype=torch.float64)
    for a, b, c in rows:
        sigma = a * sigma + b * sigma**3 + c * sigma**5
        # A step may overshoot what the next one brings back, but not change a sign.
        if sigma.min() < 0:
            return False
    return bool(sigma.max() <= 1.35)
