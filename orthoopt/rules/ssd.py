"""Stochastic spectral descent: the polar factor of the gradient times its nuclear norm, without state.

Steepest descent in the spectral norm ‖·‖₂: U = ‖G‖_*·polar G solves

    argmin over Δ of ⟨G, Δ⟩ + ‖Δ‖₂²/(2·lr)  =  −lr·‖G‖_*·polar G,   where it is −lr·‖G‖_*²/2.

Source: Carlson, Cevher, Carin, AISTATS 2015; Carlson et al., NeurIPS 2015, without its preconditioner.
"""

import typing
from typing import Literal

from torch import Tensor

from orthoopt.kernels import STILL
from orthoopt.polar import Method, nuclear_norm
from orthoopt.rules._base import Rule, register
from orthoopt.rules._momentum import accumulate_nothing
from orthoopt.rules._options import first_line, keyword_options
from orthoopt.rules._polar import check_polar
from orthoopt.rules.polargrad import Coefficients, peak_and_polar, polar_equivariance, polar_rms


def ssd_direction(
    gradient: Tensor,
    *,
    method: Method = "auto",
    ns_steps: int = 5,
    ns_coefficients: Coefficients = "polar_express",
    ns_dtype: Literal["auto", "float32", "float64", "bfloat16", "float16"] = "auto",
) -> Tensor:
    """Polar factor of the gradient times its nuclear norm (stochastic spectral descent).

    Args:
        gradient: ``(..., rows, cols)``, leading dimensions a batch.
        method: how the polar factor is computed, see :func:`orthoopt.orthogonalize`.
        ns_steps: iterations of the iterative methods.
        ns_coefficients: table of the iterative methods.
        ns_dtype: dtype of the computation; ``auto`` chooses by device and method.

    Returns:
        The update, ``(..., rows, cols)``.
    """
    if gradient.shape[-2] > gradient.shape[-1]:
        wide = ssd_direction(
            gradient.mT, method=method, ns_steps=ns_steps, ns_coefficients=ns_coefficients, ns_dtype=ns_dtype
        )
        return wide.mT
    peak, scaled, factor = peak_and_polar(gradient, method, ns_steps, ns_coefficients, ns_dtype)
    return factor * nuclear_norm(scaled, factor) * peak


_OPTIONS = keyword_options(ssd_direction)

ssd = register(
    Rule(
        name="ssd",
        summary=first_line(ssd_direction),
        defaults=_OPTIONS,
        hints={name: typing.get_type_hints(ssd_direction)[name] for name in _OPTIONS},
        init=lambda param, options: {},
        accumulate=accumulate_nothing,
        moving=lambda options: STILL,
        equivariance=polar_equivariance,
        direction=ssd_direction,
        direction_options=tuple(_OPTIONS),
        rms=polar_rms,
        transposable=lambda options: True,
        scale_invariant=lambda options: False,
        default_scale="none",
        check=check_polar,
    )
)
