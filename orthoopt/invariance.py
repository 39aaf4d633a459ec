"""What one triple of Newton-Schulz coefficients does to [0, 1] when it is applied again and again.

f(x) = ax + bx³ + cx⁵ moves singular values, which start in [0, 1]. A triple that is used for any number of steps must
keep them in an interval [0, M] that f maps into itself, clear of the fixed point x_rep beyond which they diverge, and
must not turn a sign (huawei-noah's triple for 2048x2048 fails this: it overflows from the sixth step on).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from orthoopt.coefficients import Triple

LARGEST = 1.2
"""The most that a singular value of an update may be."""
CLEARANCE = 0.99
"""M may be at most so much of x_rep."""


@dataclass(frozen=True)
class Bounds:
    """The interval of a triple, in closed form."""

    top: float
    """M = max(1, max of f on [0, 1])."""
    highest: float
    """Max of f on [0, M]; the interval is invariant if it is at most M."""
    least_slope: float
    """Min of f(x)/x on [0, M]; f keeps every sign if it is positive."""
    repelling: float
    """x_rep, the largest root of a + bx² + cx⁴ = 1; infinite if there is none."""

    def violations(self) -> dict[str, float]:
        """Constraint -> by how much it is missed, 0 where it holds."""
        return {
            "f is positive on (0, M]": max(0.0, -self.least_slope),
            "f maps [0, M] into itself": max(0.0, self.highest - self.top),
            f"M is at most {CLEARANCE} x_rep": max(0.0, self.top - CLEARANCE * self.repelling),
            f"M is at most {LARGEST}": max(0.0, self.top - LARGEST),
        }

    @property
    def hold(self) -> bool:
        """Whether every constraint holds, to a rounding."""
        return all(miss <= 1e-12 for miss in self.violations().values()) and self.least_slope > 0


def bounds(triple: Triple) -> Bounds:
    """The interval that a triple keeps singular values in, if it does."""
    turns = sorted(_positive_roots(triple[0], 3 * triple[1], 5 * triple[2]))  # f' = a + 3bx² + 5cx⁴
    top = max([1.0, value(triple, 1.0), *(value(triple, x) for x in turns if x < 1)])
    highest = max([value(triple, top), *(value(triple, x) for x in turns if x < top)])
    a, b, c = triple
    dip = math.sqrt(-b / (2 * c)) if b * c < 0 else 0.0  # where f(x)/x = a + bx² + cx⁴ turns
    least = min(a, value(triple, top) / top, value(triple, dip) / dip if 0 < dip < top else math.inf)
    fixed = list(_positive_roots(a - 1, b, c))
    return Bounds(top, highest, least, max(fixed, default=math.inf))


def value(triple: Triple, x: float) -> float:
    """f(x)."""
    a, b, c = triple
    return x * (a + x * x * (b + c * x * x))


def _positive_roots(constant: float, linear: float, quadratic: float) -> Iterator[float]:
    """The x > 0 with constant + linear·x² + quadratic·x⁴ = 0."""
    if quadratic == 0:
        squares = [] if linear == 0 else [-constant / linear]
    else:
        discriminant = linear * linear - 4 * quadratic * constant
        if discriminant < 0:
            return
        # The stable pair: the larger root in magnitude by the formula, the other by their product.
        half = -(linear + math.copysign(math.sqrt(discriminant), linear)) / 2
        squares = [half / quadratic] + ([constant / half] if half else [])
    for square in squares:
        if square > 0:
            yield math.sqrt(square)
