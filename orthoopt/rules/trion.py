"""Trion: the polar factor of a few columns of the momentum in a cosine basis.

The momentum is looked at in a fixed orthogonal basis, its largest columns there are orthogonalized and lifted back,
and only what was used is taken off the momentum, so that the rest waits for its turn (error feedback). Source: arXiv
2505.17967; IST-DASLab/ISTA-DASLab-Optimizers, ``fft_low_rank``.
"""

import math
from typing import Any, Literal

import torch
from torch import Tensor

from orthoopt.coefficients import resolve_coefficients
from orthoopt.dct import from_columns, take_columns, to_coordinates
from orthoopt.kernels import STILL
from orthoopt.newton_schulz import NS_DTYPES, newton_schulz
from orthoopt.rules._base import Equivariance, Group, Options, Rule, State, register
from orthoopt.rules._columns import check_rank, is_right, resolve_rank, select_columns
from orthoopt.rules._momentum import accumulate_nothing, check_momentum, init_momentum
from orthoopt.rules._options import advance_fields


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
            equivariance=equivariance,
            viewed=("momentum_buffer",),
            rms=rms,
            note=note,
            check=check,
        )
    )


trion = trion_rule("trion", trion_advance)
