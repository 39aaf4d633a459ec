"""The elementwise ops of a step in plain torch: momentum into a bucket, and updates out of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Moving(NamedTuple):
    """A momentum as four numbers.

    ``buffer ← decay·buffer + weight·grad``, and the signal is ``from_grad·grad + from_buffer·buffer``, of the new buffer.
    """

    decay: float
    weight: float
    from_grad: float = 0.0
    from_buffer: float = 1.0


def momentum_into(
    grads: Sequence[Tensor],
    buffers: Sequence[Tensor],
    outs: Sequence[Tensor],
    moving: Moving,
    gate: Tensor | None = None,
) -> None:
    """Move every buffer by its gradient, and write every signal where it is wanted.

    Args:
        grads: any floating dtype; never written.
        buffers: each shaped as its gradient, float32 or wider; moved in place.
        outs: each shaped as its gradient, any floating dtype; all of it is written.
        moving: the momentum.
        gate: 0-d, 1 or 0. At 0 no buffer changes, and gradients, which may be non-finite, count as zeros.

    Strides are free, and differ among the three.
    """
    for grad, buffer, out in zip(grads, buffers, outs, strict=True):
        grad = grad.to(buffer.dtype)
        if gate is None:
            buffer.mul_(moving.decay).add_(grad, alpha=moving.weight)
        else:
            grad = torch.where(gate > 0, grad, 0)
            buffer.mul_(1 - (1 - moving.decay) * gate).add_(grad * (moving.weight * gate))
        signal = buffer if moving.from_buffer == 1 else buffer * moving.from_buffer
        out.copy_(signal if moving.from_grad == 0 else torch.add(signal, grad, alpha=moving.from_grad))


def subtract_updates(
    params: Sequence[Tensor],
    updates: Sequence[Tensor],
    scales: Sequence[float],
    lr: float | Tensor,
    keep: float | Tensor,
) -> None:
    """``param ← keep·param − lr·scale·update``, in float32 or wider whatever the parameter's dtype.

    Args:
        params: any floating dtype; written in place.
        updates: each shaped as its parameter, any floating dtype.
        scales: a number a parameter.
        lr: a number, or a 0-d tensor where the parameters are.
        keep: what weight decay leaves, likewise.
    """
    for param, update, scale in zip(params, updates, scales, strict=True):
        wide = param.to(torch.promote_types(param.dtype, torch.float32))
        param.copy_(wide * keep - update.to(wide.dtype) * (lr * scale))
