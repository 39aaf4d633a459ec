"""The cosh factor of AuON (arXiv 2509.24320, section 3.1), as published."""

from torch import Tensor


def mean_cosh_squared(z: Tensor) -> Tensor:
    """Mean of cosh² over the entries of each matrix.

    Args:
        z: ``(..., rows, cols)``.

    Returns:
        ``(..., 1, 1)``, at least 1.
    """
    return z.cosh().square_().mean((-2, -1), keepdim=True)


def cosh_brake(x: Tensor, gain: float) -> Tensor:
    """r = √mean cosh²(γ·X), ‖X‖_F = 1: the factor that AuON divides by.

    With z = γ·X, Σz² = γ² whatever X is, and r² = 1 + mean sinh²z. Since sinh²√u ≥ u is convex and 0 at 0, for N
    entries r² lies within [1 + γ²/N, 1 + sinh²γ/N]: one, but for O(1/N). A single huge entry attains the upper bound
    and no more, for the norm is divided out before the cosh is taken.

    Args:
        x: ``(..., rows, cols)``, Frobenius norm one or zero, see :func:`orthoopt.newton_schulz.normalize`.
        gain: γ of the paper.

    Returns:
        ``(..., 1, 1)``, at least 1.
    """
    return mean_cosh_squared(gain * x).sqrt_()
