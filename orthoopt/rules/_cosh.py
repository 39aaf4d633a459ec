"""The cosh factor of AuON (arXiv 2509.24320, section 3.1), as published."""

from torch import Tensor

from orthoopt.newton_schulz import normalize


def mean_cosh_squared(z: Tensor) -> Tensor:
    """Mean of cosh² over the entries of each matrix.

    Args:
        z: ``(..., rows, cols)``.

    Returns:
        ``(..., 1, 1)``, at least 1.
    """
    return z.cosh().square_().mean((-2, -1), keepdim=True)


def cosh_brake(x: Tensor, gain: float) -> Tensor:
    """r = √mean cosh²(γ·X/‖X‖_F), the factor that AuON divides by.

    Since Σz² = γ² whatever X is, and sinh² grows faster than its argument's square, r² = 1 + mean sinh²z lies within
    [1 + γ²/N, 1 + sinh²γ/N] for N entries: one, but for O(1/N). A single huge entry attains the upper bound and no
    more, for the norm is divided out before the cosh is taken.

    Args:
        x: ``(..., rows, cols)``.
        gain: γ of the paper.

    Returns:
        ``(..., 1, 1)`` in float32 or wider.
    """
    return mean_cosh_squared(normalize(x).mul_(gain)).sqrt_()
