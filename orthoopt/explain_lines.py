"""What the table, the page and the comparison share: lines, their order, and what words look like."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from orthoopt.explain_names import collapse
from orthoopt.explanation import Explanation, Row
from orthoopt.terminal import HUES, Cell
from orthoopt.views import parse_view

SECTIONS = (
    ("embedding", "tied_embedding"),
    ("attention",),
    ("mlp_in", "mlp_out"),
    ("expert_in", "expert_out", "router"),
    ("conv",),
    ("hidden",),
    ("lm_head",),
    ("vector",),
    ("unknown",),
)
"""Roles that stand together, in the order of the table: that of the network, then the small and the unsettled."""

NARROWEST = 60
"""Columns; a narrower terminal wraps by itself."""

UNKNOWN = ("bold", "red")
"""Nobody may overlook it."""


class Line(NamedTuple):
    """Rows of the model that share a line of the table: they differ by the numbers in their names."""

    name: str
    rows: list[Row]

    @property
    def section(self) -> int:
        """The place in :data:`SECTIONS`."""
        return section_of(self.rows[0].role)


class Styles:
    """What words of a table look like: each rule its hue, the largest first; AdamW none."""

    def __init__(self, *explanations: Explanation) -> None:
        order = [rule for rule in by_size(*explanations) if rule != "adamw"]
        self._rules = {rule: HUES[place % len(HUES)] for place, rule in enumerate(order)}

    def rule(self, name: str) -> Cell:
        """A rule's name."""
        return Cell(name, (self._rules[name],) if name in self._rules else ())

    def role(self, name: str) -> Cell:
        """A role's name; the unknown one cannot be overlooked."""
        return Cell(name, UNKNOWN if name == "unknown" else ())


def by_size(*explanations: Explanation) -> list[str]:
    """The rules of explanations by the number of elements under them, the largest first."""
    sizes: dict[str, int] = {}
    for explanation in explanations:
        for row in explanation.rows:
            sizes[row.rule] = sizes.get(row.rule, 0) + row.numel
    return sorted(sizes, key=lambda rule: -sizes[rule])


def section_of(role: str) -> int:
    """The place of a role in :data:`SECTIONS`; before the vectors for one that is not there."""
    return next((place for place, own in enumerate(SECTIONS) if role in own), len(SECTIONS) - 3)


def lines_of(rows: Sequence[Row]) -> list[Line]:
    """The lines of a table, section by section, each in the model's order."""
    lines = [Line(name, own) for name, own in collapse(rows, lambda row: row.name, lambda row: repr(row[1:]))]
    return sorted(lines, key=lambda line: line.section)


def spell_shape(row: Row) -> str:
    """``768x2304``."""
    return "x".join(map(str, row.shape)) or "scalar"


def reason_with_view(row: Row) -> str:
    """The reason, and before it the view in words where it is more than a plain matrix."""
    if row.view in ("matrix", "vector"):
        return row.reason
    return f"seen as {parse_view(row.view).describe()}; {row.reason}"
