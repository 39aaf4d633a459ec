"""One small reduction a step: whether a gradient was bad anywhere, and whether ranks are about to do the same.

Ranks that exchange different things would wait for each other for ever. So each brings a number that stands for what it
is about to do; where the largest and the smallest differ, nobody goes on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor


class Verdict(NamedTuple):
    """What the ranks know together."""

    bad: bool
    """Whether a host has seen a bad gradient; only where values were read."""
    unsure: Tensor | None
    """0-d, 1 where a gradient was bad, 0 where not; where no host has looked."""
    agreed: bool
    """Whether all ranks bring the same; True too where nobody looked."""


class Agreement:
    """What ranks ask each other at every step.

    Args:
        groups: process groups, reduced over one after the other.
        device: where their backend takes tensors.
    """

    BYTES = 40
    """Of the reduced vector."""

    def __init__(self, groups: Sequence[Any], device: torch.device) -> None:
        self.groups, self.device = list(groups), device
        self.last: int | None = None
        """The number of the last step in which all were known to bring the same."""

    def reach(
        self, code: int, bad: bool, unsure: Tensor | None, evidence: Tensor | float = 0.0, read: bool = False
    ) -> Verdict:
        """Reduce over all ranks.

        On accelerators values are read, and the host waits, where this rank's number is new or ``read`` says so. A rank
        whose number is not new cannot know that another's is; but that one looks, and raises.

        Args:
            code: what this rank is about to do, at most 52 bits.
            bad: whether this host has seen a bad gradient.
            unsure: 0-d, 1 where a gradient on an accelerator is bad.
            evidence: a number that must be the same on all ranks too.
            read: look at the values.
        """
        vector = torch.zeros(Agreement.BYTES // 8, dtype=torch.float64)
        vector[0], vector[1], vector[2] = float(bad), float(code), -float(code)
        vector = vector.to(self.device, non_blocking=True)
        if unsure is not None:
            vector[0] = torch.maximum(vector[0], unsure.to(self.device, vector.dtype, non_blocking=True))
        if isinstance(evidence, Tensor) or evidence != 0:
            vector[3] = evidence
            vector[4] = -vector[3]
        for group in self.groups:
            dist.all_reduce(vector, dist.ReduceOp.MAX, group)
        if self.device.type != "cpu" and code == self.last and not read:
            return Verdict(False, vector[0], True)
        worst, most, least, high, low = vector.tolist()
        agreed = most == -least and high == -low
        self.last = code if agreed else None
        if unsure is None or self.device.type == "cpu":
            return Verdict(worst > 0, unsure if unsure is None else vector[0].to(unsure.device), agreed)
        return Verdict(False, vector[0], agreed)


def code_of(text: str) -> int:
    """A number of 52 bits that stands for a text, the same in every process."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()) >> 12


def fingerprint(grads: Sequence[Tensor]) -> Tensor:
    """A number that differs where gradients do; 0-d, finite."""
    sums = [grad.double().sum() * (1 + index) for index, grad in enumerate(grads)]
    return torch.stack([one.to(sums[0].device) for one in sums]).sum().nan_to_num(0.0, 0.0, 0.0)
