"""What a plan makes of a model: rows for programs, a table and a page for people."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple, TextIO

import torch

from orthoopt.terminal import columns_of, wants_color
from orthoopt.views import parse_view

if TYPE_CHECKING:
    from orthoopt.explain_compare import Comparison

SCHEMA = "orthoopt.explain/1"
"""Of :meth:`Explanation.to_dict`. Keys may be added under this name; one that is removed or changes its meaning
changes the number."""

TERMINAL_WIDTH = 160
"""Columns, where a terminal does not say."""


class Row(NamedTuple):
    """One parameter, and what it gets."""

    name: str
    shape: tuple[int, ...]
    role: str
    view: str  # as in the param group: "vector" under an elementwise rule
    rule: str
    lr: float
    weight_decay: float
    reason: str
    state_bytes: int
    flops: int | None
    """Of one step, see :mod:`orthoopt.flops`; None for a rule that cannot be counted, for it looks at values."""
    matmul_flops: int | None
    """The part of matrix products in them."""
    options: Mapping[str, Any]
    """The rule's options, ``weight_decay_mode``, and for matrix rules ``scale``."""

    @property
    def numel(self) -> int:
        """Number of elements."""
        return torch.Size(self.shape).numel()


class Share(NamedTuple):
    """What the parameters of one role and one rule come to together."""

    role: str
    rule: str
    tensors: int
    elements: int
    state_bytes: int
    flops: int | None
    """None if any of them is unknown."""
    matmul_flops: int | None


@dataclass(frozen=True)
class Explanation:
    """What a plan makes of a model; ``print`` it."""

    rows: list[Row]
    """One for each parameter, in the model's order."""
    plan: str
    """The plan's name, "custom" for one given as a dict."""
    lr: float
    weight_decay: float
    model: str = ""
    """The class of the model, "" for parameters without one."""

    @property
    def elements(self) -> int:
        """Number of trainable elements."""
        return sum(row.numel for row in self.rows)

    @property
    def state_bytes(self) -> int:
        """Bytes of optimizer state under this plan."""
        return sum(row.state_bytes for row in self.rows)

    @property
    def adamw_state_bytes(self) -> int:
        """Bytes that AdamW would hold: two fp32 moments for each element and a step for each tensor."""
        return sum(8 * row.numel + 4 for row in self.rows)

    @property
    def flops(self) -> int | None:
        """FLOPs of one step, see :mod:`orthoopt.flops`; None if a rule cannot be counted."""
        return _total([row.flops for row in self.rows])

    @property
    def matmul_flops(self) -> int | None:
        """The part of matrix products in :attr:`flops`."""
        return _total([row.matmul_flops for row in self.rows])

    @property
    def shares(self) -> list[Share]:
        """Parameters by role and rule, in the order of the model."""
        groups: dict[tuple[str, str], list[Row]] = {}
        for row in self.rows:
            groups.setdefault((row.role, row.rule), []).append(row)
        return [_share(own) for own in groups.values()]

    def only(self, pattern: str = "", role: str | None = None) -> Explanation:
        """The part of it for parameters whose name matches (``re.search``) and that have this role.

        Raises:
            ValueError: a pattern that is none, or no such parameter; the message says which names or roles there are.
        """
        try:
            rows = [row for row in self.rows if re.search(pattern, row.name)]
        except re.error as error:
            raise ValueError(f"pattern {pattern!r} is not a regular expression: {error}") from None
        if not rows:
            names = [row.name for row in self.rows]
            shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
            raise ValueError(f"pattern {pattern!r} matches no parameter; names: {shown}")
        if role is not None:
            present = dict.fromkeys(row.role for row in rows)
            rows = [row for row in rows if row.role == role]
            if not rows:
                raise ValueError(f"no parameter has the role {role!r}; roles: {', '.join(present)}")
        return replace(self, rows=rows)

    def compare(self, other: Explanation) -> Comparison:
        """What another plan does differently with the same parameters; ``print`` it.

        Raises:
            ValueError: the parameters are not the same.
        """
        from orthoopt.explain_compare import Comparison

        return Comparison(self, other)

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain lists, dicts, strings and numbers, ready for JSON; docs/explain.md has the keys."""
        return {
            "schema": SCHEMA,
            "model": self.model,
            "plan": self.plan,
            "lr": self.lr,
            "weight_decay": self.weight_decay,
            "elements": self.elements,
            "state_bytes": self.state_bytes,
            "adamw_state_bytes": self.adamw_state_bytes,
            "flops": self.flops,
            "matmul_flops": self.matmul_flops,
            "shares": [share._asdict() for share in self.shares],
            "rows": [
                {
                    **row._asdict(),
                    "shape": list(row.shape),
                    "options": plain(row.options),
                    "view_words": parse_view(row.view).describe(),
                }
                for row in self.rows
            ],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Explanation:
        """The explanation that :meth:`to_dict` wrote.

        Raises:
            ValueError: another schema.
        """
        if data.get("schema") != SCHEMA:
            raise ValueError(f"schema {data.get('schema')!r} is not {SCHEMA!r}")
        rows = [
            Row(**{key: row[key] for key in Row._fields} | {"shape": tuple(row["shape"]), "options": row["options"]})
            for row in data["rows"]
        ]
        return cls(rows, data["plan"], data["lr"], data["weight_decay"], data["model"])

    def text(self, *, full: bool = False, width: int | None = None, color: bool = False) -> str:
        """The table and its summary.

        Args:
            full: a line for every parameter, instead of one for layers that differ by their number alone.
            width: columns to fit it into; None keeps every row on one line, however long.
            color: with a terminal's escape sequences.
        """
        from orthoopt.explain_table import explanation_text

        return explanation_text(self, full=full, width=width, color=color)

    def html(self) -> str:
        """One page that needs nothing else: summary, picture, table. ASCII, so any encoding will do."""
        from orthoopt.explain_html import explanation_html

        return explanation_html(self)

    def show(
        self, *, full: bool = False, width: int | None = None, color: str = "auto", file: TextIO | None = None
    ) -> None:
        """Print it as fits the terminal, in colours where they are wanted (:func:`orthoopt.terminal.wants_color`)."""
        show(lambda w, c: self.text(full=full, width=w, color=c), width, color, file)

    def __str__(self) -> str:
        return self.text(width=columns_of(sys.stdout, TERMINAL_WIDTH))


def show(text: Callable[[int | None, bool], str], width: int | None, color: str, file: TextIO | None) -> None:
    """Print what ``text`` makes of a width and of whether to use colours, both as the stream has them."""
    stream = sys.stdout if file is None else file
    columns = columns_of(stream, TERMINAL_WIDTH) if width is None else width
    print(text(columns, wants_color(color, stream)), file=stream)


def _share(rows: Sequence[Row]) -> Share:
    return Share(
        rows[0].role,
        rows[0].rule,
        len(rows),
        sum(row.numel for row in rows),
        sum(row.state_bytes for row in rows),
        _total([row.flops for row in rows]),
        _total([row.matmul_flops for row in rows]),
    )


def _total(counts: Sequence[int | None]) -> int | None:
    known = [count for count in counts if count is not None]
    return sum(known) if len(known) == len(counts) else None


def plain(value: Any) -> Any:
    """Options as JSON has them: tuples become lists."""
    if isinstance(value, Mapping):
        return {key: plain(inner) for key, inner in value.items()}
    return [plain(inner) for inner in value] if isinstance(value, list | tuple) else value
