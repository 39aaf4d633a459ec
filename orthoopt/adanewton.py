"""AdaNewton: one triple of Newton-Schulz coefficients a matrix shape, reused in every step (ROOT, arXiv 2511.20626).

``adanewton.json`` beside this file holds triples fitted by :mod:`orthoopt.fit_coefficients`, one a shape and number of
steps, with what they were fitted to and how they did; ``orthoopt bench coefficients`` made it. Other shapes get
a triple between those of their neighbours.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any, TypeAlias

from orthoopt.coefficients import Triple
from orthoopt.invariance import bounds

Shape: TypeAlias = tuple[int, int]
"""(shorter side, longer side): a matrix and its transpose have the same singular values."""
Table: TypeAlias = Mapping[int, Mapping[Shape, Triple]]
"""Steps -> shape -> triple."""

FILE = "adanewton.json"
NEIGHBOURS = 3
"""How many fitted shapes an interpolated triple is made of."""
RELEASED: dict[Shape, str] = {
    (2048, 2048): "root_2048x2048",
    (2048, 3072): "root_2048x3072",
    (2048, 8192): "root_2048x8192",
    (2048, 16384): "root_2048x16384",
}


@dataclass(frozen=True)
class Choice:
    """The triple of a shape, and where it comes from."""

    triple: Triple
    shapes: tuple[Shape, ...]
    """The fitted shapes that it was made of, nearest first."""
    interpolated: bool
    exact: bool
    """Whether it was fitted for this very shape."""
    steps: int
    """The number of steps it was fitted for."""

    def describe(self) -> str:
        """For ``explain``: ``AdaNewton 2.54, -2.8, 1.26 fitted for 128x352``."""
        numbers = ", ".join(f"{value:.3g}" for value in self.triple)
        names = [spell_shape(shape) for shape in self.shapes]
        if self.exact:
            origin = f"fitted for {names[0]}"
        elif self.interpolated:
            origin = f"interpolated between {', '.join(names[:-1])} and {names[-1]}"
        else:
            origin = f"of {names[0]}, the nearest fitted shape"
        return f"AdaNewton {numbers} {origin}"


def key_of(rows: int, cols: int) -> Shape:
    """The key of a matrix's shape."""
    return min(rows, cols), max(rows, cols)


def spell_shape(shape: Shape) -> str:
    """``128x352``."""
    return f"{shape[0]}x{shape[1]}"


def released(rows: int, cols: int) -> str:
    """The table of ROOT's authors for a shape: one of their four, Muon's elsewhere, as their code has it."""
    return RELEASED.get(key_of(rows, cols), "muon")


@functools.lru_cache(maxsize=4096)
def shipped(rows: int, cols: int, steps: int) -> Choice:
    """The shipped triple for matrices of a shape, whichever way round.

    Args:
        rows: at least 1.
        cols: at least 1.
        steps: of the iteration; a number that nothing was fitted for takes the nearest that something was. Every triple
            may be used for any number of steps.
    """
    return choose(shipped_table(), rows, cols, steps)


def choose(table: Table, rows: int, cols: int, steps: int) -> Choice:
    """Look a shape up in a table, or interpolate between its nearest shapes.

    Distances are taken between (log of the shorter side, log of the aspect ratio). The weights are modified Shepard
    weights of the :data:`NEIGHBOURS` nearest shapes, which fall to zero where the next nearest one takes over, so the
    triple is continuous in the shape. A mean of triples need not keep singular values bounded: one that does not
    (:func:`orthoopt.invariance.bounds`) gives way to the nearest shape's own.
    """
    key = key_of(rows, cols)
    fitted_steps = min(table, key=lambda known: (abs(known - steps), known))
    entries = table[fitted_steps]
    if key in entries:
        return Choice(entries[key], (key,), False, True, fitted_steps)
    order = sorted((_distance(key, shape), shape) for shape in entries)
    near = order[:NEIGHBOURS]
    reach = order[NEIGHBOURS][0] if len(order) > NEIGHBOURS else math.inf
    weights = {shape: (1 / gap - (0 if math.isinf(reach) else 1 / reach)) ** 2 for gap, shape in near}
    weights = {shape: weight for shape, weight in weights.items() if weight > 0}
    total = sum(weights.values())
    if len(weights) > 1:
        a, b, c = (sum(w * entries[shape][i] for shape, w in weights.items()) / total for i in range(3))
        if bounds((a, b, c)).hold:
            return Choice((a, b, c), tuple(weights), True, False, fitted_steps)
    nearest = near[0][1]
    return Choice(entries[nearest], (nearest,), False, False, fitted_steps)


def _distance(left: Shape, right: Shape) -> float:
    size = math.log2(left[0] / right[0])
    aspect = math.log2(left[1] / left[0]) - math.log2(right[1] / right[0])
    return math.hypot(size, aspect)


@functools.cache
def shipped_table() -> Table:
    """The triples of ``adanewton.json``."""
    return read_table(json.loads(resources.files("orthoopt").joinpath(FILE).read_text(encoding="utf-8")))


def read_table(data: Mapping[str, Any]) -> Table:
    """The triples of the file's content."""
    table: dict[int, dict[Shape, Triple]] = {}
    for entry in data["entries"]:
        a, b, c = entry["triple"]
        table.setdefault(entry["steps"], {})[key_of(*entry["shape"])] = (a, b, c)
    return table
