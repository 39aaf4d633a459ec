"""Weight decay: how a parameter shrinks beside its update, by the mode its group names.

=============  ========================================================================================
``decoupled``  W ← (1 − lr·λ)·W before the update (arXiv 1711.05101)
``independent``  W ← (1 − (lr/lr₀)·λ)·W, lr₀ the learning rate before its schedule: λ does not grow with the
               learning rate that was chosen (arXiv 2309.14322, section 3.2)
``cautious``   W ← W − lr·λ·W only in the entries that the update makes smaller too (arXiv 2510.12402)
=============  ========================================================================================
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from orthoopt.spelling import near

MODES = ("decoupled", "independent", "cautious")


def check_mode(mode: Any, where: str = "") -> None:
    """Raise ValueError unless ``mode`` is one of :data:`MODES`."""
    if mode not in MODES:
        place, hint = f" ({where})" if where else "", near(mode, MODES).removesuffix(".")
        raise ValueError(f"weight_decay_mode={mode!r}{place} must be one of {', '.join(map(repr, MODES))}{hint}")


class Decay(NamedTuple):
    """What weight decay does in this step."""

    keep: float | Tensor = 1.0
    """What is left of each parameter before its update."""
    cautious: float | Tensor = 0.0
    """lr·λ if the mode is cautious, for :func:`shrink_cautiously`; else 0."""
    coefficient: float = 0.0
    """λ where ``keep`` is 1 − lr·λ, for kernels that take that; else 0."""

    @property
    def is_cautious(self) -> bool:
        """Whether updates decide where parameters shrink."""
        return isinstance(self.cautious, Tensor) or self.cautious != 0


def decay_of(group: Mapping[str, Any], lr: float | Tensor) -> Decay:
    """What a group's weight decay does in this step.

    Args:
        group: the param group with ``weight_decay``, ``weight_decay_mode`` and, once a scheduler is there,
            ``initial_lr``.
        lr: the learning rate of this step; a tensor that is 0 where the step must not happen.
    """
    decay = group["weight_decay"]
    if decay == 0:
        return Decay()
    if group["weight_decay_mode"] == "cautious":
        return Decay(cautious=lr * decay)
    if group["weight_decay_mode"] == "decoupled":
        return Decay(1 - lr * decay, coefficient=decay)
    return Decay(1 - _share_of_schedule(lr, group.get("initial_lr")) * decay)


def shrink_cautiously(param: Tensor, update: Tensor, amount: float | Tensor) -> None:
    """``W ← W − amount·W`` where W and the update that is subtracted have one sign."""
    param.sub_(torch.where(update * param > 0, param, 0) * amount)


def _share_of_schedule(lr: float | Tensor, initial: float | Tensor | None) -> float | Tensor:
    """lr/lr₀; without a scheduler 1, but 0 at lr = 0, where nothing may move."""
    if initial is not None and not (isinstance(initial, float | int) and initial == 0):
        if isinstance(initial, Tensor) and isinstance(lr, Tensor):
            initial = initial.to(lr.device, non_blocking=True)
        return lr / initial
    return (lr != 0).to(lr.dtype) if isinstance(lr, Tensor) else float(lr != 0)
