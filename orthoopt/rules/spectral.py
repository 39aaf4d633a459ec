"""Spectral rule (Muon): the polar factor of the momentum, by Newton-Schulz iteration.

Steepest descent in the spectral norm: the update has the singular vectors of the momentum and singular values near
one. Source: KellerJordan/Muon; the default scale and weight decay follow Moonlight (arXiv 2502.16982).
"""

import math
from typing import Literal

from torch import Tensor

from orthoopt.coefficients import resolve_coefficients
from orthoopt.newton_schulz import NS_DTYPES, newton_schulz
from orthoopt.rules._base import Equivariance, Options, momentum_rule, register


def spectral_direction(
    momentum: Tensor,
    *,
    ns_steps: int = 5,
    ns_coefficients: str | tuple[float, float, float] | tuple[tuple[float, float, float], ...] = "muon",
    ns_dtype: Literal["auto", "float32", "float64", "bfloat16", "float16"] = "auto",
) -> Tensor:
    """Polar factor of the momentum (Muon).

    Args:
        momentum: ``(..., rows, cols)``, leading dimensions a batch.
        ns_steps: Newton-Schulz iterations.
        ns_coefficients: a table of :mod:`orthoopt.coefficients`, one (a, b, c), or several.
        ns_dtype: dtype of the iteration; ``auto`` chooses by device.

    Returns:
        The update, ``(..., rows, cols)``, in the dtype of the iteration.
    """
    return newton_schulz(momentum, ns_steps, ns_coefficients, NS_DTYPES[ns_dtype])


def _rms(rows: int, cols: int, options: Options) -> float:
    return 1 / math.sqrt(max(rows, cols))


def _check(options: Options) -> None:
    resolve_coefficients(options["ns_coefficients"], options["ns_steps"])


def _equivariance(options: Options) -> Equivariance:
    if options["ns_coefficients"] == "aol4":
        # Rescaling rows by sums of magnitudes of the Gram matrix is tied to the coordinates of the shorter side.
        return Equivariance("signed_permutation", "signed_permutation")
    return Equivariance("orthogonal", "orthogonal")


spectral = register(
    momentum_rule("spectral", spectral_direction, rms=_rms, equivariance=_equivariance, transposable=True, check=_check)
)
