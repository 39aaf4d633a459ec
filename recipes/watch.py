"""Watches the loss: steps where it is not finite are counted and told, and a run of them ends the training."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import TrainerCallback


class Seen(NamedTuple):
    """What came of the losses since the last log, over all processes."""

    on_end: int
    """Steps on end, up to this one, whose loss was not finite."""
    steps: int
    """Steps since the last log whose loss was not finite."""
    finite_share: float
    """Share of the micro-batches since the last log whose loss was finite."""


class LossWatch(TrainerCallback):
    """Counts on the device, so that nobody waits for it between logs."""

    def __init__(self) -> None:
        self._finite: Tensor | None = None  # of this step's micro-batches so far
        self._counts: Tensor | None = None  # on end, steps, finite micro-batches, micro-batches

    def see(self, loss: Tensor) -> Tensor:
        """Take note of a micro-batch's loss; returns it, or 0 where it is not finite, which a mean can be made of."""
        loss = loss.detach()
        finite = torch.isfinite(loss).all()
        if self._counts is None:
            self._counts = torch.zeros(4, device=loss.device)
        self._counts[2] += finite
        self._counts[3] += 1
        self._finite = finite if self._finite is None else self._finite & finite
        return torch.where(finite, loss, torch.zeros_like(loss))

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        """Count the step."""
        if self._finite is not None and self._counts is not None:
            bad = ~self._finite
            self._counts[0] = (self._counts[0] + 1) * bad
            self._counts[1] += bad
            self._finite = None

    def since_last(self, gather: Any) -> Seen:
        """What was seen since the last call; `gather` brings a row `(1, 4)` of every process together."""
        if self._counts is None:
            return Seen(0, 0, 1.0)
        rows = gather(self._counts[None])
        self._counts[1:] = 0
        on_end, steps = rows[:, :2].amax(0).tolist()
        finite, seen = rows[:, 2:].sum(0).tolist()
        return Seen(int(on_end), int(steps), finite / seen if seen else 1.0)
