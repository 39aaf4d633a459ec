"""Non-finite gradients: found before anything moves, so that such a step changes nothing."""

from __future__ import annotations

import torch
from torch import Tensor

from orthoopt.rules import Tensors


def host_can_read(device: torch.device) -> bool:
    """Whether the host may look at values there without waiting for a queue of kernels."""
    return device.type == "cpu"


def first_nonfinite(grads: Tensors) -> int | None:
    """Index of the first tensor that holds an infinity or a NaN, or None; reads values on the host.

    A finite sum proves that every term is finite, and is one pass at memory speed. The sum of finite values may
    itself overflow, so only a suspicious one is looked at elementwise.
    """
    for index, grad in enumerate(grads):
        total = grad.sum(dtype=torch.promote_types(grad.dtype, torch.float32))
        if not torch.isfinite(total) and not torch.isfinite(grad).all():
            return index
    return None


def finite_gate(grads: Tensors) -> Tensor:
    """1.0 if every value of every tensor is finite, else 0.0: a 0-d tensor on the first one's device.

    Nothing is read on the host, so nothing waits. It is float64 where the device has that: a product with it, such as
    the learning rate's, then loses nothing against a number on the host.
    """
    device = grads[0].device
    dtype = torch.float32 if device.type == "mps" else torch.float64
    peaks = [peak.to(device, dtype, non_blocking=True) for peak in torch._foreach_norm(grads, torch.inf)]
    return torch.isfinite(torch.stack(peaks)).all().to(dtype)


def without_nonfinite(grads: Tensors, gate: Tensor) -> list[Tensor]:
    """New tensors: the gradients where ``gate`` is 1, zeros where it is 0 (a product would keep the NaNs)."""
    return [torch.where(gate > 0, grad, torch.zeros((), dtype=grad.dtype, device=grad.device)) for grad in grads]
