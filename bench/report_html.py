"""Pieces of the report's page: figures that name their data, tables, the place of a value in a JSON file."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any, TypeAlias

from orthoopt.bench.report_svg import SHAPES, Svg

WIDE, PHONE = 880, 340
"""Widths that pictures are drawn at, for a window and for a phone: the page shows the one that fits."""
PANEL = (176, 168)
ANY = "*"

Legend = Sequence[tuple[str, str, str]]
"""Name, hue and shape of each; a hue is filled unless it says otherwise, as ``c1 ring`` does."""


@dataclass(frozen=True)
class Result:
    """A result file: its name, where it is, and its content."""

    name: str
    path: Path
    value: Mapping[str, Any]

    @property
    def machine(self) -> Mapping[str, Any]:
        """The machine block; what is missing or of another kind in it is empty."""
        found = self.value.get("machine")
        block = dict(found) if isinstance(found, Mapping) else {}
        inner: dict[str, Mapping[str, Any]] = {}
        for key in ("gpu", "versions", "git"):
            part = block.get(key)
            inner[key] = part if isinstance(part, Mapping) else {}
        plain = {key: value for key, value in block.items() if isinstance(value, (str, int, float))}
        return plain | inner

    @property
    def on_gpu(self) -> bool:
        """Whether it was measured on a GPU."""
        return bool(self.machine.get("gpu")) or Path(self.name).stem.endswith("_cuda")


@dataclass(frozen=True)
class Table:
    """Cells of text; ``left`` columns from the left hold words, the others figures."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    left: int = 1


@dataclass(frozen=True)
class Figure:
    """A picture with its words, and where its data stand.

    ``draw`` makes it at a width; ``panels`` are small pictures of :data:`PANEL` instead. ``places`` are JSON paths.
    """

    title: str
    places: Sequence[str]
    note: str = ""
    draw: Callable[[int], str] | None = None
    panels: Sequence[str] = ()
    legend: Legend = ()
    legend_always: bool = False
    table: Table | None = None


@dataclass
class Section:
    """A part of the page made from one file: what it says, ``brief`` of that at the top of the page, and tables."""

    title: str
    result: Result
    lines: list[str] = field(default_factory=list)
    verdicts: list[str] = field(default_factory=list)
    brief: list[str] = field(default_factory=list)
    tables: list[tuple[str, Table]] = field(default_factory=list)


Part: TypeAlias = Section | Callable[[], Figure | Iterable[Figure]]
"""What a reader of files gives: a section, then figures of it, each made when it is asked for, so that one may fail."""


def where(*steps: str | int) -> str:
    """A JSONPath: ``where("rows", ANY, "seconds")`` is ``$.rows[*].seconds``."""
    spelled = "$"
    for step in steps:
        if step == ANY or isinstance(step, int):
            spelled += f"[{step}]"
        elif re.fullmatch(r"[A-Za-z_]\w*", step):
            spelled += f".{step}"
        else:
            spelled += f"[{json.dumps(step)}]"
    return spelled


def hue_and_shape(place: int) -> tuple[str, str]:
    """The look of the ``place``-th thing of a chart: 0 is the reference's."""
    return f"c{place % 9}", SHAPES[place % len(SHAPES)]


def figure_html(figure: Figure, result: Result, link: str) -> str:
    """The figure, the file and path its data come from, and the same as a table."""
    parts = [f"<figure><h3>{escape(figure.title)}</h3>"]
    parts.append(f"<figcaption>{escape(figure.note)}</figcaption>" if figure.note else "")
    if figure.legend:
        parts.append(_legend(figure.legend, always=figure.legend_always))
    if figure.draw is not None:
        parts.append(f'<div class="wide">{figure.draw(WIDE)}</div><div class="narrow">{figure.draw(PHONE)}</div>')
    else:
        parts.append(f'<div class="panels">{"".join(figure.panels)}</div>')
    places = ", ".join(f"<code>{escape(place)}</code>" for place in figure.places)
    parts.append(f'<p class="source">Data: <a href="{escape(link)}">{escape(result.name)}</a> {places}</p>')
    if figure.table is not None:
        table = table_html(figure.table, figure.title)
        parts.append(f"<details><summary>The same as a table</summary>{table}</details>")
    return "".join([*parts, "</figure>"])


def table_html(table: Table, caption: str) -> str:
    """A table that scrolls by itself where it is too wide."""
    head = "".join(
        f'<th scope="col"{"" if place < table.left else NUMBER}>{escape(cell)}</th>'
        for place, cell in enumerate(table.header)
    )
    body = "".join(f"<tr>{_cells(row, table.left)}</tr>" for row in table.rows)
    label = escape(caption)
    return (
        f'<div class="wide-table" role="region" tabindex="0" aria-label="{label}"><table>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


NUMBER = ' class="number"'


def _cells(row: Sequence[str], left: int) -> str:
    first = f'<th scope="row">{escape(row[0])}</th>'
    rest = (
        f"<td{NUMBER if place >= left else _words(cell)}>{escape(cell)}</td>" for place, cell in enumerate(row[1:], 1)
    )
    return first + "".join(rest)


def _words(cell: str) -> str:
    return ' class="words"' if len(cell) > 40 else ' class="brief"' if len(cell) <= 20 else ""


def _legend(legend: Legend, *, always: bool) -> str:
    items = []
    for name, hue, shape in legend:
        svg = Svg(14, 14, "")
        svg.mark(shape, 7, 7, hue if " " in hue else f"{hue} fill", radius=4.5)
        chip = str(svg).replace('role="img" aria-label=""', 'aria-hidden="true"')
        items.append(f"<li>{chip}{escape(name)}</li>")
    return f'<ul class="legend{"" if always else " narrow"}">{"".join(items)}</ul>'
