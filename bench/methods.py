"""The methods of ``orthogonalize`` on Gaussian matrices: checked against the polar factor, then timed in turns.

This is where the size up to which ``method="auto"`` is exact was read off.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from orthoopt.bench import timing
from orthoopt.polar import Method, orthogonalize


class Way(NamedTuple):
    """A method with its settings, and the largest |σ − 1| it may leave on a well-conditioned matrix."""

    name: str
    method: Method
    steps: int
    tolerance: float


# The table's own 5- and 8-step bands; factorizations in float32, some hundred roundings.
WAYS = (
    Way("newton_schulz, 5 steps", "newton_schulz", 5, 0.154),
    Way("gram, 5 steps", "gram", 5, 0.154),
    Way("polar_express, 5 steps", "polar_express", 5, 0.154),
    Way("polar_express, 8 steps", "polar_express", 8, 2e-3),
    Way("qdwh", "qdwh", 5, 1e-4),
    Way("svd", "svd", 5, 1e-4),
)
SIDES = (16, 32, 64, 128, 256, 512, 1024)
ASPECTS = (1, 4)
MOST_ELEMENTS = 2**21
_BATCH_ELEMENTS = 2**18
_COMPARED = 4  # matrices of a batch


def measure(side: int, aspect: int, device: torch.device, repeats: int, seconds: float) -> dict[str, Any]:
    """Check, then time in turns, every method on a batch of ``side × aspect·side`` Gaussian matrices.

    Returns:
        Plain data: shape, batch, and a row a method with its error and, if that is within tolerance, its seconds a
        batch.
    """
    batch = max(1, _BATCH_ELEMENTS // (side * side * aspect))
    source = torch.Generator().manual_seed(0)
    sets = [torch.randn(batch, side, aspect * side, generator=source).to(device) for _ in range(3)]
    stopwatch = timing.Stopwatch(device)
    frame = Frame.of(sets[0])
    errors = [frame.error(orthogonalize(sets[0], way.steps, method=way.method)) for way in WAYS]
    right = [way for way, error in zip(WAYS, errors, strict=True) if error <= way.tolerance]
    runners, counts = [], []
    for way in right:
        turns = iter(range(10**9))
        call = partial(_call, sets, turns, way)
        counts.append(timing.repeats_within(seconds, stopwatch.warm_up(call), repeats))
        runners.append(timing.Runner(call))
    samples = timing.time_interleaved(runners, counts, stopwatch)
    times = {way.name: timing.summarize([wall for wall, _ in s]) for way, s in zip(right, samples, strict=True)}
    ways = [
        {"name": way.name, "error": error, "correct": way.name in times, "seconds": times.get(way.name)}
        for way, error in zip(WAYS, errors, strict=True)
    ]
    return {"rows": side, "cols": aspect * side, "batch": batch, "ways": ways}


def _call(sets: Sequence[Tensor], turns: Any, way: Way) -> Tensor:
    return orthogonalize(sets[next(turns) % len(sets)], way.steps, method=way.method)


class Frame(NamedTuple):
    """Singular vectors of the first few matrices of a batch, in float64: what a polar factor is looked at in."""

    u: Tensor
    vh: Tensor
    kept: Tensor
    """1 for directions above 1e-3 of ‖X‖_F, 0 for the others, ``(batch, rows)``."""

    @classmethod
    def of(cls, x: Tensor) -> Frame:
        """The frame of ``x``, ``(batch, rows, cols)`` with rows ≤ cols."""
        x = x[:_COMPARED].double()
        # Eigenvectors of XXᵀ rather than singular vectors: many times cheaper, and good to 1e-8 where σ is above 1e-4.
        squares, u = torch.linalg.eigh(x @ x.mT)
        s = squares.clamp(min=0).sqrt()
        kept = s > 1e-3 * s.norm(dim=-1, keepdim=True)
        return cls(u, (u.mT @ x) / torch.where(kept, s, 1).unsqueeze(-1), kept.double())

    def error(self, factor: Tensor) -> float:
        """The largest |σ − 1| of a result over the kept directions, with whatever is off the diagonal."""
        core = self.u.mT @ factor[: len(self.u)].double() @ self.vh.mT
        core = core - torch.eye(core.shape[-1], dtype=core.dtype, device=core.device)
        core = core * self.kept.unsqueeze(-1) * self.kept.unsqueeze(-2)
        return float(torch.linalg.matrix_norm(core, 2).max())


HEADER = ("microseconds a matrix", *(way.name for way in WAYS))


def cells(row: dict[str, Any]) -> tuple[str, ...]:
    """One line of the table under :data:`HEADER`."""
    times = (
        "wrong" if way["seconds"] is None else f"{1e6 * way['seconds']['median'] / row['batch']:.0f}"
        for way in row["ways"]
    )
    return (f"{row['batch']} of {row['rows']}x{row['cols']}", *times)
