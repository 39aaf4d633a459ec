"""The elementwise ops of a step in plain torch: momentum into a bucket, and updates out of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Moving(NamedTuple):
    """A momentum as four numbers.

    ``buffer ← decay·buffer + weight·grad``, and the signal is ``from_grad·grad + from_buffer·buffer``, of the new
    buffer.
    """

    decay: float
    weight: float
    from_grad: float = 0.0
    from_buffer: float = 1.0

    @property
    def remembers(self) -> bool:
        """Whether there is a buffer at all; without one the signal is the gradient, times ``from_grad``."""
        return self.weight != 0 or self.from_buffer != 0

    def negated(self) -> Moving:
        """The same of the negative gradient."""
        return self._replace(weight=-self.weight, from_grad=-self.from_grad)


STILL = Moving(decay=1.0, weight=0.0, from_grad=1.0, from_buffer=0.0)
"""No momentum: the signal is the gradient."""


def momentum_into(
    grads: Sequence[Tensor],
    buffers: Sequence[Tensor],
    outs: Sequence[Tensor] | None,
    moving: Moving,
    gate: Tensor | None = None,
) -> None:
    """Move every buffer by its gradient, and write every signal where it is wanted.

    Strides are free, and may differ among the three.

    Args:
        grads: any floating dtype; never written.
        buffers: each shaped as its gradient, float32 or wider; moved in place.
        outs: each shaped as its gradient, any floating dtype; all of it is written. None: buffers move, no more.
        moving: the momentum.
        gate: 0-d, 1 or 0. At 0 no buffer changes, and gradients, which may be non-finite, count as zeros.
    """
    buffers = list(buffers)
    grads = [grad.to(buffer.dtype) for grad, buffer in zip(grads, buffers, strict=True)]
    if moving.weight < 0:  # so that the same averages serve both signs, to the bit
        grads, moving = list(torch._foreach_neg(grads)), moving.negated()
    if gate is not None:
        grads = [torch.where(gate > 0, grad, 0) for grad in grads]
        torch._foreach_mul_(buffers, 1 - (1 - moving.decay) * gate)
        torch._foreach_add_(buffers, torch._foreach_mul(grads, moving.weight * gate))
    elif _are_shares(moving.decay, moving.weight):
        torch._foreach_lerp_(buffers, grads, moving.weight)
    else:
        torch._foreach_mul_(buffers, moving.decay)
        torch._foreach_add_(buffers, grads, alpha=moving.weight)
    if outs is None:
        return
    blends = _are_shares(moving.from_grad, moving.from_buffer)
    for grad, buffer, out in zip(grads, buffers, outs, strict=True):
        if moving.from_grad == 0:
            if moving.from_buffer != 1:
                torch.mul(buffer, moving.from_buffer, out=out)
            elif out is not buffer:
                out.copy_(buffer)
        elif out.dtype != buffer.dtype:
            out.copy_(buffer.mul(moving.from_buffer).add_(grad, alpha=moving.from_grad))
        elif blends:
            torch.lerp(grad, buffer, moving.from_buffer, out=out)
        else:
            torch.mul(buffer, moving.from_buffer, out=out).add_(grad, alpha=moving.from_grad)


def subtract_updates(
    params: Sequence[Tensor],
    updates: Sequence[Tensor],
    scales: Sequence[float],
    lr: float | Tensor,
    keep: float | Tensor = 1.0,
) -> None:
    """``param ← keep·param − lr·scale·update``, in float32 or wider whatever the parameter's dtype.

    Args:
        params: any floating dtype; written in place.
        updates: each shaped as its parameter, any floating dtype.
        scales: a number a parameter.
        lr: a number, or a 0-d tensor where the parameters are.
        keep: what weight decay leaves, likewise.
    """
    wide = [param.to(torch.promote_types(param.dtype, torch.float32)) for param in params]
    if isinstance(keep, Tensor) or keep != 1:
        torch._foreach_mul_(wide, keep)
    by_scale: dict[float, tuple[list[Tensor], list[Tensor]]] = {}
    for param, update, scale in zip(wide, updates, scales, strict=True):
        same = by_scale.setdefault(scale, ([], []))
        same[0].append(param)
        same[1].append(update.to(param.dtype))
    for scale, (some, theirs) in by_scale.items():
        if isinstance(lr, Tensor):
            # foreach takes alpha as a host number, and reading one off the device would wait for it.
            torch._foreach_sub_(some, torch._foreach_mul(theirs, lr * scale))
        else:
            torch._foreach_add_(some, theirs, alpha=-(lr * scale))
    low = [(param, master) for param, master in zip(params, wide, strict=True) if master is not param]
    if low:
        torch._foreach_copy_([param for param, _ in low], [master for _, master in low])


def _are_shares(one: float, other: float) -> bool:
    """Whether two weights make an average, which one pass of ``lerp`` takes."""
    return math.isclose(one + other, 1.0, rel_tol=1e-15) and one >= 0 and other >= 0
