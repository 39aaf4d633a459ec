"""Whether a step may happen: only if every gradient is finite, and then everywhere."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from orthoopt import nonfinite
from orthoopt._work import Work
from orthoopt.nonfinite import finite_gate, first_nonfinite, local_part

if TYPE_CHECKING:
    from orthoopt.distributed.step import Step


class Admission:
    """Looks at the gradients of step after step, as each group's ``nonfinite`` says."""

    def __init__(self) -> None:
        self.skipped: int | Tensor = 0
        """How many steps have been made empty; a tensor where the host does not wait to know."""
        self._memo: dict[Any, Any] = {}

    def admit(self, work: Sequence[Work], team: Step | None) -> dict[torch.device, Tensor] | None:
        """Decide whether the step may happen.

        Args:
            work: what the step has to do.
            team: the ranks that must decide alike; None in one process.

        Returns:
            None if it may not; else a gate for each device, 0-d, 1 or 0, where the host must not wait to know, and
            nothing where it has looked.

        Raises:
            FloatingPointError: a bad gradient under ``nonfinite="raise"``, by name where it is on this rank.
        """
        raising = any(part.group["nonfinite"] == "raise" for part in work)
        seen: list[Tensor] = []
        names: list[str] = []
        unseen: dict[torch.device, list[Tensor]] = {}
        for part in work:
            if part.group["nonfinite"] == "ignore":
                continue
            device = part.device
            grads = [grad if type(grad) is Tensor else local_part(grad) for grad in part.grads]
            if raising or nonfinite.host_can_read(device):
                seen += grads
                names += part.names
            else:
                unseen.setdefault(device, []).extend(grads)
        index = first_nonfinite(seen, self._memo, all(part.alike for part in work)) if seen else None
        bad = None if index is None else names[index]
        gates = [finite_gate(grads) for grads in unseen.values()]
        gate = torch.stack([one.to(gates[0].device, non_blocking=True) for one in gates]).amin() if gates else None
        is_bad = bad is not None
        if team is not None:
            is_bad, gate = team.agree(is_bad, gate, raising)
        if is_bad:
            name = bad or "a parameter on another rank"
            if raising:
                raise FloatingPointError(f"the gradient of {name} is not finite")
            self._report_skip(name)
            return None
        if gate is None:
            return {}
        if isinstance(self.skipped, Tensor) and self.skipped.device == gate.device:
            self.skipped += 1 - gate  # in place: a captured step counts at every replay
        else:
            self.skipped = self.skipped + (1 - gate)
        # Parameters that the host could check skip along: a step happens everywhere or nowhere.
        devices = {part.device for part in work}
        return {device: gate.to(device, non_blocking=not nonfinite.host_can_read(device)) for device in devices}

    def _report_skip(self, name: str) -> None:
        self.skipped = count = int(self.skipped) + 1
        if count in (1, 10, 100) or count % 1000 == 0:
            warnings.warn(
                f"the gradient of {name} is not finite: this step changed nothing ({count} skipped so far)",
                RuntimeWarning,
                stacklevel=4,
            )
