"""Lines over each other in a terminal: Braille dots where they can be shown, and letters that tell lines apart."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from orthoopt.terminal import HUES, Paint

_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))  # of a Braille cell: four rows of two
_BRAILLE = 0x2800
_FEW = 8


@dataclass(frozen=True)
class Line:
    """A letter, and points from left to right."""

    letter: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Frame:
    """What the axes span."""

    x_low: float
    x_high: float
    y_low: float
    y_high: float


def frame_of(lines: Sequence[Line], cut_start: float = 0.1) -> Frame:
    """From just under the lowest value up to the highest after the first tenth, where losses fall from far above.

    Args:
        lines: with at least one point together.
        cut_start: share of the way whose values may stand out above, of lines of more than a few points.
    """
    spots = [point for line in lines for point in line.points]
    x_low, x_high = min(x for x, _ in spots), max(x for x, _ in spots)
    start = x_low + cut_start * (x_high - x_low)
    late = [y for line in lines for x, y in line.points if x >= start or len(line.points) < _FEW]
    y_low, y_high = min(y for _, y in spots), max(late)
    space = max(0.03 * (y_high - y_low), 1e-4 * max(abs(y_high), abs(y_low), 1.0))
    if x_high - x_low < 1e-6 * max(abs(x_high), 1.0):
        x_low, x_high = x_low - 0.5, x_high + 0.5
    return Frame(x_low, x_high, y_low - space, y_high + space)


def terminal_chart(
    lines: Sequence[Line], *, width: int, height: int, x: str, y: str, paint: Paint, braille: bool = True
) -> str:
    """The chart, every line at most ``width`` columns wide.

    Args:
        lines: drawn in this order.
        width: in columns, at least 30.
        height: of the plot, in lines.
        x: what is measured along.
        y: what is measured upwards, written above.
        paint: colours of the lines.
        braille: False draws each line with its letter, in ASCII.
    """
    frame = frame_of(lines)
    ticks = _ticks(frame.y_low, frame.y_high, max(3, height // 3))
    names = [f"{tick:.{_decimals(ticks)}f}" for tick in ticks]
    gutter = max(map(len, names))
    columns = width - gutter - 5
    canvas = _Canvas(columns, height, frame)
    for place, line in enumerate(lines):
        canvas.draw(line, place)
    if braille:
        for place, line in enumerate(lines):
            canvas.sign(line, place, len(lines))
    bars = ("│", "┤", "└", "─", "┬") if braille else ("|", "+", "+", "-", "+")
    at = {canvas.row(tick): name for tick, name in zip(ticks, names, strict=True)}
    ends = canvas.ends(lines)
    rows = [f"{' ' * max(gutter - len(y), 0)}{y}"[:width]]
    for row in range(height):
        bar = bars[1] if row in at else bars[0]
        end = " ".join(paint(lines[place].letter, _hue(place)) for place in ends.get(row, [])[:1])
        drawn = canvas.text(row, lines, paint, braille)
        rows.append(f"{at.get(row, ''):>{gutter}} {bar}{drawn} {end}".rstrip())
    rows += _below(frame, canvas, gutter, columns, x, bars)
    return "\n".join(rows)


def _hue(place: int) -> str:
    return HUES[place % len(HUES)]


class _Canvas:
    """Cells of dots; each cell belongs to the line that was drawn into it last, and may hold a letter."""

    def __init__(self, columns: int, height: int, frame: Frame) -> None:
        self.columns, self.height, self.frame = columns, height, frame
        self.masks = [[0] * columns for _ in range(height)]
        self.owners = [[-1] * columns for _ in range(height)]
        self.letters: dict[tuple[int, int], int] = {}

    def spot(self, x: float, y: float) -> tuple[float, float]:
        """Dots from the left and from the top."""
        f = self.frame
        across = (x - f.x_low) / (f.x_high - f.x_low) * (2 * self.columns - 1)
        return across, (f.y_high - y) / (f.y_high - f.y_low) * (4 * self.height - 1)

    def row(self, y: float) -> int:
        """The row of cells of a value, kept within."""
        return min(max(int(round(self.spot(self.frame.x_low, y)[1]) // 4), 0), self.height - 1)

    def draw(self, line: Line, place: int) -> None:
        """Dots along the line, those outside the frame left out."""
        spots = [self.spot(x, y) for x, y in line.points]
        for (x1, y1), (x2, y2) in zip(spots, spots[1:] or spots, strict=False):
            steps = max(1, math.ceil(max(abs(x2 - x1), abs(y2 - y1))))
            for k in range(steps + 1):
                self._dot(x1 + (x2 - x1) * k / steps, y1 + (y2 - y1) * k / steps, place)

    def _dot(self, across: float, down: float, place: int) -> None:
        column, row = int(round(across)), int(round(down))
        if 0 <= column < 2 * self.columns and 0 <= row < 4 * self.height:
            self.masks[row // 4][column // 2] |= _DOTS[row % 4][column % 2]
            self.owners[row // 4][column // 2] = place

    def sign(self, line: Line, place: int, count: int) -> None:
        """The line's letter on itself every dozen columns or so, at columns of its own, where it is not hidden."""
        apart = max(12, 2 * count)
        for column in range(3 + place * apart // count, self.columns - 2, apart):
            rows = [row for row in range(self.height) if self.owners[row][column] == place]
            if rows and (rows[0], column) not in self.letters:
                self.letters[rows[len(rows) // 2], column] = place

    def ends(self, lines: Sequence[Line]) -> dict[int, list[int]]:
        """Rows beside which lines' letters stand, each line in a row of its own while there are enough."""
        wanted = sorted((self.row(line.points[-1][1]), place) for place, line in enumerate(lines) if line.points)
        taken: dict[int, list[int]] = {}
        low = 0
        for number, (row, place) in enumerate(wanted):
            left = len(wanted) - number - 1
            at = min(max(row, low), max(self.height - 1 - left, low), self.height - 1)
            taken.setdefault(at, []).append(place)
            low = at + 1
        return taken

    def text(self, row: int, lines: Sequence[Line], paint: Paint, braille: bool) -> str:
        """A row, in the colours of its lines; neighbours of one look share their escape sequences."""
        cells: list[tuple[str, tuple[str, ...]]] = []
        for column in range(self.columns):
            mask, owner = self.masks[row][column], self.owners[row][column]
            if (row, column) in self.letters:
                place = self.letters[row, column]
                cells.append((lines[place].letter, ("bold", _hue(place))))
            elif not mask:
                cells.append((" ", ()))
            else:
                cells.append((chr(_BRAILLE + mask) if braille else lines[owner].letter, (_hue(owner),)))
        grouped = groupby(cells, key=lambda cell: cell[1])
        return "".join(paint("".join(char for char, _ in group), *styles) for styles, group in grouped)


def _below(frame: Frame, canvas: _Canvas, gutter: int, columns: int, x: str, bars: Sequence[str]) -> list[str]:
    """The horizontal axis: its line, its figures, what it measures."""
    rule, figures = [bars[3]] * columns, [" "] * (columns + 3)
    ticks = _ticks(frame.x_low, frame.x_high, max(2, columns // 14))
    free = 0
    for tick in ticks:
        column = min(max(int(canvas.spot(tick, frame.y_low)[0] // 2), 0), columns - 1)
        name = f"{tick:,.{_decimals(ticks)}f}"
        start = min(max(column - len(name) // 2, 0), columns + 3 - len(name))
        rule[column] = bars[4]
        if start >= free:
            figures[start : start + len(name)] = name
            free = start + len(name) + 2
    pad = " " * (gutter + 1)
    return [f"{pad}{bars[2]}{''.join(rule)}", f"{pad} {''.join(figures)}".rstrip(), f"{pad} {x:^{columns}}".rstrip()]


def _ticks(low: float, high: float, about: int) -> list[float]:
    """Round values from low to high, about so many."""
    rough = (high - low) / about
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(k * unit for k in (1, 2, 5, 10) if k * unit >= rough * 0.999)
    return [place * step for place in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def _decimals(ticks: Sequence[float]) -> int:
    """Decimals that tell neighbouring ticks apart."""
    step = min((b - a for a, b in zip(ticks, ticks[1:], strict=False)), default=1.0)
    return max(0, -math.floor(math.log10(step) + 1e-9))
