"""Non-finite gradients: found before anything moves, so that such a step changes nothing."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from orthoopt import kernels
from orthoopt.rules import Tensors
from orthoopt.spelling import near

POLICIES = ("skip", "raise", "ignore")


def check_policy(policy: Any, where: str = "") -> None:
    """Raise ValueError unless ``policy`` is one of :data:`POLICIES`."""
    if policy not in POLICIES:
        place, hint = f" ({where})" if where else "", near(policy, POLICIES).removesuffix(".")
        raise ValueError(f"nonfinite={policy!r}{place} must be one of {', '.join(map(repr, POLICIES))}{hint}")


def host_can_read(device: torch.device) -> bool:
    """Whether the host may look at values there without waiting for a queue of kernels."""
    return device.type == "cpu"


def first_nonfinite(grads: Tensors, memo: dict[Any, Any] | None = None, alike: bool = False) -> int | None:
    """Index of the first tensor that holds an infinity or a NaN, or None; reads values on the host.

    Args:
        grads: the tensors.
        memo: for :func:`orthoopt.kernels.all_finite`.
        alike: likewise.
    """
    if not grads or kernels.all_finite(grads, memo, alike):
        return None
    return next((index for index, grad in enumerate(grads) if not torch.isfinite(grad).all()), None)


def finite_gate(grads: Tensors) -> Tensor:
    """1.0 if every value of every tensor is finite, else 0.0: a 0-d tensor on the first one's device.

    Nothing is read on the host, so nothing waits. It is float64 where the device has that: a product with it, such as
    the learning rate's, then loses nothing against a number on the host.
    """
    device = grads[0].device
    return kernels.finite_gate(grads).to(torch.float32 if device.type == "mps" else torch.float64)


def without_nonfinite(grads: Tensors, gate: Tensor) -> list[Tensor]:
    """New tensors: the gradients where ``gate`` is 1, zeros where it is 0 (a product would keep the NaNs)."""
    return [torch.where(gate > 0, grad, torch.zeros((), dtype=grad.dtype, device=grad.device)) for grad in grads]


def local_part(grad: Tensor) -> Tensor:
    """This rank's part of a distributed tensor; any other tensor itself.

    Sums of shards must not be asked for their finiteness as distributed tensors: ranks would disagree.
    """
    to_local = None if type(grad) is Tensor else getattr(grad, "to_local", None)
    return grad if to_local is None else to_local()
