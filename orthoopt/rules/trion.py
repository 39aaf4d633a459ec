"""Trion: the polar factor of a few columns of the momentum in a cosine basis.

The momentum is looked at in a fixed orthogonal basis, its largest columns there are orthogonalized and lifted back,
and only what was used is taken off the momentum, so that the rest waits for its turn (error feedback). Source: arXiv
2505.17967; IST-DASLab/ISTA-DASLab-Optimizers, ``fft_low_rank``.
"""

import dataclasses
import math
from typing import Any, Literal

import torch
from torch import Tensor

from orthoopt.coefficients import resolve_coefficients
from orthoopt.dct import from_columns, take_columns, to_coordinates
from orthoopt.kernels import STILL
from orthoopt.newton_schulz import NS_DTYPES, newton_schulz
from orthoopt.rules._base import Equivariance, Group, Options, Rounds, Rule, Shard, State, register
from orthoopt.rules._columns import (
    check_rank,
    is_right,
    largest_columns,
    norms_of_part,
    resolve_rank,
    select_columns,
)
from orthoopt.rules._exchange import Gather, OnWhole
from orthoopt.rules._momentum import accumulate_nothing, check_momentum, init_momentum
from orthoopt.rules._options import advance_fields, hashable
from orthoopt.rules._shards import OfCols, part_peak, scaled, totals


def trion_advance(
    grad: Tensor,
    state: State,
    *,
    momentum: float = 0.95,
    rank: int | float = 0.25,
    selection: Literal["l2", "l1"] = "l2",
    basis: Literal["dct", "identity"] = "dct",
    side: Literal["auto", "left", "right"] = "auto",
    ns_steps: int = 5,
    ns_coefficients: str | tuple[float, float, float] | tuple[tuple[float, float, float], ...] = "muon",
    ns_dtype: Literal["auto", "float32", "float64", "bfloat16", "float16"] = "auto",
) -> tuple[Tensor, State]:
    """Polar factor of the momentum's largest columns in a cosine basis (Trion).

    M ← M + G;  S = M·D;  idx = top-r of ‖S_j‖;  b = S[:, idx];  M ← M − (1−μ)·b·D[:, idx]ᵀ;  U = NS(b)·D[:, idx]ᵀ;
    for the left side the same of the transposes.

    Args:
        grad: G, ``(..., rows, cols)``, leading dimensions a batch.
        state: ``momentum_buffer``, M, ``(..., rows, cols)``.
        momentum: μ, the share of the used columns that stays in the momentum.
        rank: r, columns kept: a whole number, or a fraction of the side's length, rounded up. 1 is one, 1.0 is all.
        selection: the norm by which columns are chosen; ``l2`` keeps at least r/k of the squared Frobenius norm.
        basis: D: cosines (the DCT-II), or the coordinates themselves.
        side: choose columns (``right``) or rows (``left``); ``auto``: of the shorter side, columns if square.
        ns_steps: Newton-Schulz iterations.
        ns_coefficients: a table of :mod:`orthoopt.coefficients`, one (a, b, c), or several.
        ns_dtype: dtype of the iteration; ``auto`` chooses by device.

    Returns:
        The update, ``(..., rows, cols)``, of rank at most r, and the new ``momentum_buffer``.
    """
    right = is_right(side, grad.shape[-2], grad.shape[-1])
    buffer = state["momentum_buffer"] + grad
    buffer = buffer.to(torch.promote_types(buffer.dtype, torch.float32))
    m = buffer if right else buffer.mT
    # In units of the largest entry sums of products are right, and the choice the same, at any scale of the gradient.
    peak = m.abs().amax((-2, -1), keepdim=True)
    size = m.shape[-1]
    coordinates = to_coordinates(m / torch.where(peak == 0, 1, peak), basis)
    indices = select_columns(coordinates, resolve_rank(rank, size), selection)
    b = take_columns(coordinates, indices)
    m = m - (1 - momentum) * peak * from_columns(b, indices, size, basis)
    factor = newton_schulz(b, ns_steps, ns_coefficients, NS_DTYPES[ns_dtype]).to(b.dtype)
    update = from_columns(factor, indices, size, basis)
    return (update, {"momentum_buffer": m}) if right else (update.mT, {"momentum_buffer": m.mT})


@dataclasses.dataclass(frozen=True)
class _Polar:
    """The iteration as one value: what is equal may be computed in one call."""

    ns_steps: int
    ns_coefficients: Any
    ns_dtype: str

    def __call__(self, x: Tensor) -> Tensor:
        return newton_schulz(x, self.ns_steps, self.ns_coefficients, NS_DTYPES[self.ns_dtype]).to(x.dtype)


def _on_shards(grad: Tensor, shard: Shard, options: Options, state: State, right: bool) -> Rounds | None:
    """Trion on parts: the norms of columns are summed, and r of them brought to one rank, which iterates.

    That is k numbers on every rank, and r/k of the matrix moved twice. Where columns are cut, those that are chosen are
    known in place only without a basis, and how many a rank has then, only after the choice.
    """
    of = shard if right else shard.mT
    if of.cut_cols and (options["basis"] == "dct" or of.cut_rows or grad.ndim > 2):
        return None
    buffer = state["momentum_buffer"] + grad
    buffer = buffer.to(torch.promote_types(buffer.dtype, torch.float32))
    return _in_rounds(buffer if right else buffer.mT, of, options, right)


def _in_rounds(m: Tensor, of: Shard, options: Options, right: bool) -> Rounds:
    basis, selection, size = options["basis"], options["selection"], of.cols
    x, unit = part_peak(m)
    coordinates = to_coordinates(x, basis)
    norms = norms_of_part(coordinates, selection, unit)
    if of.cut_cols:
        (norms,) = yield [Gather(norms, -1, of.col, size, not right)]
    else:
        (norms,) = yield from totals(of, [OfCols(norms)])
    indices = largest_columns(norms.squeeze(-2), resolve_rank(options["rank"], size))
    # In units that all parts share: only the direction of the whole matters to the iteration.
    length = norms.sum(-1, keepdim=True)
    length = length.sqrt() if selection == "l2" else length
    common = unit / torch.where(length == 0, 1, length)
    polar = _Polar(options["ns_steps"], hashable(options["ns_coefficients"]), options["ns_dtype"])
    rank = indices.shape[-1]
    if of.cut_cols:
        first, last = (int((indices < place).sum()) for place in (of.col, of.col + m.shape[-1]))
        indices, size = indices[first:last] - of.col, m.shape[-1]
        b = take_columns(coordinates, indices)
        (factor,) = yield [OnWhole(scaled(b, common), -1, first, rank, polar, follows_cut=False)]
    else:
        b = take_columns(coordinates, indices)
        factor = scaled(b, common)
        if of.cut_rows:
            (factor,) = yield [OnWhole(factor, -2, of.row, of.rows, polar, not right)]
        else:
            factor = polar(factor)
    m = m - (1 - options["momentum"]) * unit.to(m.dtype) * from_columns(b, indices, size, basis)
    update = from_columns(factor, indices, size, basis)
    return (update, {"momentum_buffer": m}) if right else (update.mT, {"momentum_buffer": m.mT})


def trion_rule(name: str, advance: Any, **fixed: Any) -> Rule:
    """A registered rule that is :func:`trion_advance` with options of its own.

    Args:
        name: the rule's name.
        advance: like :func:`trion_advance`, with some of its options; docstring and annotations as for every rule.
        fixed: the options that it lacks; ``square``: its ``auto`` side of square matrices.
    """
    square = fixed.pop("square", "right")

    def resolved(options: Options, rows: int, cols: int) -> tuple[bool, int, int, int]:
        """Whether the right side is chosen, r, the length of that side, and of the other."""
        right = is_right(options["side"], rows, cols, square)
        size, other = (cols, rows) if right else (rows, cols)
        return right, resolve_rank(options["rank"], size), size, other

    def on_shards(grad: Tensor, shard: Shard, options: Options, state: State) -> Rounds | None:
        options = {**options, **fixed}
        return _on_shards(grad, shard, options, state, is_right(options["side"], shard.rows, shard.cols, square))

    def rms(rows: int, cols: int, options: Options) -> float:
        _, rank, _, other = resolved(options, rows, cols)
        return math.sqrt(min(rank, other) / (rows * cols))

    def equivariance(options: Options, rows: int, cols: int) -> Equivariance:
        options = {**options, **fixed}
        right, rank, size, other = resolved(options, rows, cols)
        whole = rank == size
        # Almost-orthogonal rescaling is tied to the coordinates of the shorter side of what is orthogonalized.
        aol = options["ns_coefficients"] == "aol4"
        mine: Group = "dct_signed_permutation" if options["basis"] == "dct" else "signed_permutation"
        theirs: Group = "orthogonal"
        if whole and not (aol and other > rank):
            mine = "orthogonal"
        if (options["selection"] == "l1" and not whole) or (aol and other <= rank):
            theirs = "signed_permutation"
        if right:
            return Equivariance(theirs, mine, breaks=() if whole else (("right", "orthogonal"),))
        return Equivariance(mine, theirs, breaks=() if whole else (("left", "orthogonal"),))

    def note(rows: int, cols: int, options: Options) -> str:
        right, rank, size, _ = resolved(options, rows, cols)
        return f"{rank} of {size} {'columns' if right else 'rows'} a step"

    def check(options: Options) -> None:
        check_momentum(options)
        check_rank(options["rank"])
        resolve_coefficients(options["ns_coefficients"], options["ns_steps"])

    return register(
        Rule(
            name=name,
            **advance_fields(advance),
            init=init_momentum,
            accumulate=accumulate_nothing,
            moving=lambda options: STILL,
            on_shards=on_shards,
            equivariance=equivariance,
            viewed=("momentum_buffer",),
            rms=rms,
            note=note,
            check=check,
        )
    )


trion = trion_rule("trion", trion_advance)
