"""PolarGrad rule: the polar factor times the nuclear norm, so that the step shrinks with the gradient.

With ν(X) = ⟨X, polar X⟩ = ‖X‖_*, either order of polar factor and momentum:

    momentum first   B ← βB + (1−β)G          U = ν(B)·polar B
    polar first      B ← βB + (1−β)·polar G   U = ν(G)·B

U(cG) = c·U(G) for c > 0, unlike Muon's. Source: PolarGrad, arXiv 2505.21799; timlautk/polargrad polar_grad.py.
"""

import math
import typing
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from orthoopt.kernels import STILL, Moving
from orthoopt.newton_schulz import NS_DTYPES
from orthoopt.polar import Method, nuclear_norm, polar_factor
from orthoopt.rules._base import Equivariance, Gate, Options, Rule, Signal, State, Tensors, register
from orthoopt.rules._momentum import accumulate_momentum, check_momentum, init_momentum, moving_of
from orthoopt.rules._options import first_line, keyword_options
from orthoopt.rules._polar import check_polar, rescales

Coefficients = str | tuple[float, float, float] | tuple[tuple[float, float, float], ...]


def polargrad_advance(
    x: Tensor,
    state: State,
    *,
    momentum: float = 0.95,
    order: Literal["momentum_first", "polar_first"] = "momentum_first",
    method: Method = "auto",
    ns_steps: int = 5,
    ns_coefficients: Coefficients = "polar_express",
    ns_dtype: Literal["auto", "float32", "float64", "bfloat16", "float16"] = "auto",
) -> tuple[Tensor, State]:
    """Polar factor of the momentum times its nuclear norm (PolarGrad).

    Args:
        x: the momentum, or with ``polar_first`` the gradient; ``(..., rows, cols)``, leading dimensions a batch.
        state: the ``momentum_buffer`` seen as matrices; read and moved by ``polar_first`` alone.
        momentum: β.
        order: ``momentum_first`` or ``polar_first``, see the module.
        method: how the polar factor is computed, see :func:`orthoopt.orthogonalize`.
        ns_steps: iterations of the iterative methods.
        ns_coefficients: table of the iterative methods.
        ns_dtype: dtype of the computation; ``auto`` chooses by device and method.

    Returns:
        The update, ``(..., rows, cols)``, and with ``polar_first`` the new buffer.
    """
    peak, scaled, factor = peak_and_polar(x, method, ns_steps, ns_coefficients, ns_dtype)
    length = nuclear_norm(scaled, factor)
    if order == "momentum_first":
        return factor * length * peak, {}
    buffer = state["momentum_buffer"].lerp(factor.to(state["momentum_buffer"].dtype), 1 - momentum)
    return buffer * length * peak, {"momentum_buffer": buffer}


def peak_and_polar(
    x: Tensor, method: Method, steps: int, coefficients: Coefficients, dtype: str
) -> tuple[Tensor, Tensor, Tensor]:
    """The largest magnitude of each matrix (1 for zero), the matrix divided by it, and the polar factor.

    ν(x) = peak·ν(x/peak): multiplied in last, the peak keeps ν(x)·polar(x) inside float32 wherever the result is. All
    three are in float32 or wider.
    """
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    peak = x.abs().amax((-2, -1), keepdim=True)
    peak = torch.where(peak == 0, 1, peak)
    scaled = x / peak
    factor = polar_factor(scaled, method, steps, coefficients, NS_DTYPES[dtype])
    return peak, scaled, factor.to(scaled.dtype)


def polar_rms(rows: int, cols: int, options: Options) -> float:
    """Root mean square of the polar factor, the update without ν: ``match_rms_adamw`` gives ν times Muon's update."""
    return 1 / math.sqrt(max(rows, cols))


def polar_equivariance(options: Options, rows: int, cols: int) -> Equivariance:
    """Orthogonal on both sides, whatever computes the factor, except where rows are rescaled first."""
    if rescales(options):
        return Equivariance("signed_permutation", "signed_permutation")
    return Equivariance("orthogonal", "orthogonal")


def _accumulate(grads: Tensors, states: Sequence[State], options: Options, gate: Gate) -> Signal:
    if options["order"] == "polar_first":
        return Signal(grads)  # the buffer moves per matrix
    return accumulate_momentum(grads, states, _plain_average(options), gate)


def _moving(options: Options) -> Moving:
    return STILL if options["order"] == "polar_first" else moving_of(_plain_average(options))


def _plain_average(options: Options) -> Options:
    return {**options, "momentum_form": "ema", "nesterov": False}


def _check(options: Options) -> None:
    check_momentum(options)
    check_polar(options)


_OPTIONS = keyword_options(polargrad_advance)

polargrad = register(
    Rule(
        name="polargrad",
        summary=first_line(polargrad_advance),
        defaults=_OPTIONS,
        hints={name: typing.get_type_hints(polargrad_advance)[name] for name in _OPTIONS},
        init=init_momentum,
        accumulate=_accumulate,
        moving=_moving,
        equivariance=polar_equivariance,
        advance=polargrad_advance,
        viewed=("momentum_buffer",),
        direction_options=tuple(_OPTIONS),
        rms=polar_rms,
        scale_invariant=lambda options: False,
        default_scale="none",
        check=_check,
    )
)
