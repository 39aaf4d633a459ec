"""Fit a triple of Newton-Schulz coefficients to the singular values of one matrix shape (ROOT's AdaNewton).

The authors' code has four triples and not how they were made. Here: the mean of (f^K(σ) − 1)² over the singular values
of clipped momenta and of Gaussian matrices, weighted 1 : 3, is minimised from Muon's triple, where f^K is K times
f(x) = ax + bx³ + cx⁵. The constraints of :mod:`orthoopt.invariance` keep every number of steps bounded. A mean can fall
while some matrices get worse, and momenta of a longer training have heavier tails than those at hand; so a triple must
besides do no worse than Muon's on the momenta alone, on the Gaussian matrices alone, and on power laws σᵢ ∝ i^−α.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from orthoopt.adanewton import Shape
from orthoopt.coefficients import TABLES, Triple
from orthoopt.invariance import CLEARANCE, LARGEST, Bounds, bounds
from orthoopt.rules.root import clip, entry_quantile

Spectra: TypeAlias = Sequence[Tensor]
"""One vector of singular values a matrix, float64, of Frobenius norm 1."""

MUON: Triple = TABLES["muon"].rows[0]
REAL_SHARE = 0.25
"""Weight of momenta beside Gaussian matrices; arXiv 2511.20626 as summarised by others, whose accounts differ."""
TAILS = (0.5, 0.75, 1.0)
"""Exponents α of the power laws on which a triple must do no worse than Muon's."""

_STARTS: tuple[Triple, ...] = (MUON, *(TABLES[name].rows[0] for name in ("root_2048x3072", "root_2048x16384")))
_STARTS += (TABLES["quintic"].rows[3],)
_MARGIN = 1e-3  # of the bounds while fitting, so that the result keeps them
_LEAST_SLOPE = 0.05
_PRICE = 100.0  # of a violated constraint; an exact penalty for violations of this size
_GRID = 20001


@dataclass(frozen=True)
class Fit:
    """A fitted triple and how it does where it was fitted."""

    triple: Triple
    steps: int
    bounds: Bounds
    largest: float
    """The largest output for any singular value in [0, 1]."""


def clipped_spectrum(x: Tensor, quantile: float = 0.9) -> Tensor:
    """The singular values that Newton-Schulz meets when ROOT is given this momentum, largest first, float64.

    From the Gram matrix in float64: values below 1e-8 of the largest are rounding.

    Args:
        x: one matrix ``(rows, cols)``; a zero matrix gives zeros.
        quantile: where entries are clipped, see :mod:`orthoopt.rules.root`.
    """
    x = x.detach().double()
    x = clip(x, entry_quantile(x, quantile))
    x = x / x.abs().amax().clamp(min=torch.finfo(x.dtype).tiny)
    x = x.mT if x.shape[-2] > x.shape[-1] else x
    squares = torch.linalg.eigvalsh(x @ x.mT).clamp(min=0).flip(-1)
    return (squares / squares.sum().clamp(min=torch.finfo(x.dtype).tiny)).sqrt()


def gaussian_spectra(shape: Shape, count: int, seed: int, quantile: float = 0.9) -> list[Tensor]:
    """Spectra of Gaussian matrices of a shape, clipped as momenta are."""
    draw = torch.Generator().manual_seed(seed)
    return [clipped_spectrum(torch.randn(*shape, generator=draw), quantile) for _ in range(count)]


def power_law(count: int, exponent: float) -> Tensor:
    """σᵢ ∝ i^−α, i from 1 to ``count``, of Frobenius norm 1."""
    values = torch.arange(1, count + 1, dtype=torch.float64) ** -exponent
    return values / values.norm()


def outputs(triple: Triple, sigma: Tensor, steps: int) -> Tensor:
    """f^K(σ): the singular values after so many steps."""
    a, b, c = triple
    for _ in range(steps):
        square = sigma * sigma
        sigma = sigma * (a + square * (b + c * square))
    return sigma


def polar_error(triple: Triple, spectra: Spectra, steps: int) -> float:
    """The mean over matrices of the root mean square of σ − 1 over the singular values of the update."""
    return float(_mean_squares(triple, torch.stack(tuple(spectra)), steps).sqrt().mean())


def largest_output(triple: Triple, steps: int) -> float:
    """The largest singular value that can come out, over inputs from 0 to 1."""
    return float(outputs(triple, torch.linspace(0, 1, _GRID, dtype=torch.float64), steps).max())


def fit(real: Spectra, random: Spectra, steps: int, real_share: float = REAL_SHARE) -> Fit:
    """Fit a triple for one shape and number of steps.

    Args:
        real: spectra of clipped momenta; empty: random matrices alone.
        random: spectra of clipped Gaussian matrices of the shape, at least one.
        steps: of the iteration, K.
        real_share: weight of the momenta, in [0, 1].

    Raises:
        ModuleNotFoundError: scipy is not installed.
        ValueError: nothing to fit to, or the search found no triple within the constraints.
    """
    try:
        from scipy.optimize import minimize
    except ModuleNotFoundError as error:
        message = f"fitting coefficients needs {error.name}: pip install 'orthoopt[bench]'"
        raise ModuleNotFoundError(message, name=error.name) from None
    if not random:
        raise ValueError("fitting needs at least one spectrum of a random matrix")
    parts = [(1.0 if not real else 1 - real_share, torch.stack(list(random)))]
    parts += [(real_share, torch.stack(list(real)))] if real else []
    parts += [(0.0, power_law(len(random[0]), exponent).unsqueeze(0)) for exponent in TAILS]
    judged = [(weight, spectra, polar_error(MUON, list(spectra), steps)) for weight, spectra in parts]

    def objective(coefficients: Sequence[float]) -> float:
        triple = _triple(coefficients)
        missed = _missed(bounds(triple))
        if missed > 0.5:  # far outside the iteration overflows
            return 1e3 + missed
        loss = 0.0
        for weight, spectra, ceiling in judged:
            squares = _mean_squares(triple, spectra, steps)
            missed += max(0.0, float(squares.sqrt().mean()) - ceiling)
            loss += weight * float(squares.mean())
        return min(loss + _PRICE * missed, 1e3) if loss == loss else 1e3

    options = {"xatol": 1e-5, "fatol": 1e-9, "maxiter": 1500}
    found = [minimize(objective, start, method="Nelder-Mead", options=options) for start in _STARTS]
    best = min(found, key=lambda result: result.fun)
    # Restarted once: a simplex that shrank against a constraint has not seen what lies beside it.
    best = min(best, minimize(objective, best.x, method="Nelder-Mead", options=options), key=lambda result: result.fun)
    a, b, c = (round(value, 5) for value in _triple(best.x))
    result = bounds((a, b, c))
    if not result.hold:
        raise ValueError(f"the search ended at {(a, b, c)}, outside the constraints: {result.violations()}")
    return Fit((a, b, c), steps, result, largest_output((a, b, c), steps))


def errors(triple: Triple, spectra: Mapping[str, Spectra], steps: int) -> dict[str, float]:
    """The polar error of a triple on each kind of spectra that has any."""
    return {kind: polar_error(triple, some, steps) for kind, some in spectra.items() if some}


def _mean_squares(triple: Triple, spectra: Tensor, steps: int) -> Tensor:
    """The mean of (f^K(σ) − 1)² of each row, ``(matrices, singular values)``."""
    return (outputs(triple, spectra, steps) - 1).square().mean(-1)


def _triple(coefficients: Any) -> Triple:
    a, b, c = (float(value) for value in coefficients)
    return a, b, c


def _missed(found: Bounds) -> float:
    """By how much a triple misses its constraints, with a margin."""
    clearance = found.top - (CLEARANCE - _MARGIN) * found.repelling if found.repelling != float("inf") else 0.0
    return (
        max(0.0, found.top - (LARGEST - _MARGIN))
        + max(0.0, found.highest - found.top)
        + max(0.0, clearance)
        + max(0.0, _LEAST_SLOPE - found.least_slope)
    )
