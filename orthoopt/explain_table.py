"""An explanation as text: a table that fits its terminal."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from orthoopt.explain_lines import NARROWEST, Line, Styles, lines_of, reason_with_view, spell_shape
from orthoopt.explain_summary import summary, unsettled
from orthoopt.explanation import Explanation, Row
from orthoopt.terminal import GAP, Cell, Paint, Painted, aligned, wrapped
from orthoopt.views import parse_view

_REASON_WIDTH = 28  # a narrower column of reasons is put below its row
_INDENT = "    "


def explanation_text(explanation: Explanation, *, full: bool, width: int | None, color: bool) -> str:
    """See :meth:`Explanation.text`."""
    width = None if width is None else max(width, NARROWEST)
    paint, styles = Paint(color), Styles(explanation)
    lines = [Line(row.name, [row]) for row in explanation.rows] if full else lines_of(explanation.rows)
    table = _table(lines, width, paint, styles, apart=not full)
    parts = [table, summary(explanation, width, paint, styles), unsettled(explanation, width, paint)]
    return "\n\n".join("\n".join(part) for part in map(list, parts) if part)


def _table(lines: Sequence[Line], width: int | None, paint: Paint, styles: Styles, apart: bool) -> Iterator[str]:
    """The lines with their reasons: beside them, below them, or below their names where there is no room at all."""
    sections = [line.section if apart else 0 for line in lines]
    whole = [[Cell(line.name), *_cells(line.rows[0], styles)] for line in lines]
    header = [Cell(word, ("bold",)) for word in ("name", "shape", "role", "view", "rule", "lr", "decay")]
    head, *body = aligned([header, *whole], paint, right=(5, 6))
    used = max(line.width for line in (head, *body)) + len(GAP)
    if width is None or width - used >= _REASON_WIDTH:
        yield head.text + " " * (used - head.width) + paint("reason", "bold")
        reasons = [wrapped(line.rows[0].reason, None if width is None else width - used) for line in lines]
        yield from _apart(map(_beside, body, reasons, [used] * len(body), [paint] * len(body)), sections)
        yield from _views(lines, width)
        return
    # Composite views are wide: they go to the reasons, in words.
    narrow = [[cell for place, cell in enumerate(cells) if place != 3] for cells in (header, *whole)]
    head, *body = aligned(narrow, paint, right=(4, 5))
    if max(line.width for line in (head, *body)) <= width:
        yield head.text
        yield from _apart((_above(text, line, width, paint) for text, line in zip(body, lines, strict=True)), sections)
        return
    head, *body = aligned([cells[1:] for cells in narrow], paint, right=(3, 4))
    yield paint("name", "bold")
    yield _INDENT + head.text
    yield from _apart((_under_name(text, line, width, paint) for text, line in zip(body, lines, strict=True)), sections)


def _beside(line: Painted, reason: list[str], used: int, paint: Paint) -> list[str]:
    """A row and its reason in a last column."""
    first, *more = [paint(part, "dim") for part in reason]
    return [line.text + " " * (used - line.width) + first, *(" " * used + part for part in more)]


def _above(line: Painted, whose: Line, width: int, paint: Paint) -> list[str]:
    """A row, its reason behind it where it fits there, else below."""
    reason = reason_with_view(whose.rows[0])
    if line.width + len(GAP) + len(reason) <= width:
        return [line.text + GAP + paint(reason, "dim")]
    return [line.text, *(_INDENT + paint(part, "dim") for part in wrapped(reason, width - len(_INDENT)))]


def _under_name(line: Painted, whose: Line, width: int, paint: Paint) -> list[str]:
    """A name, and below it what it gets."""
    name = [paint(part, "bold") for part in _broken(whose.name, width)]
    if line.width + len(_INDENT) > width:
        row = whose.rows[0]
        words = f"{spell_shape(row)} {row.role} {row.rule} lr {row.lr:g} decay {row.weight_decay:g}"
        reason = wrapped(reason_with_view(row), width - len(_INDENT))
        return [*name, *wrapped(words, width, _INDENT), *(_INDENT + paint(part, "dim") for part in reason)]
    inner = _above(line, whose, width - len(_INDENT), paint)
    return [*name, _INDENT + inner[0], *inner[1:]]


def _apart(blocks: Iterable[list[str]], sections: Sequence[int]) -> Iterator[str]:
    """Blocks of lines, an empty line between those of different sections."""
    previous = None
    for block, section in zip(blocks, sections, strict=True):
        if previous is not None and previous != section:
            yield ""
        yield from block
        previous = section


def _broken(name: str, width: int) -> list[str]:
    """A name in lines of at most ``width``, broken before dots where that can be."""
    lines = [""]
    for part in name.replace(".", "\0.").split("\0"):
        if len(lines[-1]) + len(part) > width and lines[-1]:
            lines.append("")
        lines[-1] += part
        while len(lines[-1]) > width:
            lines[-1:] = [lines[-1][:width], lines[-1][width:]]
    return lines


def _cells(row: Row, styles: Styles) -> list[Cell]:
    shape = spell_shape(row)
    return [
        Cell(shape), styles.role(row.role), Cell(row.view), styles.rule(row.rule),
        Cell(f"{row.lr:g}"), Cell(f"{row.weight_decay:g}"),
    ]  # fmt: skip


def _views(lines: Sequence[Line], width: int | None) -> Iterator[str]:
    """What the composite views in the table mean."""
    views = dict.fromkeys(line.rows[0].view for line in lines)
    words = [(view, parse_view(view).describe()) for view in views if view not in ("matrix", "vector")]
    if not words:
        return
    yield ""
    side = max(len("view"), *(len(view) for view, _ in words)) + len(GAP)
    for view, said in (("view", "seen as"), *words):
        first, *more = wrapped(said, None if width is None else max(width - side, 20))
        yield f"{view:{side}}{first}"
        yield from (" " * side + part for part in more)
