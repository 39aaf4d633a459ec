"""AuON rule: the momentum brought to a length that bounds its spectral norm, in linear time.

The paper wants the trust region of a polar factor, ‖U‖₂ ≤ 1, without products of matrices. Its cosh factor does not
bound anything (see :mod:`orthoopt.rules._cosh`); the default here divides by a certified bound instead, and the
published forms are variants. Source: AuON, arXiv 2509.24320 (September 2025 text), sections 3.1 and 3.2;
ryyzn9/AuON auon/optimizer.py.
"""

import math
from typing import Any, Literal

from torch import Tensor

from orthoopt.kernels import Moving, auon_step
from orthoopt.newton_schulz import normalize
from orthoopt.rules._base import Equivariance, Options, Tensors, register
from orthoopt.rules._cosh import cosh_brake
from orthoopt.rules._momentum import momentum_rule
from orthoopt.scale import TARGET_RMS
from orthoopt.schur_bound import schur_bound

PAPER_GAIN = 1.0
REPOSITORY_GAIN = 1.5


def auon_direction(
    momentum: Tensor, *, variant: Literal["spectral_bound", "paper", "repository"] = "spectral_bound"
) -> Tensor:
    """Momentum divided by a bound on its spectral norm, in linear time (AuON).

    Args:
        momentum: ``(..., rows, cols)``, leading dimensions a batch.
        variant: ``spectral_bound``: X / min(b(X), ‖X‖_F) with the certified b of :mod:`orthoopt.schur_bound`, so that
            ‖U‖₂ ≤ 1 ≤ ‖U‖_F. ``paper``: X/‖X‖_F over the cosh factor, gain 1; Frobenius-normalized momentum but for
            O(1/N). ``repository``: the momentum itself over the cosh factor, gain 1.5; that is SGD, and its step is
            as long as the gradients.

    Returns:
        The update, ``(..., rows, cols)``; zero matrices give zeros.
    """
    x = normalize(momentum)
    if variant == "repository":
        return momentum / cosh_brake(x, REPOSITORY_GAIN)
    if variant == "paper":
        return x.div_(cosh_brake(x, PAPER_GAIN))
    bound = schur_bound(x).clamp_(max=1)  # ‖X‖_F = 1 bounds it too
    return x.div_(bound.where(bound > 0, 1))


def _rms(rows: int, cols: int, options: Options) -> float:
    if options["variant"] == "repository":
        # As long as the momentum, which no shape tells. Counting as AdamW's makes "match_rms_adamw" leave it alone.
        return TARGET_RMS
    if options["variant"] == "paper":
        return 1 / math.sqrt(rows * cols)
    # Sums of magnitudes of normal entries: b(X) is near √(2/π)·‖X‖_F.
    return math.sqrt(math.pi / 2 / (rows * cols))


def _fused_step(
    params: Tensors, grads: Tensors, buffers: Tensors, moving: Moving, options: Options, **terms: Any
) -> bool:
    if options["variant"] == "repository":
        return False
    return auon_step(params, grads, buffers, moving, variant=options["variant"], **terms)


auon = register(
    momentum_rule(
        "auon",
        auon_direction,
        fused_step=_fused_step,
        rms=_rms,
        # "paper" and "repository" follow every rotation of vec(X), but for the O(1/N) of the cosh factor.
        equivariance=Equivariance("signed_permutation", "signed_permutation"),
        scale_invariant=lambda options: options["variant"] != "repository",
    )
)
