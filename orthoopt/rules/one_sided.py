"""Right and left spectral rules: the inverse root of one Gram matrix applied to the momentum.

    right   U = ν^α · Mₑ (MₑᵀMₑ)^-½
    left    U = ν^α · (MₑMₑᵀ)^-½ Mₑ

for the momentum M, centred (Mₑ = ΠM) or not. With M = P diag(σ) Qᵀ both are ν^α · P Qᵀ: one map under the two names
that the paper gives to its two uses, the right one for embeddings and heads, the left one for routers. It is computed
from M itself by a polar oracle. Forming a Gram matrix and inverting its root needs an absolute ε under the root, which
swamps the Gram matrix of a small gradient and fills null directions.

Source: symmetry-compatible optimizers, arXiv 2605.18106; timlautk/equivariant_optimizers.
"""

import dataclasses
import math
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from orthoopt.coefficients import Table
from orthoopt.newton_schulz import NS_DTYPES, normalize
from orthoopt.polar import Method, nuclear_norm, polar_factor
from orthoopt.rules._base import SHIFT, Equivariance, Group, Options, Rounds, Shard, register
from orthoopt.rules._momentum import momentum_rule
from orthoopt.rules._polar import check_polar, rescales
from orthoopt.rules._polar_parts import part_of_unit, polar_of_part, table_for_parts, times_nu
from orthoopt.rules._rows import (
    Centre,
    by_peak,
    centre_part,
    centre_rows,
    subtract_mean_row,
    subtract_mean_row_of_part,
)
from orthoopt.rules._shards import part_peak

NuMode: TypeAlias = Literal["none", "nuclear", "nuclear_over_frobenius"]
Coefficients: TypeAlias = str | tuple[float, float, float] | tuple[tuple[float, float, float], ...]
DType: TypeAlias = Literal["auto", "float32", "float64", "bfloat16", "float16"]


def one_sided_direction(
    momentum: Tensor,
    *,
    centre: Centre = "none",
    nu_mode: NuMode = "none",
    nu_power: float = 1.0,
    method: Method = "newton_schulz",
    ns_steps: int = 5,
    ns_coefficients: Coefficients = "polar_express",
    ns_dtype: DType = "auto",
) -> Tensor:
    """Polar factor of the momentum, centred if asked, times a power of its nuclear norm if asked.

    Args:
        momentum: ``(..., rows, cols)``, leading dimensions a batch.
        centre: subtract the mean row before (``pre``), or before and after (``both``). An exact polar factor of a
            centred matrix is centred already; ``both`` takes out what rounding leaves.
        nu_mode: ν, of each matrix. ``none``: 1. ``nuclear``: ⟨Mₑ, polar Mₑ⟩, which is ‖Mₑ‖_*.
            ``nuclear_over_frobenius``: the same over ‖Mₑ‖_F, between 1 and √rank whatever the gradient's scale.
        nu_power: α, at least 0; 1 as published.
        method: how the polar factor is computed, see :func:`orthoopt.orthogonalize`.
        ns_steps: Newton-Schulz iterations.
        ns_coefficients: a table of :mod:`orthoopt.coefficients`, one (a, b, c), or several.
        ns_dtype: dtype of the iteration. ``auto`` chooses by device, and float32 for centred momenta, which leave
            their subspace in bfloat16.

    Returns:
        The update, ``(..., rows, cols)``; zero matrices and null directions give zeros.
    """
    x, unit = (momentum, 1.0) if centre == "none" and nu_mode != "nuclear" else by_peak(momentum)
    if centre != "none":
        x = centre_rows(x)
    update = polar_step(x, centre != "none", method, ns_steps, ns_coefficients, ns_dtype)
    if nu_mode != "none":
        update = update * nuclear_length(x, update, nu_mode, nu_power, unit)
    return subtract_mean_row(update) if centre == "both" else update


def _on_shards(part: Tensor, shard: Shard, options: Options) -> Rounds | None:
    """Where one side is so long that products of the other are little beside the matrix; see ``_polar_parts``."""
    table = table_for_parts(shard, options)
    return None if table is None else _in_rounds(part, shard, options, table)


def _in_rounds(part: Tensor, shard: Shard, options: Options, table: Table) -> Rounds:
    centred = options["centre"] != "none"
    x, unit = (yield from centre_part(part, shard)) if centred else part_peak(part)
    x, length = yield from part_of_unit(x, unit, shard, centred)
    update = yield from polar_of_part(x, shard, options, table)
    update = yield from times_nu(update, x, length, shard, options)
    return (yield from subtract_mean_row_of_part(update, shard)) if options["centre"] == "both" else update


def polar_step(
    x: Tensor, centred: bool, method: Method, ns_steps: int, ns_coefficients: Coefficients, ns_dtype: DType
) -> Tensor:
    """Polar factor in the dtype of ``x``, float32 or wider; centred matrices iterate in float32 or wider too."""
    wide = torch.promote_types(x.dtype, torch.float32)
    dtype = wide if centred and ns_dtype == "auto" else NS_DTYPES[ns_dtype]
    return polar_factor(x, method, ns_steps, ns_coefficients, dtype).to(wide)


def nuclear_length(x: Tensor, factor: Tensor, nu_mode: NuMode, nu_power: float, unit: Tensor | float = 1.0) -> Tensor:
    """ν^α of each matrix ``unit·x`` with the computed polar factor ``factor``, ``(..., 1, 1)``."""
    ratio = nuclear_norm(normalize(x), factor)
    if nu_mode == "nuclear":
        ratio = ratio * torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True) * unit
    return ratio.clamp(min=0).pow(nu_power)


def check_polar_and_power(options: Options) -> None:
    """Raise ValueError on options of the polar factor or a power that cannot be."""
    check_polar(options)
    if not 0 <= options["nu_power"] < math.inf:
        raise ValueError(f"nu_power must be at least 0 and finite, got {options['nu_power']!r}")


def _rms(rows: int, cols: int, options: Options) -> float:
    """Of a flat spectrum. ``nuclear`` has no size of its own: scales then speak of the polar factor alone."""
    rank = max(1, min(rows - (options["centre"] != "none"), cols))
    length = math.sqrt(rank) ** options["nu_power"] if options["nu_mode"] == "nuclear_over_frobenius" else 1.0
    return length * math.sqrt(rank / (rows * cols))


def _equivariance(options: Options, rows: int, cols: int) -> Equivariance:
    if options["centre"] != "none":
        right: Group = "signed_permutation" if rescales(options) else "orthogonal"
        return Equivariance("permutation", right, breaks=(("left", "orthogonal"),), shift=options["centre"] == "both")
    if rescales(options):
        return Equivariance("signed_permutation", "signed_permutation", breaks=(SHIFT,))
    return Equivariance("orthogonal", "orthogonal", breaks=(SHIFT,))


right_spectral = register(
    momentum_rule(
        "right_spectral",
        one_sided_direction,
        on_shards=_on_shards,
        rms=_rms,
        equivariance=_equivariance,
        # Other oracles and the sum behind ν round differently on the transpose.
        transposable=lambda options: (
            options["centre"] == "none" and options["nu_mode"] == "none" and options["method"] == "newton_schulz"
        ),
        nesterov=False,
        scale_invariant=lambda options: options["nu_mode"] != "nuclear" or options["nu_power"] == 0,
        check=check_polar_and_power,
    )
)

left_spectral = register(dataclasses.replace(right_spectral, name="left_spectral"))
