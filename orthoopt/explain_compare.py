"""Two plans for the same parameters: what one would do differently from the other."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, TextIO

from torch import nn

from orthoopt import rules
from orthoopt.dispatch import Params
from orthoopt.explain import explain
from orthoopt.explain_lines import NARROWEST, Styles, section_of, spell_shape
from orthoopt.explain_names import collapse
from orthoopt.explanation import TERMINAL_WIDTH, Explanation, Row, plain, show
from orthoopt.plan_files import AnyPlan
from orthoopt.terminal import GAP, Cell, Paint, aligned, columns_of, wrapped
from orthoopt.units import spell_bytes, spell_count, spell_flops

SCHEMA = "orthoopt.comparison/1"

_INDENT = "    "


class Pair(NamedTuple):
    """One parameter under both plans."""

    left: Row
    right: Row

    @property
    def changes(self) -> dict[str, tuple[Any, Any]]:
        """What differs: ``role``, ``view``, ``rule``, ``lr``, ``weight_decay`` and options -> (left, right).

        Options under different rules are compared where both rules have them. Those that only one has are listed, with
        None for the other, where they are not that rule's default.
        """
        left, right = self
        found = {
            key: (getattr(left, key), getattr(right, key))
            for key in ("role", "view", "rule", "lr", "weight_decay")
            if getattr(left, key) != getattr(right, key)
        }
        if "vector" in found.get("view", ()):  # elementwise rules have no view: the rule says it already
            del found["view"]
        for name in dict.fromkeys((*left.options, *right.options)):
            values = plain(left.options.get(name)), plain(right.options.get(name))
            if name in left.options and name in right.options:
                differ = values[0] != values[1]
            else:
                differ = any(_is_chosen(row, name) for row in self)
            if differ:
                found[name] = values
        return found


class Difference(NamedTuple):
    """Parameters that differ in the same way."""

    name: str
    """Theirs, as in the table: ``layers.{0..27}.mlp.up_proj.weight``."""
    pairs: list[Pair]
    changes: dict[str, tuple[Any, Any]]


@dataclass(frozen=True)
class Comparison:
    """What ``right`` would do differently from ``left``; ``print`` it.

    Raises:
        ValueError: their parameters are not the same.
    """

    left: Explanation
    right: Explanation

    def __post_init__(self) -> None:
        ours, theirs = ([(row.name, row.shape) for row in side.rows] for side in (self.left, self.right))
        if ours != theirs:
            odd = next((a or b for a, b in zip(ours, theirs, strict=False) if a != b), None)
            odd = odd or (ours + theirs)[min(len(ours), len(theirs))]
            raise ValueError(
                f"only explanations of the same parameters can be compared: {len(ours)} against {len(theirs)}, "
                f"the first that differs is {odd[0]} of shape {odd[1]}"
            )

    @property
    def pairs(self) -> list[Pair]:
        """Every parameter under both plans."""
        return [Pair(*rows) for rows in zip(self.left.rows, self.right.rows, strict=True)]

    @property
    def differences(self) -> list[Difference]:
        """The parameters that differ, those of a kind together, in the order of the table."""
        differing = [(pair, changes) for pair in self.pairs if (changes := pair.changes)]
        together = collapse(
            differing,
            lambda item: item[0].left.name,
            lambda item: (item[0].left.shape, item[0].left.role, repr(item[1])),
        )
        found = [Difference(name, [pair for pair, _ in items], items[0][1]) for name, items in together]
        return sorted(found, key=lambda difference: section_of(difference.pairs[0].left.role))

    @property
    def same(self) -> int:
        """How many parameters are treated alike."""
        return sum(not pair.changes for pair in self.pairs)

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain lists, dicts, strings and numbers, ready for JSON; docs/explain.md has the keys."""
        return {
            "schema": SCHEMA,
            "model": self.left.model,
            "left": _totals(self.left),
            "right": _totals(self.right),
            "same": self.same,
            "differences": [
                {
                    "name": difference.name,
                    "parameters": [pair.left.name for pair in difference.pairs],
                    "shape": list(difference.pairs[0].left.shape),
                    "role": difference.pairs[0].left.role,
                    "changes": {key: list(values) for key, values in difference.changes.items()},
                }
                for difference in self.differences
            ],
        }

    def text(self, *, width: int | None = None, color: bool = False) -> str:
        """What differs, how many do not, and memory and cost of both; arguments as for :meth:`Explanation.text`."""
        width = None if width is None else max(width, NARROWEST)
        paint, styles = Paint(color), Styles(self.left, self.right)
        return "\n".join([*self._title(width), *self._listed(width, paint, styles), "", *self._sums(paint)])

    def show(self, *, width: int | None = None, color: str = "auto", file: TextIO | None = None) -> None:
        """Print it as :meth:`Explanation.show` does."""
        show(lambda w, c: self.text(width=w, color=c), width, color, file)

    def __str__(self) -> str:
        return self.text(width=columns_of(sys.stdout, TERMINAL_WIDTH))

    def _title(self, width: int | None) -> Iterator[str]:
        count = len(self.left.rows)
        whose = f"{self.left.model}, " if self.left.model else ""
        differ = "nothing differs" if self.same == count else f"{count - self.same} of {count} tensors differ"
        alike = "" if self.same in (0, count) else f", {self.same} are treated alike"
        yield from wrapped(f"{whose}{self.left.plan} -> {self.right.plan}: {differ}{alike}", width)

    def _listed(self, width: int | None, paint: Paint, styles: Styles) -> Iterator[str]:
        """Those that differ, with what differs, once for all names to which the same happens."""
        kinds: dict[str, list[Difference]] = {}
        for difference in self.differences:
            kinds.setdefault(repr((difference.pairs[0].left.role, difference.changes)), []).append(difference)
        for members in kinds.values():
            yield ""
            for name, pairs, _ in members:
                row = pairs[0].left
                shape = spell_shape(row)
                (line,) = aligned([[Cell(name, ("bold",)), Cell(shape), styles.role(row.role)]], paint)
                yield from [line.text] if width is None or line.width <= width else wrapped(f"{name} {shape}", width)
            changes = members[0].changes
            keys = [Cell(key) for key in changes]
            sides = [[_spelled(key, value, styles) for value in values] for key, values in changes.items()]
            rows = [[key, left, Cell("->", ("dim",)), right] for key, (left, right) in zip(keys, sides, strict=True)]
            for line, words in zip(aligned(rows, paint), rows, strict=True):
                if width is None or line.width + len(_INDENT) <= width:
                    yield _INDENT + line.text
                else:
                    yield from wrapped(GAP.join(cell.text for cell in words), width, _INDENT)

    def _sums(self, paint: Paint) -> Iterator[str]:
        """State and cost of both, and their ratio."""
        sides = (self.left, self.right)
        header = [Cell(word, ("bold",)) for word in ("", self.left.plan, self.right.plan, "ratio")]
        states = [side.state_bytes for side in sides]
        rows = [header, [Cell("state"), *(Cell(spell_bytes(n)) for n in states), Cell(_ratio(*states))]]
        for word, costs in (
            ("a step", [side.flops for side in sides]),
            ("of it products", [side.matmul_flops for side in sides]),
        ):
            spelled = (Cell("?" if n is None else spell_flops(n)) for n in costs)
            rows.append([Cell(word), *spelled, Cell(_ratio(*costs))])
        elements = spell_count(self.left.elements)
        yield from (line.text for line in aligned(rows, paint, right=(1, 2, 3)))
        yield f"for {elements} parameters"


def compare(
    params: Params,
    plan: AnyPlan,
    other: AnyPlan,
    **settings: Any,
) -> Comparison:
    """Say what plan ``other`` would do differently from ``plan``; ``settings`` and errors are those of ``explain``."""
    again: Any = params if isinstance(params, nn.Module) else list(params)  # an iterator can be read once
    return explain(again, plan, **settings).compare(explain(again, other, **settings))


def _is_chosen(row: Row, name: str) -> bool:
    """Whether a row's rule has this option, and not at its default."""
    defaults = rules.get(row.rule).defaults
    return name in defaults and name in row.options and plain(row.options[name]) != plain(defaults[name])


def _totals(explanation: Explanation) -> dict[str, Any]:
    keys = ("plan", "lr", "weight_decay", "elements", "state_bytes", "flops", "matmul_flops")
    return {key: getattr(explanation, key) for key in keys}


def _spelled(key: str, value: Any, styles: Styles) -> Cell:
    if value is None:
        return Cell("-")
    if key == "rule":
        return styles.rule(value)
    return Cell(f"{value:g}" if isinstance(value, float) else str(value))


def _ratio(left: int | None, right: int | None) -> str:
    """Of the right to the left."""
    return "" if left is None or right is None or left == 0 else f"{right / left:.3g}"
