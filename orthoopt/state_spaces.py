"""Selective state space layers as state-spaces/mamba and what grew out of it write them, by the sizes they state."""

from __future__ import annotations

from torch import nn

from orthoopt.census import Candidate, stated
from orthoopt.heads import is_dense
from orthoopt.layers import Verdict, owner_words
from orthoopt.layouts import blocks


def selective_state_space(candidate: Candidate) -> Verdict | None:
    """Mamba-1's in_proj (x, z) and x_proj (dt, B, C); Mamba-2's in_proj (z, x, B, C, dt); learned first states."""
    mixer = candidate.owner if candidate.leaf == "init_states" else _mixer(candidate)
    if mixer is None or not hasattr(mixer, "A_log") or _size(mixer, "d_inner") == 0:
        return None
    if candidate.leaf == "init_states":
        return Verdict("vector", "vector", "init_states are the states a recurrence starts from, used entry by entry")
    if candidate.last not in ("in_proj", "x_proj") or not is_dense(candidate):
        return None
    rows = candidate.shape[0]
    sizes, words = _in_proj(mixer, rows) if candidate.last == "in_proj" else _x_proj(mixer)
    shown = f"{owner_words(candidate)} {candidate.last}"
    if sum(sizes) != rows or min(sizes) < 2:
        return Verdict("hidden", "matrix", f"{shown}: fused in an order of its own, seen as one matrix")
    return Verdict("hidden", blocks(sizes), f"{shown}: {words} fused in its rows")


def _mixer(candidate: Candidate) -> nn.Module | None:
    return candidate.modules[1] if len(candidate.modules) > 1 else None


def _size(mixer: nn.Module, name: str) -> int:
    value = stated(mixer, name)
    return value if isinstance(value, int) else 0


def _in_proj(mixer: nn.Module, rows: int) -> tuple[list[int], str]:
    inner = _size(mixer, "d_inner")
    if hasattr(mixer, "dt_rank"):
        return [inner, inner], "x, z"
    state = _size(mixer, "ngroups") * _size(mixer, "d_state")
    heads = _size(mixer, "nheads")
    within = _size(mixer, "d_ssm") or inner
    mlp, left = divmod(rows - 2 * within - 2 * state - heads, 2)  # the rest of the features pass through a gated mlp
    if mlp < 0 or left:
        return [0], ""
    sizes, words = [within, within, state, state, heads], "z, x, B, C, dt"
    return ([mlp, mlp, *sizes], f"an mlp's gate and value, {words}") if mlp else (sizes, words)


def _x_proj(mixer: nn.Module) -> tuple[list[int], str]:
    state = _size(mixer, "d_state")
    return [_size(mixer, "dt_rank"), state, state], "dt, B, C"
