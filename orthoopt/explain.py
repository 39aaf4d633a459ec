"""Which parameter gets which rule, and why: a table for people, rows for programs."""

from __future__ import annotations

import re
import shutil
import sys
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from orthoopt import plan_files, rules
from orthoopt.dispatch import Overrides, Params, assign
from orthoopt.matrix_state import expected_state
from orthoopt.views import parse_view

_NUMBER = re.compile(r"(?<![^.\[])\d+(?=[.\]]|$)")  # a path component, or the index of a bare tensor
_PLAIN_WIDTH = 160  # where there is no terminal
_REASON_WIDTH = 28  # a narrower column of reasons is put below its row
_GAP = "  "


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


@dataclass(frozen=True)
class Explanation:
    """What a plan makes of a model; ``print`` it."""

    rows: list[Row]
    """One for each parameter, in the model's order."""
    plan: str
    """The plan's name, a plan file's path, "custom" for one given as a dict."""
    lr: float
    weight_decay: float

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
    def shares(self) -> list[Share]:
        """Parameters by role and rule, in the order of the model."""
        groups: dict[tuple[str, str], list[Row]] = {}
        for row in self.rows:
            groups.setdefault((row.role, row.rule), []).append(row)
        return [
            Share(role, rule, len(own), sum(r.numel for r in own), sum(r.state_bytes for r in own))
            for (role, rule), own in groups.items()
        ]

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain lists, dicts, strings and numbers, ready for JSON."""
        return {
            "plan": self.plan,
            "lr": self.lr,
            "weight_decay": self.weight_decay,
            "rows": [
                {**row._asdict(), "shape": list(row.shape), "view_words": parse_view(row.view).describe()}
                for row in self.rows
            ],
            "shares": [share._asdict() for share in self.shares],
            "elements": self.elements,
            "state_bytes": self.state_bytes,
            "adamw_state_bytes": self.adamw_state_bytes,
        }

    def text(self, *, full: bool = False, width: int | None = None) -> str:
        """The table and its summary.

        Args:
            full: a line for every parameter, instead of one for layers that differ by their number alone.
            width: columns to fit the reasons into; None leaves them whole.
        """
        lines = [(row.name, row) for row in self.rows] if full else list(_collapse(self.rows))
        cells = [(name, *_cells(row)) for name, row in lines]
        header = ("name", "shape", "role", "view", "rule", "lr", "decay")
        table = _table(header, cells, [row.reason for _, row in lines], width)
        return "\n".join([*table, *self._views(), "", *self._summary()])

    def __str__(self) -> str:
        width = shutil.get_terminal_size((_PLAIN_WIDTH, 24)).columns if sys.stdout.isatty() else None
        return self.text(width=width)

    def _summary(self) -> Iterator[str]:
        tensors = "1 tensor" if len(self.rows) == 1 else f"{len(self.rows)} tensors"
        settings = f"plan {self.plan}, lr {self.lr:g}, weight decay {self.weight_decay:g}"
        yield f"{_count(self.elements)} parameters in {tensors}; {settings}"
        yield ""
        shares = sorted(self.shares, key=lambda share: -share.elements)
        cells = [
            (s.role, s.rule, str(s.tensors), _count(s.elements), f"{s.elements / max(self.elements, 1):.1%}")
            for s in shares
        ]
        yield from _columns([("role", "rule", "tensors", "parameters", "share"), *cells], right=(2, 3, 4))
        yield ""
        own, adamw = self.state_bytes, self.adamw_state_bytes
        yield f"optimizer state {_bytes(own)}; AdamW's would be {_bytes(adamw)} (ratio {own / adamw:.2f})"
        unknown = [row.name for row in self.rows if row.role == "unknown"]
        if unknown:
            shown = ", ".join(unknown[:3]) + (", ..." if len(unknown) > 3 else "")
            help = f'(r"{re.escape(unknown[0])}", {{"role": "hidden", "view": "matrix"}}) among the overrides'
            if unknown[0].startswith("params["):
                help = "the model itself, or its named_parameters(), instead of bare tensors"
            yield f"{len(unknown)} of unknown role: {shown}. What would settle it: {help}"

    def _views(self) -> Iterator[str]:
        """What the composite views in the table mean."""
        views = dict.fromkeys(row.view for row in self.rows if row.view not in ("matrix", "vector"))
        if views:
            cells = [(view, parse_view(view).describe()) for view in views]
            yield ""
            yield from _columns([("view", "seen as"), *cells], right=())


def explain(
    params: Params,
    plan: plan_files.AnyPlan = "symmetry",
    *,
    lr: float | Tensor = 1e-3,
    weight_decay: float = 0.1,
    overrides: Overrides = (),
    options: Mapping[str, Any] | None = None,
) -> Explanation:
    """Say which parameter gets which rule, and why. Arguments and errors are those of ``param_groups``.

    A model on the meta device does; nothing is allocated.
    """
    assignments = assign(params, plan, lr=lr, weight_decay=weight_decay, overrides=overrides, options=options)
    sizes: dict[Any, int] = {}
    rows = []
    for position, (name, param, role, view, reason, group) in enumerate(assignments):
        rule, shape = group["rule"], tuple(param.shape)
        view = view if rules.get(rule).uses_views else "vector"
        key = (shape, param.dtype, view, repr(sorted(group.items(), key=lambda item: item[0])))
        if key not in sizes:
            sizes[key] = _state_bytes(rule, param, view, group)
        rows.append(
            Row(
                name=f"params[{position}]" if name is None else name,
                shape=shape,
                role=role,
                view=view,
                rule=rule,
                lr=float(group["lr"]),
                weight_decay=float(group["weight_decay"]),
                reason=reason + _notes(rules.get(rule), shape, view, group),
                state_bytes=sizes[key],
            )
        )
    return Explanation(rows, plan_files.name_of(plan), float(lr), float(weight_decay))


def _state_bytes(rule: str, param: Tensor, view: str, options: Mapping[str, Any]) -> int:
    """Bytes of the state of one parameter; low-precision parameters have fp32 state."""
    state = expected_state(rules.get(rule), param, parse_view(view), options)
    return sum(v.numel() * v.element_size() for v in state.values() if isinstance(v, Tensor))


def _notes(rule: rules.Rule, shape: tuple[int, ...], view: str, options: Mapping[str, Any]) -> str:
    """What the rule has to say about the matrices of a parameter, each thing once, after a semicolon."""
    if not rule.is_matrix:
        return ""
    notes = dict.fromkeys(rule.note(piece[-2], piece[-1], options) for piece in parse_view(view).piece_shapes(shape))
    return "".join(f"; {note}" for note in notes if note)


def _collapse(rows: Sequence[Row]) -> Iterator[tuple[str, Row]]:
    """Rows that differ by the numbers in their names alone, as one, named ``layers.{0..27}.mlp``."""
    alike: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        alike.setdefault((_NUMBER.sub("#", row.name), row[1:]), []).append(row)
    for members in alike.values():
        yield from _name_together(members)


def _name_together(members: list[Row]) -> Iterator[tuple[str, Row]]:
    numbers = [tuple(map(int, _NUMBER.findall(row.name))) for row in members]
    slots = [sorted(set(values)) for values in zip(*numbers, strict=True)]
    product = 1
    for values in slots:
        product *= len(values)
    if product == len(members):  # every combination is there
        spelled = iter(_spell(values) for values in slots)
        yield _NUMBER.sub(lambda _: next(spelled), members[0].name), members[0]
        return
    apart: dict[tuple[int, ...], list[Row]] = {}
    for row, own in zip(members, numbers, strict=True):
        apart.setdefault(own[1:], []).append(row)
    for rest in apart.values():
        yield from _name_together(rest)


def _spell(values: list[int]) -> str:
    """Numbers as runs: 3, {0..27}, {0,1,4}, {0..4,6..10}; many of them as {3,7,..,47}."""
    if len(values) == 1:
        return str(values[0])
    runs: list[list[int]] = []
    for value in values:
        if runs and value == runs[-1][-1] + 1:
            runs[-1].append(value)
        else:
            runs.append([value])
    spelled = [",".join(map(str, run)) if len(run) < 3 else f"{run[0]}..{run[-1]}" for run in runs]
    if len(spelled) > 4:
        spelled = [*spelled[:2], "..", spelled[-1]]
    return "{" + ",".join(spelled) + "}"


def _table(
    header: tuple[str, ...], cells: Sequence[tuple[str, ...]], reasons: Sequence[str], width: int | None
) -> Iterator[str]:
    """The rows with their reasons: beside them, wrapped to ``width``, or below where there is no room."""
    lines = list(_columns([header, *cells], right=(5, 6)))
    used = max(map(len, lines)) + len(_GAP)
    room = None if width is None else width - used
    below = room is not None and room < _REASON_WIDTH
    yield lines[0] if below else f"{lines[0]:{used}}reason"
    for line, reason in zip(lines[1:], reasons, strict=True):
        if room is None:
            yield f"{line:{used}}{reason}"
        elif below:
            yield line
            yield from textwrap.wrap(f"    {reason}", max(width or 0, 40), subsequent_indent="    ")
        else:
            first, *rest = textwrap.wrap(reason, room) or [""]
            yield f"{line:{used}}{first}"
            yield from (" " * used + more for more in rest)


def _columns(cells: Sequence[tuple[str, ...]], right: Iterable[int]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    aligned = [str.rjust if i in right else str.ljust for i in range(len(widths))]
    for row in cells:
        padded = (align(cell, width) for align, cell, width in zip(aligned, row, widths, strict=True))
        yield _GAP.join(padded).rstrip()


def _cells(row: Row) -> tuple[str, ...]:
    shape = "x".join(map(str, row.shape)) or "scalar"
    return shape, row.role, row.view, row.rule, f"{row.lr:g}", f"{row.weight_decay:g}"


def _count(number: int) -> str:
    """A number with three digits and a suffix: 512, 38.6M, 20.9B."""
    return _short(number, ((1e9, "B"), (1e6, "M"), (1e3, "k"))) or str(number)


def _bytes(number: int) -> str:
    return _short(number, ((1e9, " GB"), (1e6, " MB"), (1e3, " kB"))) or f"{number} B"


def _short(number: int, units: Iterable[tuple[float, str]]) -> str | None:
    for unit, suffix in units:
        if number >= unit:
            scaled = number / unit
            return f"{scaled:.{2 if scaled < 10 else 1 if scaled < 100 else 0}f}{suffix}"
    return None
