"""A geometric grid of learning rates, extended until the best is not at its edge."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

Point: TypeAlias = tuple[str, int]
"""An arm and the index of a learning rate."""

MOST_EXTENSIONS = 8


class GridError(RuntimeError):
    """No best learning rate was found inside a grid."""


@dataclass(frozen=True)
class Grid:
    """Learning rates ``base · factor^k`` for every integer k, the same for all arms."""

    factor: float = 2.0
    base: float = 1e-3

    def __post_init__(self) -> None:
        if not (self.factor > 1 and self.base > 0):
            raise ValueError(f"a grid needs factor > 1 and base > 0, got {self.factor} and {self.base}")

    def rate(self, index: int) -> float:
        """The learning rate of an index, to six digits, so that equal points are equal numbers."""
        return float(f"{self.base * self.factor**index:.6g}")

    def around(self, rate: float, points: int) -> list[int]:
        """``points`` successive indices with the one nearest to ``rate`` in their middle."""
        middle = round(math.log(rate / self.base, self.factor))
        return [middle - (points - 1) // 2 + i for i in range(points)]


def best_index(losses: Mapping[int, float]) -> int:
    """The index of the lowest loss; a NaN counts as infinity."""
    return min(losses, key=lambda index: losses[index] if math.isfinite(losses[index]) else math.inf)


def next_index(losses: Mapping[int, float]) -> int | None:
    """The index to add when the best is at an edge, or None when the grid is wide enough.

    If nothing was finite, rates were too high.
    """
    best = best_index(losses)
    if best == min(losses) or not math.isfinite(losses[best]):
        return min(losses) - 1
    return max(losses) + 1 if best == max(losses) else None


def search(
    starts: Mapping[str, Sequence[int]], evaluate: Callable[[list[Point]], list[float]]
) -> dict[str, dict[int, float]]:
    """Losses on each arm's grid, which is extended one point at a time while its best is at an edge.

    Args:
        starts: arm -> indices to begin with.
        evaluate: the losses of a list of points; called with all that are due at once.

    Returns:
        arm -> index -> loss, in order of index.

    Raises:
        GridError: an arm's best was still at the edge after 8 more points.
    """
    losses: dict[str, dict[int, float]] = {arm: {} for arm in starts}
    due = [(arm, index) for arm, indices in starts.items() for index in indices]
    while due:
        for (arm, index), loss in zip(due, evaluate(due), strict=True):
            losses[arm][index] = loss
        due = []
        for arm, found in losses.items():
            more = next_index(found)
            if more is None:
                continue
            if len(found) >= len(starts[arm]) + MOST_EXTENSIONS:
                raise GridError(
                    f"{arm}: the best learning rate is still at the edge of {len(found)} points "
                    f"after {MOST_EXTENSIONS} extensions; losses by index: {dict(sorted(found.items()))}"
                )
            due.append((arm, more))
    return {arm: dict(sorted(found.items())) for arm, found in losses.items()}
