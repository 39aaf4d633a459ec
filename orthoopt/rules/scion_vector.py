"""Scion's rule for vectors: the whole tensor at root mean square ρ (BiasRMS).

Source: Pethick et al., arXiv 2502.07529; LIONS-EPFL/scion scion.py.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from orthoopt.rules._base import Equivariance, Gate, Options, Rule, Signal, State, Tensors, register
from orthoopt.rules._momentum import MOMENTUM_HINTS, check_momentum
from orthoopt.rules._scion import MOMENTUM, accumulate_average, check_radius, init_average


def at_rms(x: Tensor, radius: float) -> Tensor:
    """The tensor at root mean square ``radius``; any shape, at any scale. Zeros stay zeros.

    It takes the norm of what it is given: a shard of a vector, unless it is a DTensor, is brought to ρ by itself.
    """
    if x.numel() == 0:
        return x.clone()
    # Dividing by the largest magnitude first keeps squares inside float32.
    peak = x.abs().amax()
    x = x / torch.where(peak == 0, 1, peak)
    rms = x.square().mean().sqrt()
    return x * (radius / torch.where(rms == 0, 1, rms))


def _accumulate(grads: Tensors, states: Sequence[State], options: Options, gate: Gate) -> Signal:
    averages = accumulate_average(grads, states, options, gate).numerators
    return Signal([at_rms(average, options["radius"]) for average in averages])


def _check(options: Options) -> None:
    check_momentum(options)
    check_radius(options)


scion_vector = register(
    Rule(
        name="scion_vector",
        summary="The whole tensor at a given root mean square (Scion's BiasRMS).",
        defaults={"momentum": MOMENTUM, "nesterov": False, "momentum_form": "ema", "radius": 1.0},
        hints={**MOMENTUM_HINTS, "radius": float},
        init=init_average,
        accumulate=_accumulate,
        equivariance=lambda options, rows, cols: Equivariance("orthogonal", "orthogonal"),
        check=_check,
    )
)
