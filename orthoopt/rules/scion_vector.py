"""Scion's rule for vectors: each at root mean square ρ (BiasRMS); fused biases are as many vectors as matrices.

Source: Pethick et al., arXiv 2502.07529; LIONS-EPFL/scion scion.py.
"""

import torch
from torch import Tensor

from orthoopt.rules._base import Equivariance, Options, Rounds, Rule, Shard, register
from orthoopt.rules._momentum import MOMENTUM_HINTS, check_momentum
from orthoopt.rules._scion import MOMENTUM, accumulate_average, check_radius, init_average
from orthoopt.rules._shards import OfAll, part_peak, scaled, totals


def at_rms(x: Tensor, radius: float, dims: tuple[int, ...] | None = None) -> Tensor:
    """The vectors along these dimensions, by default the whole tensor, at root mean square ``radius``.

    Any shape, at any scale. Zeros stay zeros.

    It takes the norm of what it is given: a shard of a vector, unless it is a DTensor, is brought to ρ by itself.
    """
    if x.numel() == 0:
        return x.clone()
    # Dividing by the largest magnitude first keeps squares inside float32.
    dims = tuple(range(x.ndim)) if dims is None else dims
    peak = x.abs().amax(dims, keepdim=True)
    x = x / torch.where(peak == 0, 1, peak)
    rms = x.square().mean(dims, keepdim=True).sqrt()
    return x * (radius / torch.where(rms == 0, 1, rms))


def _on_shards(part: Tensor, shard: Shard, options: Options) -> Rounds:
    """One number a vector."""
    x, unit = part_peak(part)
    squares = OfAll(x.square().sum((-2, -1), keepdim=True, dtype=torch.float64) * unit.square())
    (total,) = yield from totals(shard, [squares])
    rms = (total / (shard.rows * shard.cols)).sqrt()
    return scaled(x, options["radius"] * unit / torch.where(rms == 0, 1, rms))


def _check(options: Options) -> None:
    check_momentum(options)
    check_radius(options)


scion_vector = register(
    Rule(
        name="scion_vector",
        summary="Each vector at a given root mean square (Scion's BiasRMS).",
        defaults={"momentum": MOMENTUM, "nesterov": False, "momentum_form": "ema", "radius": 1.0},
        hints={**MOMENTUM_HINTS, "radius": float},
        init=init_average,
        accumulate=accumulate_average,
        measure=lambda x, options, dims: at_rms(x, options["radius"], dims),
        on_shards=_on_shards,
        equivariance=lambda options, rows, cols: Equivariance("orthogonal", "orthogonal"),
        check=_check,
    )
)
