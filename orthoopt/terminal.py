"""Text for a terminal: colours where they are wanted, columns that align, lines that fit."""

from __future__ import annotations

import os
import shutil
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, NamedTuple, TextIO, TypeAlias

When: TypeAlias = Literal["auto", "always", "never"]
WHEN: tuple[When, ...] = ("auto", "always", "never")

_CODES = {
    "bold": "1",
    "dim": "2",
    "reverse": "7",
    "red": "31",
    "green": "32",
    "yellow": "33",
    "blue": "34",
    "magenta": "35",
    "cyan": "36",
    "bright_green": "92",
    "bright_yellow": "93",
    "bright_blue": "94",
    "bright_magenta": "95",
    "bright_cyan": "96",
}
HUES = (
    "cyan", "green", "magenta", "yellow", "blue",
    "bright_cyan", "bright_green", "bright_magenta", "bright_yellow", "bright_blue",
)  # fmt: skip
"""Styles that tell categories apart; red is for what is wrong."""


def wants_color(when: str, stream: TextIO, environ: Mapping[str, str] | None = None) -> bool:
    """Whether text for a stream should be coloured.

    Args:
        when: ``always``, ``never``, or ``auto``: NO_COLOR forbids, FORCE_COLOR demands, TERM=dumb forbids, in this
            order if not empty, as in Python's own tracebacks; else if the stream is a terminal.
        stream: where the text goes.
        environ: None for the process's own.

    Raises:
        ValueError: another ``when``.
    """
    if when not in WHEN:
        raise ValueError(f"color={when!r} must be one of {', '.join(map(repr, WHEN))}")
    if when != "auto":
        return when == "always"
    environ = os.environ if environ is None else environ
    if environ.get("NO_COLOR"):
        return False
    if environ.get("FORCE_COLOR"):
        return True
    return environ.get("TERM") != "dumb" and stream.isatty()


def columns_of(stream: TextIO, default: int) -> int | None:
    """Columns of the terminal behind a stream, ``default`` if it does not say; None where there is none."""
    return shutil.get_terminal_size((default, 24)).columns if stream.isatty() else None


class Paint:
    """``paint("text", "bold", "cyan")``: text with styles, or as it is where colours are off."""

    def __init__(self, on: bool) -> None:
        self.on = on

    def __call__(self, text: str, *styles: str) -> str:
        """The text in these styles, reset at its end; KeyError for a style that there is not."""
        codes = ";".join(_CODES[style] for style in styles)
        return f"\x1b[{codes}m{text}\x1b[0m" if self.on and codes and text else text


class Cell(NamedTuple):
    """A word of a table, and how it is painted."""

    text: str
    styles: tuple[str, ...] = ()


class Painted(NamedTuple):
    """A line, and how many columns it fills: escape sequences have a length, but no width."""

    text: str
    width: int


GAP = "  "


def aligned(rows: Sequence[Sequence[Cell]], paint: Paint, right: Iterable[int] = ()) -> list[Painted]:
    """Rows of equally many cells as lines, each column as wide as its widest cell.

    Args:
        rows: at least one.
        paint: applied to the padded cells.
        right: the columns whose cells stand to the right.
    """
    right = set(right)
    widths = [max(len(cell.text) for cell in column) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        last = max((place for place, cell in enumerate(row) if cell.text), default=0)
        padded = [
            cell.text.rjust(wide) if place in right else cell.text.ljust(wide)
            for place, (cell, wide) in enumerate(zip(row, widths, strict=True))
        ][: last + 1]
        padded[-1] = padded[-1].rstrip()
        text = GAP.join(paint(word, *cell.styles) for word, cell in zip(padded, row, strict=False))
        lines.append(Painted(text, sum(map(len, padded)) + len(GAP) * last))
    return lines


def wrapped(text: str, width: int | None, indent: str = "") -> list[str]:
    """The text in indented lines of at most ``width`` columns; None: in one, however long."""
    if width is None:
        return [indent + text]
    return textwrap.wrap(text, width, initial_indent=indent, subsequent_indent=indent) or [indent]
