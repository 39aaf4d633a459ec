"""DCT-AdamW: Adam's moments for a few cosine coordinates of the gradient, so its state is a fraction of AdamW's.

The largest columns of the gradient in a fixed cosine basis get moments; now and then they are chosen anew, and the
moments of columns that stay move with them. Source: arXiv 2505.17967; IST-DASLab/ISTA-DASLab-Optimizers,
``dct_adamw.py``, whose quantized error feedback is not taken over.
"""

import math
from typing import Literal

import torch
from torch import Tensor

from orthoopt.dct import from_columns, in_columns, take_columns, to_coordinates
from orthoopt.kernels import STILL
from orthoopt.nonfinite import host_can_read
from orthoopt.rules._base import Equivariance, Group, Options, Rounds, Rule, Shard, State, register
from orthoopt.rules._columns import (
    check_rank,
    is_right,
    keep_slots,
    largest_columns,
    norms_of_part,
    resolve_rank,
    select_columns,
)
from orthoopt.rules._exchange import Gather
from orthoopt.rules._momentum import accumulate_nothing
from orthoopt.rules._options import advance_fields
from orthoopt.rules._shards import OfCols, totals
from orthoopt.rules.adamw import check_adamw


def dct_adamw_advance(
    grad: Tensor,
    state: State,
    *,
    betas: tuple[float, float] = (0.9, 0.95),
    eps: float = 1e-8,
    rank: int | float = 0.25,
    update_interval: int = 1,
    selection: Literal["l2", "l1"] = "l2",
    basis: Literal["dct", "identity"] = "dct",
    side: Literal["auto", "left", "right"] = "auto",
    error_feedback: bool = False,
    rotate: bool = True,
) -> tuple[Tensor, State]:
    """AdamW on the gradient's largest columns in a cosine basis (DCT-AdamW).

    A = G + E;  at t = 1 and t mod T = 0: idx ← top-r of ‖(A·D)_j‖, and moments move along;  a = A·D[:, idx];
    E ← A − a·D[:, idx]ᵀ;  m, v: Adam's moments of a;  U = m̂/(√v̂ + eps)·D[:, idx]ᵀ;  for the left side the same of
    the transposes.

    Args:
        grad: G, ``(..., rows, cols)``, leading dimensions a batch.
        state: see :func:`init_matrix`; with ``error_feedback`` also E under that key, ``(..., rows, cols)``.
        betas: decay of m and of v.
        eps: added to √v̂; absolute, as in AdamW.
        rank: r, columns kept: a whole number, or a fraction of the side's length, rounded up. 1 is one, 1.0 is all.
        update_interval: T, how often columns are chosen, in steps of the matrix.
        selection: the norm by which columns are chosen; ``l2`` keeps at least r/k of the squared Frobenius norm.
        basis: D: cosines (the DCT-II), or the coordinates themselves.
        side: choose columns (``right``) or rows (``left``); ``auto``: of the shorter side, columns if square.
        error_feedback: add what was left out of one gradient to the next.
        rotate: moments follow their columns, and a column that is new begins with none. Without it they stay in their
            slots whatever columns these stand for, as published.

    Returns:
        The update, ``(..., rows, cols)``, of rank at most r, and the new state.
    """
    right = is_right(side, grad.shape[-2], grad.shape[-1])
    a_whole = grad + state["error_feedback"] if error_feedback else grad
    a_whole = a_whole.to(torch.promote_types(a_whole.dtype, torch.float32))
    x = a_whole if right else a_whole.mT
    m, v = (state[key].to(x.dtype) for key in ("exp_avg", "exp_avg_sq"))
    m, v = (m, v) if right else (m.mT, v.mT)
    size, slots = x.shape[-1], m.shape[-1]

    step, indices, counts = state["step"] + 1, state["indices"], state["slot_step"]
    due = (step == 1) | (step % update_interval == 0)
    # Which matrices are due is not asked of a device that would have to be waited for.
    if not host_can_read(x.device) or bool(due.any()):
        coordinates = to_coordinates(x, basis)
        chosen = torch.where(due.unsqueeze(-1), select_columns(coordinates, slots, selection), indices)
        m, v, counts = _follow(m, v, counts, indices, chosen) if rotate else (m, v, counts)
        indices = chosen
        a = take_columns(coordinates, indices)
    else:
        a = in_columns(x, indices, basis)

    adam, m, v, counts = _adam(a, m, v, counts, betas, eps)
    update = from_columns(adam, indices, size, basis)
    new = _new_state(step, m, v, indices, counts, right)
    if error_feedback:
        rest = x - from_columns(a, indices, size, basis)
        new["error_feedback"] = rest if right else rest.mT
    return update if right else update.mT, new


def _on_shards(grad: Tensor, shard: Shard, options: Options, state: State) -> Rounds | None:
    """Where columns of the chosen side are whole: their norms are summed, and r of them gathered on every rank.

    Every rank moves the moments of all rows then, for all have them; gradient and error feedback stay where they are.
    """
    right = is_right(options["side"], shard.rows, shard.cols)
    of = shard if right else shard.mT
    return None if of.cut_cols else _in_rounds(grad, of, options, state, right)


def _in_rounds(grad: Tensor, of: Shard, options: Options, state: State, right: bool) -> Rounds:
    basis, size = options["basis"], of.cols
    x = grad + state["error_feedback"] if options["error_feedback"] else grad
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    m, v = (state[key].to(x.dtype) for key in ("exp_avg", "exp_avg_sq"))
    x, m, v = (x, m, v) if right else (x.mT, m.mT, v.mT)
    step, indices, counts = state["step"] + 1, state["indices"], state["slot_step"]
    due = (step == 1) | (step % options["update_interval"] == 0)
    if not host_can_read(x.device) or bool(due.any()):
        coordinates = to_coordinates(x, basis)
        (norms,) = yield from totals(of, [OfCols(norms_of_part(coordinates, options["selection"]))])
        chosen = largest_columns(norms.squeeze(-2), m.shape[-1])
        chosen = torch.where(due.unsqueeze(-1), chosen, indices)
        m, v, counts = _follow(m, v, counts, indices, chosen) if options["rotate"] else (m, v, counts)
        indices = chosen
        a = take_columns(coordinates, indices)
    else:
        a = in_columns(x, indices, basis)
    whole = a
    if of.cut_rows:
        (whole,) = yield [Gather(a, -2, of.row, of.rows, not right)]
    adam, m, v, counts = _adam(whole, m, v, counts, options["betas"], options["eps"])
    rows = a.shape[-2]
    own = adam.narrow(-2, of.row if rows else 0, rows)
    update = from_columns(own, indices, size, basis)
    new = _new_state(step, m, v, indices, counts, right)
    if options["error_feedback"]:
        rest = x - from_columns(a, indices, size, basis)
        new["error_feedback"] = rest if right else rest.mT
    return update if right else update.mT, new


def _follow(m: Tensor, v: Tensor, counts: Tensor, old: Tensor, new: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Moments and counts of the slots for another choice of columns."""
    origin, kept = keep_slots(old, new)
    return _moved(m, origin, kept), _moved(v, origin, kept), torch.where(kept, counts.gather(-1, origin), 0)


def _adam(
    a: Tensor, m: Tensor, v: Tensor, counts: Tensor, betas: tuple[float, float], eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Adam's quotient of coordinates ``(..., rows, r)``, and its new moments and counts."""
    beta1, beta2 = betas
    m = m.lerp(a, 1 - beta1)
    v = beta2 * v + (1 - beta2) * a.square()
    # Each slot counts its own steps: with the matrix's count a late column would begin at (1−β₁)/√(1−β₂) times lr.
    counts = counts + 1
    correction1, correction2 = (_correction(counts, beta, m.dtype).unsqueeze(-2) for beta in betas)
    root = (v / correction2).sqrt() + eps
    return m / correction1 / root.where(root > 0, 1), m, v, counts


def _new_state(step: Tensor, m: Tensor, v: Tensor, indices: Tensor, counts: Tensor, right: bool) -> State:
    return {
        "step": step,
        "exp_avg": m if right else m.mT,
        "exp_avg_sq": v if right else v.mT,
        "indices": indices,
        "slot_step": counts,
    }


def _moved(moment: Tensor, origin: Tensor, kept: Tensor) -> Tensor:
    """Columns of ``(..., rows, r)`` in their new slots, zeros where nothing was kept."""
    return torch.where(kept.unsqueeze(-2), take_columns(moment, origin), 0)


def _correction(counts: Tensor, beta: float, dtype: torch.dtype) -> Tensor:
    """1 − βᶜ, exact to rounding also where βᶜ is near one, which float32 powers would not be."""
    counts = counts.to(dtype)
    return torch.ones_like(counts) if beta == 0 else -torch.expm1(counts * math.log(beta))


def init_matrix(matrix: Tensor, options: Options) -> State:
    """State of a batch of matrices ``(..., rows, cols)``, all zeros.

    ``exp_avg`` and ``exp_avg_sq``, ``(..., rows, r)`` on the right side and ``(..., r, cols)`` on the left; ``step``,
    ``(...)``; ``indices``, ``(..., r)``, int64, ascending: the column that each slot stands for; ``slot_step``,
    ``(..., r)``: for how many steps it has.
    """
    *batch, rows, cols = matrix.shape
    right = is_right(options["side"], rows, cols)
    rank = resolve_rank(options["rank"], cols if right else rows)
    moment = (*batch, rows, rank) if right else (*batch, rank, cols)
    return {
        "step": matrix.new_zeros(batch, dtype=torch.float32),
        "exp_avg": matrix.new_zeros(moment),
        "exp_avg_sq": matrix.new_zeros(moment),
        "indices": matrix.new_zeros((*batch, rank), dtype=torch.int64),
        "slot_step": matrix.new_zeros((*batch, rank), dtype=torch.float32),
    }


def _init(param: Tensor, options: Options) -> State:
    if not options["error_feedback"]:
        return {}
    return {"error_feedback": torch.zeros_like(param, memory_format=torch.preserve_format)}


def _rms(rows: int, cols: int, options: Options) -> float:
    size = cols if is_right(options["side"], rows, cols) else rows
    return math.sqrt(resolve_rank(options["rank"], size) / size)


def _equivariance(options: Options, rows: int, cols: int) -> Equivariance:
    right = is_right(options["side"], rows, cols)
    size = cols if right else rows
    mine: Group = "dct_signed_permutation" if options["basis"] == "dct" else "signed_permutation"
    if not options["rotate"] and resolve_rank(options["rank"], size) < size:
        mine = "none"  # which moments meet in a slot depends on the order of the columns
    breaks: tuple[tuple[Literal["left", "right"], Group], ...] = (("left", "orthogonal"), ("right", "orthogonal"))
    if right:
        return Equivariance("signed_permutation", mine, breaks)
    return Equivariance(mine, "signed_permutation", breaks)


def _note(rows: int, cols: int, options: Options) -> str:
    right = is_right(options["side"], rows, cols)
    size = cols if right else rows
    return f"moments of {resolve_rank(options['rank'], size)} of {size} {'columns' if right else 'rows'}"


def _check(options: Options) -> None:
    check_adamw(options)
    check_rank(options["rank"])
    if options["update_interval"] < 1:
        raise ValueError(f"update_interval must be at least 1 step, got {options['update_interval']!r}")


dct_adamw = register(
    Rule(
        name="dct_adamw",
        **advance_fields(dct_adamw_advance),
        init=_init,
        on_shards=_on_shards,
        accumulate=accumulate_nothing,
        moving=lambda options: STILL,
        equivariance=_equivariance,
        init_matrix=init_matrix,
        viewed=("error_feedback",),
        rms=_rms,
        scale_invariant=lambda options: False,
        default_scale="none",
        note=_note,
        check=_check,
    )
)
