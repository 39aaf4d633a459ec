"""Hybrid rule: row normalization together with a polar step, for units that are exchangeable but not rotated.

    row_then_polar   X = [Π] row(Mₑ);  U = [Π] ν(X)^α polar X
    polar_then_row   U = [Π] row(polar Mₑ)

for the momentum M, Mₑ = ΠM and [Π] applied if centred. Rows are units that may be permuted, such as neurons or tokens,
columns a feature space that may be rotated; ``axis="cols"`` is the same rule on the transpose, for a matrix whose
columns are the units (the way out of an mlp).

Source: symmetry-compatible optimizers, arXiv 2605.18106; timlautk/equivariant_optimizers.
"""

import math
from typing import Literal

from torch import Tensor

from orthoopt.coefficients import Table
from orthoopt.polar import Method
from orthoopt.rules._base import SHIFT, Breaks, Equivariance, Group, Options, Rounds, Shard, register
from orthoopt.rules._momentum import momentum_rule
from orthoopt.rules._polar import rescales
from orthoopt.rules._polar_parts import part_of_unit, polar_of_part, table_for_parts, times_nu
from orthoopt.rules._rows import (
    Axis,
    Centre,
    EpsMode,
    by_peak,
    centre_part,
    centre_rows,
    normalize_rows,
    row_norm_of_part,
    subtract_mean_row,
    subtract_mean_row_of_part,
)
from orthoopt.rules._shards import part_peak
from orthoopt.rules.one_sided import (
    Coefficients,
    DType,
    NuMode,
    check_polar_and_power,
    nuclear_length,
    polar_step,
)


def hybrid_direction(
    momentum: Tensor,
    *,
    order: Literal["row_then_polar", "polar_then_row"] = "row_then_polar",
    axis: Axis = "rows",
    centre: Centre = "none",
    eps_mode: EpsMode = "relative",
    nu_mode: NuMode = "none",
    nu_power: float = 1.0,
    method: Method = "newton_schulz",
    ns_steps: int = 5,
    ns_coefficients: Coefficients = "polar_express",
    ns_dtype: DType = "auto",
) -> Tensor:
    """Rows normalized, then the polar factor, or the other way round.

    Args:
        momentum: ``(..., rows, cols)``, leading dimensions a batch.
        order: ``row_then_polar`` (as published) does not see the lengths of rows; ``polar_then_row`` ends with rows
            of length one, and is near ``spectral`` where there are no more rows than columns.
        axis: the units are ``rows``, or ``cols`` (the same rule applied to the transpose).
        centre: subtract the mean row before (``pre``), or before and after each row normalization (``both``).
        eps_mode: how short rows are damped, see :mod:`orthoopt.rules.row_norm`. After a polar step the absolute 1e-8
            stands beside rows of length up to one.
        nu_mode: ν, of each matrix. ``none``: 1. ``nuclear``: ⟨X, polar X⟩ of the normalized rows X, near
            √rows·√rank. ``nuclear_over_frobenius``: the same over ‖X‖_F, which is √rows where no row is zero.
            Without effect in ``polar_then_row``, whose row normalization takes every factor out.
        nu_power: α, at least 0; 1 as published.
        method: how the polar factor is computed, see :func:`orthoopt.orthogonalize`.
        ns_steps: Newton-Schulz iterations.
        ns_coefficients: a table of :mod:`orthoopt.coefficients`, one (a, b, c), or several.
        ns_dtype: dtype of the iteration. ``auto`` chooses by device, and float32 for centred momenta.

    Returns:
        The update, ``(..., rows, cols)``; zero rows give zeros unless centred.
    """
    if axis == "cols":
        return hybrid_direction(
            momentum.mT, order=order, centre=centre, eps_mode=eps_mode, nu_mode=nu_mode, nu_power=nu_power,
            method=method, ns_steps=ns_steps, ns_coefficients=ns_coefficients, ns_dtype=ns_dtype,
        ).mT  # fmt: skip
    centred, twice = centre != "none", centre == "both"
    x, peak = by_peak(momentum)
    if centred:
        x = centre_rows(x)
    if order == "polar_then_row":
        update = normalize_rows(polar_step(x, centred, method, ns_steps, ns_coefficients, ns_dtype), eps_mode)
        return subtract_mean_row(update) if twice else update
    x = normalize_rows(x, eps_mode, peak)
    if twice:
        x = subtract_mean_row(x)
    update = polar_step(x, centred, method, ns_steps, ns_coefficients, ns_dtype)
    if nu_mode != "none":
        update = update * nuclear_length(x, update, nu_mode, nu_power)
    return subtract_mean_row(update) if twice else update


def _on_shards(part: Tensor, shard: Shard, options: Options) -> Rounds | None:
    """Row normalization as in ``row_norm``, the polar step on products of parts where one side is long enough."""
    swap = options["axis"] == "cols"
    seen, of = (part.mT, shard.mT) if swap else (part, shard)
    table = table_for_parts(of, options)
    return None if table is None else _in_rounds(seen, of, options, table, swap)


def _in_rounds(part: Tensor, shard: Shard, options: Options, table: Table, swap: bool) -> Rounds:
    centre, eps_mode = options["centre"], options["eps_mode"]
    centred = centre != "none"
    if options["order"] == "polar_then_row":
        x, unit = (yield from centre_part(part, shard)) if centred else part_peak(part)
        x, _ = yield from part_of_unit(x, unit, shard, centred)
        update = yield from polar_of_part(x, shard, options, table)
        update = yield from row_norm_of_part(update, shard, "rows", "none", eps_mode)
    else:
        rows = yield from row_norm_of_part(part, shard, "rows", centre, eps_mode)
        x, length = yield from part_of_unit(*part_peak(rows), shard, centred=False)
        update = yield from polar_of_part(x, shard, options, table)
        update = yield from times_nu(update, x, length, shard, options)
    if centre == "both":
        update = yield from subtract_mean_row_of_part(update, shard)
    return update.mT if swap else update


def _rms(rows: int, cols: int, options: Options) -> float:
    """Of a flat spectrum of the normalized rows."""
    units, features = (rows, cols) if options["axis"] == "rows" else (cols, rows)
    if options["order"] == "polar_then_row":
        return 1 / math.sqrt(features)
    rank = max(1, min(units - (options["centre"] != "none"), features))
    nu = {"none": 1.0, "nuclear": math.sqrt(units * rank), "nuclear_over_frobenius": math.sqrt(rank)}
    return nu[options["nu_mode"]] ** options["nu_power"] * math.sqrt(rank / (units * features))


def _equivariance(options: Options, rows: int, cols: int) -> Equivariance:
    by_rows, centred = options["axis"] == "rows", options["centre"] != "none"
    side: Literal["left", "right"] = "left" if by_rows else "right"
    units: Group = "permutation" if centred else "signed_permutation"
    features: Group = "signed_permutation" if rescales(options) else "orthogonal"
    count, width = (rows, cols) if by_rows else (cols, rows)
    breaks: Breaks = ((side, "orthogonal"),)
    if options["order"] == "polar_then_row" and not centred and count <= width:
        breaks = ()  # the rows of a wide polar factor have equal lengths already, up to the accuracy of the oracle
    if not by_rows:
        # Centring then subtracts the mean column: the shift is by one column vector.
        return Equivariance(features, units, breaks)
    return Equivariance(units, features, breaks if centred else (*breaks, SHIFT), shift=options["centre"] == "both")


def _descends(options: Options) -> bool:
    """⟨U, Mₑ⟩ > 0: with A the row scaling, a positive diagonal or its restriction ΠAΠ to centred matrices.

    row_then_polar: X = AMₑ, and ⟨polar X, A⁻¹X⟩ = tr(A⁻¹(XXᵀ)^½). polar_then_row: ⟨A polar Mₑ, Mₑ⟩ = tr(A(MₑMₑᵀ)^½).
    An oracle that rescales columns first stands between.
    """
    return not rescales(options)


hybrid = register(
    momentum_rule(
        "hybrid",
        hybrid_direction,
        on_shards=_on_shards,
        rms=_rms,
        equivariance=_equivariance,
        nesterov=False,
        # The polar step forgets the scale; so do relatively damped rows, and with them ν.
        scale_invariant=lambda options: options["order"] == "polar_then_row" or options["eps_mode"] == "relative",
        descends=_descends,
        check=check_polar_and_power,
    )
)
