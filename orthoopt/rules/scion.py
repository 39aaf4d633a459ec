"""Scion rule: the corner of a norm ball that the momentum points to.

ρ·u(d) is minus the linear minimization oracle of the ball of radius ρ: among all matrices of norm at most ρ it has the
largest inner product with d. Under weight decay 1 the step W ← (1−γ)W − γρu(d) is Frank and Wolfe's and stays in the
ball; without decay it is steepest descent in the norm. Source: Pethick et al., arXiv 2502.07529; LIONS-EPFL/scion
scion.py.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal

from torch import Tensor

from orthoopt.newton_schulz import NS_DTYPES
from orthoopt.polar import Method, polar_factor
from orthoopt.rules._base import Equivariance, Options, Rounds, Shard, register
from orthoopt.rules._momentum import momentum_rule, moving_of
from orthoopt.rules._polar import check_polar, rescales
from orthoopt.rules._rows import row_norm_of_part
from orthoopt.rules._scion import MOMENTUM, accumulate_average, check_radius, init_average
from orthoopt.rules.row_norm import row_norm_direction


def scion_direction(
    momentum: Tensor,
    *,
    norm: Literal["spectral", "spectral_conv", "sign", "col_norm", "row_norm"] = "spectral",
    radius: float = 1.0,
    scaling: Literal["published", "normalized", "unnormalized", "max"] = "published",
    transposed: bool = False,
    kernel_size: int = 1,
    method: Method = "newton_schulz",
    ns_steps: int = 5,
    ns_coefficients: str | tuple[float, float, float] | tuple[tuple[float, float, float], ...] = "muon",
    ns_dtype: Literal["auto", "float32", "float64", "bfloat16", "float16"] = "auto",
) -> Tensor:
    """Corner of a norm ball of given radius (Scion); under weight decay 1 the weights stay in the ball.

    Args:
        momentum: ``(..., rows, cols)`` = (m, n), leading dimensions a batch.
        norm: whose ball. ``spectral``: √(m/n)·polar. ``spectral_conv``: √(out/in)/k²·polar of a flattened kernel.
            ``sign``: sign/n. ``col_norm``: columns of root mean square 1. ``row_norm``: rows of length 1/√n. Short rows
            and columns are damped as in rule ``row_norm``.
        radius: ρ.
        scaling: ``published``: as above. ``unnormalized``: without the division by n (√m·polar; sign; rows of length
            one). ``normalized``: with it (``col_norm``: columns of root mean square 1/n). ``max``, for ``spectral``:
            max(1, √(m/n))·polar.
        transposed: apply the norm to the transpose, for an embedding stored as (vocabulary, features): it maps
            one-hot vectors of the vocabulary to features.
        kernel_size: k², the number of positions of a convolution kernel, which its flattened view hides. Param groups
            get it from the parameter's shape.
        method: how the polar factor is computed, see :func:`orthoopt.orthogonalize`. With ``newton_schulz`` singular
            values exceed one by what the coefficients allow, and the ball with them.
        ns_steps: Newton-Schulz iterations.
        ns_coefficients: a table of :mod:`orthoopt.coefficients`, one (a, b, c), or several.
        ns_dtype: dtype of the iteration; ``auto`` chooses by device.

    Returns:
        ρ·u, ``(..., rows, cols)``; zero matrices, rows and columns give zeros.
    """
    x = momentum.mT if transposed else momentum
    factor = radius * _factor(norm, scaling, x.shape[-2], x.shape[-1], kernel_size)
    if norm in ("spectral", "spectral_conv"):
        u = polar_factor(x, method, ns_steps, ns_coefficients, NS_DTYPES[ns_dtype])
    elif norm == "sign":
        u = x.sign()
    else:
        u = row_norm_direction(x, axis="cols" if norm == "col_norm" else "rows")
    u = u * factor
    return u.mT if transposed else u


def _factor(norm: str, scaling: str, rows: int, cols: int, kernel_size: int) -> float:
    """What the polar factor, the sign, or rows or columns of length one are multiplied by."""
    if norm == "spectral":
        ratio = math.sqrt(rows / cols)
        return {"unnormalized": math.sqrt(rows), "max": max(1.0, ratio)}.get(scaling, ratio)
    if norm == "spectral_conv":
        return math.sqrt(rows / (cols * kernel_size))  # cols = in·k², so this is √(out/in)/k²
    if norm == "sign":
        return 1.0 if scaling == "unnormalized" else 1 / cols
    if norm == "col_norm":
        return math.sqrt(rows) / (cols if scaling == "normalized" else 1)
    return 1.0 if scaling == "unnormalized" else 1 / math.sqrt(cols)


def _on_shards(part: Tensor, shard: Shard, options: Options) -> Rounds | None:
    """Signs need nothing, rows and columns what ``row_norm`` does, a polar factor the whole matrix."""
    norm, swap = options["norm"], options["transposed"]
    if norm in ("spectral", "spectral_conv"):
        return None
    seen, of = (part.mT, shard.mT) if swap else (part, shard)
    factor = options["radius"] * _factor(norm, options["scaling"], of.rows, of.cols, options["kernel_size"])

    def rounds() -> Rounds:
        if norm == "sign":
            u = seen.sign()
        else:
            u = yield from row_norm_of_part(seen, of, "cols" if norm == "col_norm" else "rows", "none", "relative")
        u = u * factor
        return u.mT if swap else u

    return rounds()


def _rms(rows: int, cols: int, options: Options) -> float:
    if options["transposed"]:
        rows, cols = cols, rows
    norm = options["norm"]
    entries = {"sign": 1, "col_norm": rows, "row_norm": cols}.get(norm, max(rows, cols))
    factor = _factor(norm, options["scaling"], rows, cols, options["kernel_size"])
    return options["radius"] * factor / math.sqrt(entries)


def _equivariance(options: Options, rows: int, cols: int) -> Equivariance:
    norm = options["norm"]
    if norm in ("row_norm", "col_norm"):
        if (norm == "row_norm") != options["transposed"]:
            return Equivariance("permutation", "orthogonal", breaks=(("left", "orthogonal"),))
        return Equivariance("orthogonal", "permutation", breaks=(("right", "orthogonal"),))
    if norm == "sign":
        return Equivariance(
            "signed_permutation", "signed_permutation", breaks=(("left", "orthogonal"), ("right", "orthogonal"))
        )
    if rescales(options):
        # Rescaling rows by sums of magnitudes is tied to the coordinates of the shorter side.
        return Equivariance("signed_permutation", "signed_permutation")
    return Equivariance("orthogonal", "orthogonal")


def _check(options: Options) -> None:
    check_radius(options)
    check_polar(options)
    norm, scaling = options["norm"], options["scaling"]
    allowed = {"spectral": ("max", "normalized", "unnormalized"), "spectral_conv": ("normalized",)}
    known = ("published", *allowed.get(norm, ("normalized", "unnormalized")))
    if scaling not in known:
        raise ValueError(f"scaling={scaling!r} of norm {norm!r} must be one of {', '.join(map(repr, known))}")
    if options["kernel_size"] < 1:
        raise ValueError(f"kernel_size must be at least 1, got {options['kernel_size']!r}")


def _of_shape(shape: tuple[int, ...], options: Options) -> Mapping[str, Any]:
    """The positions of a convolution kernel (out, in, k...)."""
    return {"kernel_size": math.prod(shape[2:])} if options["norm"] == "spectral_conv" else {}


scion = register(
    dataclasses.replace(
        momentum_rule(
            "scion",
            scion_direction,
            on_shards=_on_shards,
            rms=_rms,
            equivariance=_equivariance,
            momentum=MOMENTUM,
            nesterov=False,
            default_scale="none",  # the ball's radius is the length
            of_shape=_of_shape,
            check=_check,
        ),
        init=init_average,
        accumulate=accumulate_average,
        moving=lambda options: None if options["momentum"] == 0 else moving_of(options),
    )
)
