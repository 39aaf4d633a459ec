"""Layers whose outputs are several things at once, by the tables of what is known."""

from __future__ import annotations

from orthoopt.census import Candidate
from orthoopt.fused_kernels import FUSED_KERNELS
from orthoopt.fused_layers import FUSED
from orthoopt.layouts import Layout, blocks
from orthoopt.naming import FUSED_GATE_UP

# Zamba 2 adapts one shared layer differently at each place: lists of Sequential(Linear, Linear).
_ADAPTED = frozenset(f"{name}_adapter_list" for name in FUSED_GATE_UP)


def fused_outputs(candidate: Candidate, rows: int) -> Layout | None:
    """View and words for a layer that one of the entries knows; None for every other."""
    if candidate.last == "1" and any(part in _ADAPTED for part in candidate.path) and rows % 2 == 0:
        return blocks([rows // 2] * 2), "the second half of an adapter, added to gate and up fused in its rows"
    return next((layout for entry in FUSED if (layout := entry.layout(candidate, rows)) is not None), None)


def fused_kernel(candidate: Candidate) -> Layout | None:
    """Likewise for the kernel of a convolution, seen as ``(out, in * k)``."""
    rows = candidate.shape[0]
    return next((layout for entry in FUSED_KERNELS if (layout := entry.layout(candidate, rows)) is not None), None)
