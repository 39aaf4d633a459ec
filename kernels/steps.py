"""The elementwise ops of a step, each by the fastest implementation that takes its tensors.

On CPUs compiled loops (:mod:`orthoopt.kernels.native_steps`), on GPUs Triton kernels, elsewhere and for whatever those
do not take the reference.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from orthoopt.kernels import reference_steps
from orthoopt.kernels.reference_steps import Moving


def momentum_into(
    grads: Sequence[Tensor],
    buffers: Sequence[Tensor],
    outs: Sequence[Tensor] | None,
    moving: Moving,
    gate: Tensor | None = None,
) -> None:
    """Move every buffer by its gradient, and write every signal; see the reference."""
    reference_steps.momentum_into(grads, buffers, outs, moving, gate)


def subtract_updates(
    params: Sequence[Tensor],
    updates: Sequence[Tensor],
    scales: Sequence[float],
    lr: float | Tensor,
    keep: float | Tensor = 1.0,
) -> None:
    """``param ← keep·param − lr·scale·update``; see the reference."""
    reference_steps.subtract_updates(params, updates, scales, lr, keep)


def row_norm_step(params: Sequence[Tensor], *arguments: Any, **options: Any) -> bool:
    """A whole step of the row_norm rule; see the implementations. False where there is none for these tensors."""
    return False


def auon_step(params: Sequence[Tensor], *arguments: Any, **options: Any) -> bool:
    """A whole step of the auon rule; see the implementations. False where there is none for these tensors."""
    return False
