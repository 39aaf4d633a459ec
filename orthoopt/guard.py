"""A limit on how long an update may be, in multiples of what its rule promises.

Every rule says how long its update of a full-rank matrix is (``Rule.rms``), and a scale makes 0.2, or whatever it is
for, out of that. So one number serves a whole plan: ``max_update_rms=3`` lets no parameter move more than three times
as far as its rule means it to. The promise of an elementwise rule is 1, the length of Adam's first update, under
which its later ones stay but for a constant near one. Rules whose updates grow with the gradient (``polargrad``,
``ssd``, ν of the symmetry rules) promise the length without that factor: the limit is on the factor there.

A parameter with a longer update, or one that is not finite, skips its step alone: neither it nor its state changes,
nothing decays, and the others go on. ``large_update="raise"`` looks at all updates before anything at all is written,
for which it holds those of all groups that have it.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from orthoopt.nonfinite import host_can_read
from orthoopt.scale import scale_factor
from orthoopt.staging import Entry


class LargeUpdate(NamedTuple):
    """What a limit has kept from a parameter."""

    parameter: str
    rule: str
    role: str
    rms: float
    """Root mean square of the last update that was too long, scale included and learning rate not."""
    limit: float
    """What it may have been: ``max_update_rms`` times what the rule promises."""
    step: int
    """In which step that was, of this object's, from 1."""
    times: int
    """How many steps of this parameter have been skipped for it."""

    def __str__(self) -> str:
        return (
            f"the update of {self.parameter} (rule {self.rule!r}, role {self.role!r}) has RMS {self.rms:.4g}, "
            f"the limit is {self.limit:.4g}, in step {self.step}"
        )


class _Seen(NamedTuple):
    """What is known of one parameter."""

    parameter: str
    rule: str
    role: str
    figures: Tensor
    """(rms, limit, step, times), where the update was."""


class Guard:
    """Looks at updates before they take effect, and remembers what it kept from whom."""

    def __init__(self) -> None:
        self._seen: dict[Tensor, _Seen] = {}

    def judge(self, entries: Sequence[Entry], step: int) -> None:
        """Say of every entry whose group has a limit whether it is allowed.

        Args:
            entries: between the halves of their steps; ``allowed`` is written.
            step: the number of this step.

        Raises:
            FloatingPointError: a long update under ``large_update="raise"``, with its report; waits for the device.
        """
        for entry in entries:
            group, negative = entry.part.group, entry.negative
            if group["max_update_rms"] is None or negative is None or negative.numel() == 0:
                continue
            limit = group["max_update_rms"] * promised_rms(entry)
            rms = _over_shards(torch.linalg.vector_norm(negative)) / math.sqrt(negative.numel())
            raising = group["large_update"] == "raise"
            if not (raising or host_can_read(rms.device)):
                self._judge_on_device(entry, rms, limit, step)
                continue
            if float(rms) <= limit:
                continue
            entry.allowed = False
            if raising:
                who = (entry.name, entry.part.rule.name, group.get("role", "unknown"))
                raise FloatingPointError(f"{LargeUpdate(*who, float(rms), limit, step, 1)}; nothing was changed")
            figures = self._figures_of(entry, rms)
            figures.copy_(figures.new_tensor([float(rms), limit, step, float(figures[3]) + 1]))
            _report(_read(self._seen[entry.param]))

    def _judge_on_device(self, entry: Entry, rms: Tensor, limit: float, step: int) -> None:
        allowed, figures = rms <= limit, self._figures_of(entry, rms)  # a NaN is not allowed
        known = [rms.new_full((), value, dtype=figures.dtype) for value in (limit, step)]
        seen = torch.stack([rms.to(figures.dtype), *known, figures[3] + 1])
        # In place, so that a captured step counts at every replay; its number stays that of the recording.
        figures.copy_(torch.where(allowed, figures, seen))
        entry.allowed = allowed.to(figures.dtype)

    def _figures_of(self, entry: Entry, rms: Tensor) -> Tensor:
        if entry.param not in self._seen:
            wide = torch.float32 if rms.device.type == "mps" else torch.float64
            role = entry.part.group.get("role", "unknown")
            figures = torch.zeros(4, dtype=wide, device=rms.device)
            self._seen[entry.param] = _Seen(entry.name, entry.part.rule.name, role, figures)
        return self._seen[entry.param].figures

    def report(self) -> list[LargeUpdate]:
        """What was kept from whom so far; waits for the device."""
        return [update for update in map(_read, self._seen.values()) if update.times]


def _read(seen: _Seen) -> LargeUpdate:
    rms, limit, step, times = seen.figures.tolist()
    return LargeUpdate(seen.parameter, seen.rule, seen.role, rms, limit, int(step), int(times))


def promised_rms(entry: Entry) -> float:
    """Root mean square of the update that a parameter's rule promises, over all of its matrices."""
    part = entry.part
    if part.rule.rms is None:
        return 1.0
    total = squares = 0.0
    for shape in part.view.piece_shapes(tuple(entry.param.shape)):
        rms = part.rule.rms(shape[-2], shape[-1], part.options)
        promise = rms * scale_factor(part.group["scale"], shape[-2], shape[-1], rms)
        total += math.prod(shape)
        squares += math.prod(shape) * promise**2
    return math.sqrt(squares / total) if total else 0.0


def _over_shards(norm: Any) -> Tensor:
    """A norm over all shards."""
    full = getattr(norm, "full_tensor", None)
    return norm if full is None else full()


def _report(update: LargeUpdate) -> None:
    if update.times in (1, 10, 100) or update.times % 1000 == 0:
        warnings.warn(
            f"{update}: it skipped this step alone ({update.times} of its steps so far)", RuntimeWarning, stacklevel=5
        )


def must_hold_back(groups: Sequence[Mapping[str, Any]]) -> bool:
    """Whether any group must know of all updates before one takes effect."""
    return any(group["max_update_rms"] is not None and group["large_update"] == "raise" for group in groups)
