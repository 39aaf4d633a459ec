"""HybridAuON rule: Newton-Schulz steps on the momentum, then AuON's cosh factor.

The factor is one to O(1/N), so the variants are what their iterations are: five steps make Muon, one step makes
the momentum divided by its Frobenius norm, nearly. Source: AuON, arXiv 2509.24320 (September 2025 text), sections 3.1
and 3.2; ryyzn9/AuON.
"""

import functools
import math
from typing import Literal

import torch
from torch import Tensor

from orthoopt.coefficients import resolve_coefficients
from orthoopt.newton_schulz import NS_DTYPES, newton_schulz, normalize
from orthoopt.rules._base import Equivariance, Options, register
from orthoopt.rules._cosh import cosh_brake, mean_cosh_squared
from orthoopt.rules._momentum import momentum_rule
from orthoopt.rules._options import hashable
from orthoopt.rules.auon import REPOSITORY_GAIN

STEPS = {"repository": 5, "paper": 1}


def hybrid_auon_direction(
    momentum: Tensor,
    *,
    variant: Literal["repository", "paper"] = "repository",
    ns_steps: int | None = None,
    ns_coefficients: str | tuple[float, float, float] | tuple[tuple[float, float, float], ...] = "muon",
    ns_dtype: Literal["auto", "float32", "float64", "bfloat16", "float16"] = "auto",
) -> Tensor:
    """Newton-Schulz steps on the momentum, then a cosh factor near one (HybridAuON).

    Args:
        momentum: ``(..., rows, cols)``, leading dimensions a batch.
        variant: ``repository``: X / √mean cosh²(1.5·X/‖X‖_F). ``paper``: X / mean cosh²X, no root and no
            renormalization. X is the iteration's result.
        ns_steps: Newton-Schulz iterations; None takes the variant's own, five for ``repository``, one for ``paper``.
        ns_coefficients: a table of :mod:`orthoopt.coefficients`, one (a, b, c), or several.
        ns_dtype: dtype of the iteration; ``auto`` chooses by device.

    Returns:
        The update, ``(..., rows, cols)``, in float32 or wider; zero matrices give zeros.
    """
    if momentum.shape[-2] > momentum.shape[-1]:
        wide = hybrid_auon_direction(
            momentum.mT, variant=variant, ns_steps=ns_steps, ns_coefficients=ns_coefficients, ns_dtype=ns_dtype
        )
        return wide.mT
    x = newton_schulz(momentum, _steps(variant, ns_steps), ns_coefficients, NS_DTYPES[ns_dtype])
    x = x.to(torch.promote_types(x.dtype, torch.float32))  # cosh of small bfloat16 numbers is 1
    return x / (cosh_brake(normalize(x), REPOSITORY_GAIN) if variant == "repository" else mean_cosh_squared(x))


def _steps(variant: str, ns_steps: int | None) -> int:
    return STEPS[variant] if ns_steps is None else ns_steps


def _rms(rows: int, cols: int, options: Options) -> float:
    """That of a polar factor, as Muon's; for the paper's variant, whose one step leaves it far from one, computed."""
    if options["variant"] == "repository":
        return 1 / math.sqrt(max(rows, cols))
    steps = _steps(options["variant"], options["ns_steps"])
    rms = iterated_gaussian_rms(rows, cols, steps, hashable(options["ns_coefficients"]))
    return rms / ((1 + math.exp(2 * rms * rms)) / 2)  # E cosh²x of a normal x


@functools.lru_cache(maxsize=1024)
def iterated_gaussian_rms(
    rows: int,
    cols: int,
    steps: int,
    coefficients: str | tuple[float, float, float] | tuple[tuple[float, float, float], ...],
) -> float:
    """Root mean square of Newton-Schulz steps on a matrix of normal entries.

    Its squared singular values follow Marchenko and Pastur's law, whose density on λ = 1 + y + 2√y·cos θ, with y the
    ratio of the sides, is (2/π)·sin²θ/λ in θ.
    """
    table = resolve_coefficients(coefficients, steps)
    short, long = sorted((rows, cols))
    y, nodes, total = short / long, 64, 0.0
    for i in range(nodes):
        theta = math.pi * (i + 0.5) / nodes
        eigenvalue = 1 + y + 2 * math.sqrt(y) * math.cos(theta)
        sigma = math.sqrt(eigenvalue / short) / table.kappa
        for a, b, c in table.rows:
            sigma = a * sigma + b * sigma**3 + c * sigma**5
        total += 2 / nodes * math.sin(theta) ** 2 / eigenvalue * sigma**2
    return math.sqrt(total / long)


def _check(options: Options) -> None:
    resolve_coefficients(options["ns_coefficients"], _steps(options["variant"], options["ns_steps"]))


hybrid_auon = register(
    momentum_rule(
        "hybrid_auon",
        hybrid_auon_direction,
        rms=_rms,
        # Rotations hold too, but for the O(1/N) of the cosh factor; tests/test_auon.py has the bound.
        equivariance=Equivariance("signed_permutation", "signed_permutation"),
        transposable=True,
        check=_check,
    )
)
