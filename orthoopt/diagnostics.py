"""What updates are like, role by role, as numbers for a logger.

::

    with orthoopt.recording(opt):
        opt.step()
    wandb.log(opt.diagnostics())          # {"attention/update_rms": 0.197, ...}

Nothing is computed, and nothing costs anything, outside of ``recording``. Within it updates are computed in portions
beside the parameters, looked at, and then applied, which rounds an update's scale before the learning rate: parameters
agree with those of an unrecorded step to the last bits of an update.

=========================  ==========================================================================================
``ROLE/update_rms``        root mean square of the updates, scale included, learning rate and weight decay not
``ROLE/update_norm``       the largest spectral norm among their matrices, from below: power iterations
``ROLE/update_bound``      the same from above: the lesser of Schur's and Frobenius' bounds
``ROLE/orthogonality``     mean over matrices of ‖XXᵀ − I‖_F/√m for X of m rows, the shorter side, the update brought
                           to ‖X‖_F = √m: 0 for a polar factor, near √(m/n) for independent normal entries
``ROLE/gradient_rms``      of the gradients
``ROLE/weight_rms``        of the parameters before the step
``ROLE/state_bytes``       of the state, on this rank
``state_bytes``            of all of it
``skipped_steps``          steps that a non-finite gradient has made empty
``large_updates``          steps of single parameters that ``max_update_rms`` has kept from them
=========================  ==========================================================================================

The second to fourth are of roles with matrix rules only. Sharded updates are gathered to be looked at, so every rank
must record or none.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from orthoopt.nonfinite import local_part
from orthoopt.schur_bound import schur_bound
from orthoopt.staging import Entry

if TYPE_CHECKING:
    from orthoopt.optimizer import OrthoOpt

POWER_STEPS = 12
"""Products with XXᵀ; from there on a gap of 10% between the two largest singular values leaves 1% of the second."""


@contextlib.contextmanager
def recording(optimizer: OrthoOpt) -> Iterator[None]:
    """Steps within are looked at; :meth:`OrthoOpt.diagnostics` then tells of the last one.

    Args:
        optimizer: whose steps.
    """
    before, optimizer._recorder = optimizer._recorder, Recorder()
    try:
        yield
    finally:
        optimizer._last, optimizer._recorder = optimizer._recorder, before


class Recorder:
    """Figures of one step, left on their device until somebody asks."""

    def __init__(self) -> None:
        self._squares: dict[str, list[tuple[int, Tensor, Tensor, Tensor]]] = {}
        self._matrices: dict[str, list[Tensor]] = {}

    def begin(self) -> None:
        """A new step: forget the last one."""
        self._squares.clear()
        self._matrices.clear()

    def see(self, entries: Iterable[Entry]) -> None:
        """Look at updates between the halves of a step."""
        for entry in entries:
            role, part = role_of(entry.part.group), entry.part
            assert entry.negative is not None
            update = -whole(entry.negative)
            sums = (_sum_of_squares(update), _sum_of_squares(whole(entry.grad)), _sum_of_squares(whole(entry.param)))
            self._squares.setdefault(role, []).append((update.numel(), *sums))
            if part.rule.is_matrix:
                found = [figures_of(piece) for piece in part.view.pieces(update) if piece.numel()]
                self._matrices.setdefault(role, []).extend(found)

    def figures(self) -> dict[str, float]:
        """Of the last step, ready to log; waits for the device."""
        found: dict[str, float] = {}
        for role, rows in self._squares.items():
            count = sum(row[0] for row in rows) or 1
            for place, name in enumerate(("update_rms", "gradient_rms", "weight_rms"), 1):
                found[f"{role}/{name}"] = math.sqrt(sum(float(row[place]) for row in rows) / count)
        for role, figures in self._matrices.items():
            if figures:
                norms, bounds, errors = torch.cat([one.to("cpu") for one in figures], 1).tolist()
                found[f"{role}/update_norm"], found[f"{role}/update_bound"] = max(norms), max(bounds)
                found[f"{role}/orthogonality"] = math.fsum(errors) / len(errors)
        return found


def figures_of(matrices: Tensor) -> Tensor:
    """Spectral norm from below and from above, and distance from orthogonality, of a batch ``(..., rows, cols)``.

    Returns:
        ``(3, batch)``, float64 where the device has that.
    """
    x = matrices.reshape(-1, *matrices.shape[-2:])
    x = x.to(torch.float32 if x.device.type == "mps" else torch.float64)
    x = x.mT if x.shape[-2] > x.shape[-1] else x
    peak = x.abs().amax((-2, -1), keepdim=True)
    x = x / peak.where(peak > 0, 1)
    length = torch.linalg.matrix_norm(x, keepdim=True)
    bound = torch.minimum(schur_bound(x), length)
    rows = x.shape[-2]
    gram = x @ x.mT
    # Begun at the row of XXᵀ with the longest image, never orthogonal to all that matters.
    longest = torch.linalg.vector_norm(gram, dim=-1, keepdim=True).argmax(-2, keepdim=True)
    vector = gram.take_along_dim(longest, -2).mT
    for _ in range(POWER_STEPS):
        vector = vector / torch.linalg.vector_norm(vector, dim=-2, keepdim=True).clamp_min(1e-300)
        vector = gram @ vector
    norm = torch.linalg.vector_norm(vector, dim=-2, keepdim=True).sqrt()
    unit = gram * (rows / length.square().where(length > 0, 1))
    error = torch.linalg.matrix_norm(unit - torch.eye(rows, dtype=x.dtype, device=x.device), keepdim=True)
    return torch.stack([norm * peak, bound * peak, error / math.sqrt(rows)]).reshape(3, -1)


def state_bytes(groups: Sequence[Mapping[str, Any]], states: Mapping[Tensor, Mapping[str, Any]]) -> dict[str, float]:
    """Bytes of state of every role and together, of this rank's shards."""
    found: dict[str, float] = {}
    for group in groups:
        for param in group["params"]:
            tensors = [local_part(value) for value in states.get(param, {}).values() if isinstance(value, Tensor)]
            size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
            for key in (f"{role_of(group)}/state_bytes", "state_bytes"):
                found[key] = found.get(key, 0.0) + size
    return found


def role_of(group: Mapping[str, Any]) -> str:
    """The group's role; its rule where nobody said."""
    return str(group.get("role") or group["rule"])


def whole(tensor: Any) -> Tensor:
    """A distributed tensor gathered; any other itself."""
    full = getattr(tensor, "full_tensor", None)
    return tensor.detach() if full is None else full().detach()


def _sum_of_squares(x: Tensor) -> Tensor:
    x = x.to(torch.float32 if x.device.type == "mps" else torch.float64)
    return x.square().sum()
