"""The polar factor of a matrix whose long side is cut: the iteration in Gram form, on sums of products of parts.

With the short side n whole on every rank, X Xᵀ is a sum over ranks. The steps multiply (n, n) matrices alone, every
rank all of them, and what they make is multiplied to its own part. An all-reduce has n(n+1)/2 numbers, once a segment
between restarts, of which five steps need two: from p ranks together 2(p−1)·n(n+1) numbers, against 2(p−1)/p·m·n where
one of them gets the matrix and sends its update back; and the long products are shared out. It sends less where
m > p·n: for an embedding, with m/n near a hundred, not for a hidden matrix. How many ranks there are is not known
here; :data:`ASPECT` stands for it.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from orthoopt.coefficients import Table, resolve_coefficients
from orthoopt.iteration import gram_factor
from orthoopt.iteration_form import accurate_restarts
from orthoopt.kernels import syrk
from orthoopt.newton_schulz import NS_DTYPES
from orthoopt.rules._base import Options, Rounds, Shard
from orthoopt.rules._rows import without_rounding
from orthoopt.rules._shards import Largest, OfAll, peak_of, scaled, totals
from orthoopt.start import aol_scale

ASPECT = 16
"""From this ratio of the sides on the products are exchanged, and not the matrix."""


def table_for_parts(shard: Shard, options: Options) -> Table | None:
    """The coefficients where parts can be iterated; None where the matrix is needed whole.

    Args:
        shard: how the matrix is cut.
        options: of a rule that takes a polar factor: ``method``, ``ns_steps``, ``ns_coefficients``, ``ns_dtype``.
    """
    of = shard.mT if shard.rows > shard.cols else shard
    by_iteration = options["method"] in ("newton_schulz", "gram", "polar_express")
    # In 16 bits the Gram matrix needs care that a sum over ranks does not take.
    precise = options["ns_dtype"] in ("auto", "float32", "float64")
    if of.cut_rows or of.cols < ASPECT * of.rows or not by_iteration or not precise:
        return None
    return resolve_coefficients(options["ns_coefficients"], options["ns_steps"])


def polar_of_part(x: Tensor, shard: Shard, options: Options, table: Table) -> Rounds:
    """Its part of the polar factor, to the accuracy of the coefficients, in float32 or wider.

    Args:
        x: a part, in units in which the whole has a Frobenius norm of one, or zero.
        shard: which part.
        options: as in :func:`table_for_parts`; ``ns_dtype`` ``auto`` is float32 on every device.
        table: from there.
    """
    tall = shard.rows > shard.cols
    wide = torch.promote_types(x.dtype, torch.float32)
    y = (x.mT if tall else x).to(NS_DTYPES[options["ns_dtype"]] or wide)
    edges = (0, *accurate_restarts(table.rows), len(table.rows))
    cut = shard.cut_rows or shard.cut_cols
    for first, last in itertools.pairwise(edges):
        products = syrk(y) if y.numel() else y.new_zeros((*y.shape[:-1], y.shape[-2]))
        if cut:
            i, j = torch.triu_indices(*products.shape[-2:], device=y.device).unbind()
            (sums,) = yield [products[..., i, j]]
            products = torch.zeros_like(products)
            products[..., i, j] = products[..., j, i] = sums
        if first == 0:
            y, products = _started(y, products, table)
        y = gram_factor(products, table.rows[first:last]) @ y
    return (y.mT if tall else y).to(wide)


def _started(y: Tensor, products: Tensor, table: Table) -> tuple[Tensor, Tensor]:
    if table.start == "aol":
        scale = aol_scale(products)
        return y * scale, products * scale * scale.mT
    squares = products.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None] * table.kappa**2
    squares = torch.where(squares == 0, 1, squares)
    return y * squares.rsqrt(), products / squares


def part_of_unit(x: Tensor, unit: Tensor, shard: Shard, centred: bool) -> Rounds:
    """The part in units of the whole's Frobenius norm, and that norm of ``unit·x``, float64, ``(..., 1, 1)``.

    Args:
        x: a part.
        unit: what it was divided by, float64.
        shard: which part.
        centred: whether ``x`` comes from :func:`centre_part`, and its rounding is to be zero.
    """
    squares = x.square().sum((-2, -1), keepdim=True, dtype=torch.float64) * unit.square()
    total, largest = yield from totals(shard, [OfAll(squares), Largest(peak_of(x).double())])
    length = total.sqrt()
    x = without_rounding(x, largest) if centred else x
    return scaled(x, unit / torch.where(length == 0, 1, length)), length


def times_nu(update: Tensor, x: Tensor, length: Tensor, shard: Shard, options: Options) -> Rounds:
    """The polar factor times ν^α, as :func:`orthoopt.rules.one_sided.nuclear_length` has it.

    Args:
        update: a part of the computed factor.
        x: of the matrix, in units of its Frobenius norm.
        length: that norm.
        shard: which part.
        options: ``nu_mode`` and ``nu_power``.
    """
    if options["nu_mode"] == "none":
        return update
    (nu,) = yield from totals(shard, [OfAll((x * update).sum((-2, -1), keepdim=True, dtype=torch.float64))])
    nu = nu * length if options["nu_mode"] == "nuclear" else nu
    return scaled(update, nu.clamp(min=0).pow(options["nu_power"]))
