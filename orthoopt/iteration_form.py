"""Which form of the Newton-Schulz iteration is cheapest for a shape, and where rounding asks for a restart.

Both forms compute the same polynomials. In standard form every step multiplies the long side twice. In Gram form the
steps multiply square matrices alone, R = X Xᵀ and a product Q of polynomials in R, and the long side enters twice
between two restarts.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Literal, NamedTuple, TypeAlias

import torch

from orthoopt.coefficients import Table, Triple, names, resolve_coefficients

FormName: TypeAlias = Literal["standard", "gram"]

SAFETY = 1.05
"""In float16 rounding lifts singular values this far above one; a table must be bounded there."""

MIN_GRAM_SIDE = {"cpu": 64, "cuda": 256}
"""Shorter sides take the standard form, which has fewer products: there each costs a call and not its arithmetic."""

_DRIFT = 0.1
_GROWTH = 50.0
_RESTART_COST = 1.15
_CUDA_ASPECT = 1.5


class Form(NamedTuple):
    """How one matrix is iterated."""

    name: FormName
    restarts: tuple[int, ...]
    """The steps, counted from 0, before which the Gram form starts anew."""
    flops: int
    """Of its matrix products, for one matrix, a multiply-add being two."""
    why: str
    """The reason for the choice, a sentence."""


@functools.lru_cache(maxsize=4096)
def choose_form(
    rows: int,
    cols: int,
    table: Table,
    dtype: torch.dtype,
    device: str,
    symmetric_share: float = 1.0,
    forced: FormName | None = None,
) -> Form:
    """The form for matrices of this shape.

    Args:
        rows: of a matrix.
        cols: of a matrix.
        table: the coefficients, one row a step.
        dtype: of the iteration.
        device: its type, such as ``"cpu"``.
        symmetric_share: what a symmetric product costs, of a full one.
        forced: the form that was asked for.

    Raises:
        ValueError: ``forced`` is not a form, or not safe in this dtype with this table.
    """
    m, n = sorted((rows, cols))
    standard = standard_flops(m, n, table.rows, symmetric_share)
    if forced == "standard":
        return Form("standard", (), standard, "asked for")
    if forced == "gram":
        check_dtype(table, table.rows, dtype)
        return gram_form(m, n, table, dtype, symmetric_share)
    if forced is not None:
        raise ValueError(f"form={forced!r} must be 'standard' or 'gram'")
    refused = _why_not_gram(m, n, table, dtype, device)
    if refused:
        return Form("standard", (), standard, refused)
    gram = gram_form(m, n, table, dtype, symmetric_share)
    if gram.flops >= standard:
        why = f"{_giga(standard)} in standard form, {_giga(gram.flops)} in Gram form"
        return Form("standard", (), standard, why)
    return gram._replace(why=f"{_giga(gram.flops)} in Gram form, {_giga(standard)} in standard form; {gram.why}")


@functools.lru_cache(maxsize=4096)
def gram_form(rows: int, cols: int, table: Table, dtype: torch.dtype, symmetric_share: float = 1.0) -> Form:
    """The Gram form with its restarts, whether it is the cheapest or not.

    float16 needs them, or it explodes. In float32 they keep Q, and with it what rounding leaves in directions that are
    nearly null, near what the standard form has; where the long side makes them dear they are left out.
    """
    m, n = sorted((rows, cols))
    needed = default_restarts(table.rows, dtype)
    cost = gram_flops(m, n, table.rows, needed, symmetric_share)
    if torch.finfo(dtype).eps < 1e-10:
        return Form("gram", needed, cost, "float64 rounds too little to need a restart" if not needed else "it drifts")
    careful = accurate_restarts(table.rows)
    careful_cost = gram_flops(m, n, table.rows, careful, symmetric_share)
    if dtype == torch.float16 or len(needed) >= len(careful):
        return Form("gram", needed, cost, f"{dtype} drifts without its restarts")
    if careful_cost <= _RESTART_COST * cost:
        return Form("gram", careful, careful_cost, "restarts keep nearly null directions accurate")
    return Form("gram", needed, cost, f"restarts for accuracy would cost {careful_cost / cost - 1:.0%} more")


def standard_flops(rows: int, cols: int, steps: Sequence[Triple], symmetric_share: float = 1.0) -> int:
    """Of the products of one matrix, rows ≤ cols; a step without a fifth power has no square of R."""
    squares = sum(1 for _, _, c in steps if c != 0)
    long, short = 2 * rows * rows * cols, 2 * rows**3
    return round(len(steps) * long * (1 + symmetric_share) + squares * short * symmetric_share)


def gram_flops(
    rows: int, cols: int, steps: Sequence[Triple], restarts: Sequence[int], symmetric_share: float = 1.0
) -> int:
    """The same for the Gram form."""
    long, short = 2 * rows * rows * cols, 2 * rows**3
    edges = (0, *restarts, len(steps))
    squares = sum(1 for _, _, c in steps if c != 0)
    # A segment of k steps moves R k - 1 times, by two products each, and Q as often, the first being free.
    moves = sum(high - low - 1 for low, high in zip(edges, edges[1:], strict=False))
    symmetric = (len(edges) - 1) * long + (squares + 2 * moves) * short
    return round(symmetric * symmetric_share + (len(edges) - 1) * long + moves * short)


def default_restarts(rows: Sequence[Triple], dtype: torch.dtype) -> tuple[int, ...]:
    """The steps before which rounding demands a restart.

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


def accurate_restarts(rows: Sequence[Triple]) -> tuple[int, ...]:
    """The steps before which a restart keeps ‖Q‖ below fifty.

    In nearly null directions Q is Πa. Its rounding is that many times eps of the whole matrix, not of those directions
    alone: 1e-4 for the 990 of five steps of Polar Express, against 4e-6 in standard form, whose steps round relative to
    X. Two segments of 33 and 30 bring it to 1e-5.
    """
    found = []
    growth = 1.0
    for step, (a, _, _) in enumerate(rows):
        if growth * abs(a) > _GROWTH and step:
            found.append(step)
            growth = 1.0
        growth *= abs(a)
    return tuple(found)


def check_dtype(table: Table, coefficients: object, dtype: torch.dtype | None) -> None:
    """Raise ValueError for a dtype in which the Gram form of this table is not safe."""
    if dtype == torch.bfloat16:
        raise ValueError(
            "method='gram' does not run in bfloat16: rounding gives the Gram matrix negative eigenvalues that explode; "
            "use float16, float32 or float64, or method='newton_schulz'"
        )
    if dtype == torch.float16 and not is_bounded(table):
        raise ValueError(
            f"method='gram' in float16 needs coefficients bounded on [0, {SAFETY}], and {coefficients!r} are not; "
            f"these are: {', '.join(_bounded_tables())}"
        )


@functools.lru_cache(maxsize=256)
def is_bounded(table: Table) -> bool:
    """Whether singular values up to :data:`SAFETY` stay within [0, 1.35] through all steps."""
    sigma = torch.linspace(0, SAFETY / table.kappa, 10_001, dtype=torch.float64, device="cpu")
    for a, b, c in table.rows:
        sigma = a * sigma + b * sigma**3 + c * sigma**5
        # A step may overshoot what the next one brings back, but not change a sign.
        if sigma.min() < 0:
            return False
    return bool(sigma.max() <= 1.35)


def _why_not_gram(rows: int, cols: int, table: Table, dtype: torch.dtype, device: str) -> str:
    """Empty where the Gram form may run."""
    if dtype == torch.bfloat16:
        return "the Gram form explodes in bfloat16"
    if device == "cpu":
        if rows < MIN_GRAM_SIDE["cpu"]:
            return f"below a side of {MIN_GRAM_SIDE['cpu']} calls cost more than products, and this form has fewer"
        return "the Gram form is not safe in float16 for this table" if _explodes(table, dtype) else ""
    if dtype != torch.float16:
        return f"on {device} the Gram form has been fitted to float16 alone"
    if rows < MIN_GRAM_SIDE["cuda"] or cols < _CUDA_ASPECT * rows:
        return f"on {device} the Gram form pays from a side of {MIN_GRAM_SIDE['cuda']} and an aspect of {_CUDA_ASPECT}"
    return "the Gram form is not safe in float16 for this table" if _explodes(table, dtype) else ""


def _explodes(table: Table, dtype: torch.dtype) -> bool:
    return dtype == torch.float16 and not is_bounded(table)


@functools.cache
def _bounded_tables() -> list[str]:
    tables = {name: resolve_coefficients(name, 4 if name == "aol4" else 5) for name in names()}
    return [name for name, table in tables.items() if is_bounded(table)]


def _giga(flops: int) -> str:
    return f"{flops / 1e9:.3g} GFLOP"
