"""Charts of rows: one name a line, with a bar from zero, an interval, or marks on a common axis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from orthoopt.bench.report_svg import Scale, Svg, fitted, power_of_ten, scale_over, short, text_width

NARROW = 500
"""Below this width labels stand above their rows."""


@dataclass(frozen=True)
class Dot:
    """A mark in a row, ``lift`` above its middle so that equal values do not cover each other."""

    at: float
    hue: str = "c1"
    shape: str = "circle"
    tip: str = ""
    hollow: bool = False
    lift: float = 0.0
    radius: float = 4.5


@dataclass(frozen=True)
class Row:
    """A line: its label, what is drawn in it, and the figure that ends it; of a ``heading`` the label alone."""

    label: str
    text: str = ""
    hue: str = "c1"
    bar: float | None = None
    interval: tuple[float, float] | None = None
    dots: tuple[Dot, ...] = ()
    tip: str = ""
    heading: bool = False


def rows_chart(
    rows: Sequence[Row],
    width: int,
    *,
    axis: str,
    label: str,
    refs: Sequence[tuple[float, str]] = (),
    log: bool = False,
    limits: tuple[float, float] | None = None,
) -> str:
    """The chart as SVG.

    Bars begin at zero. A bar several times as long as most is cut, with a mark where; its figure stands beside it.

    Args:
        rows: from top to bottom.
        width: of the picture; below :data:`NARROW` labels stand above.
        axis: what is measured, with its unit.
        label: the picture in words, for who does not see it.
        refs: values with their names, drawn as lines through all rows.
        log: a logarithmic axis, for rows without bars.
        limits: of the axis; else all that is drawn decides, reference lines included.
    """
    narrow = width < NARROW
    high, head = (40, 26) if narrow else (25, 32)
    drawn = [row for row in rows if not row.heading]
    values = _values(drawn, refs)
    bars = [row.bar for row in drawn if row.bar is not None]
    cap = _cap(drawn)
    if cap is not None:
        values = [min(value, cap) for value in values]
    text_wide = max((text_width(row.text) for row in rows), default=0.0)
    label_wide = 0.0 if narrow else min(max(text_width(row.label) for row in rows), width * 0.42)
    left = 8.0 if narrow else label_wide + 14
    right = width - 10.0 if narrow else width - text_wide - 16
    top = 22.0 if refs else 8.0
    height = top + sum(head if row.heading else high for row in rows) + 44
    if limits is not None:
        scale = Scale(*limits, left, right, log)
    else:
        scale = scale_over(values, left, right, log=log, zero=bool(bars), margin=0.04)
    svg = Svg(width, height, label)
    bottom = height - 38
    _axis(svg, scale, bottom, axis, width)
    y = top
    for row in rows:  # lines keep out of headings and, on a phone, out of labels
        if not row.heading:
            _lines(svg, scale, [at for at, _ in refs], y + (17 if narrow else 0), y + high)
        y += head if row.heading else high
    for at, name in refs:
        half = text_width(name) / 2
        svg.text(min(max(scale(at), half), width - half), top - 9, name, "tick", anchor="middle")
    y = top
    for row in rows:
        if row.heading:
            svg.text(0, y + head - 9, row.label, "strong")
            y += head
            continue
        middle = y + (27 if narrow else high / 2)
        room = width - text_wide - 12 if narrow else label_wide
        baseline = y + 14 if narrow else middle + 4
        svg.text(0 if narrow else label_wide, baseline, fitted(row.label, room), anchor="start" if narrow else "end")
        svg.text(width, baseline, row.text, "number", anchor="end")
        _row(svg, row, scale, middle, cap)
        y += high
    return str(svg)


def _values(rows: Sequence[Row], refs: Sequence[tuple[float, str]]) -> list[float]:
    values = [at for at, _ in refs]
    for row in rows:
        values += [] if row.bar is None else [row.bar]
        values += list(row.interval or ()) + [dot.at for dot in row.dots]
    return values or [0.0, 1.0]


def is_cut(rows: Sequence[Row]) -> bool:
    """Whether the chart of these rows has a bar that is cut."""
    return _cap([row for row in rows if not row.heading]) is not None


def _cap(rows: Sequence[Row]) -> float | None:
    """Where bars are cut, if a few of many are more than three times as long as all others."""
    ends = sorted(max(row.bar, *(row.interval or (row.bar,))) for row in rows if row.bar is not None)
    for place in range(max(4, len(ends) // 2 + 1), len(ends)):
        if ends[place] > 3 * ends[place - 1] > 0:
            return 1.12 * ends[place - 1]
    return None


def _ticks(scale: Scale) -> list[float]:
    return scale.ticks(max(3, int((scale.end - scale.start) / 80)))


def _lines(svg: Svg, scale: Scale, refs: Sequence[float], top: float, bottom: float) -> None:
    for tick in _ticks(scale):
        svg.line(scale(tick), top, scale(tick), bottom, "zero" if tick == 0 else "grid")
    for at in refs:
        svg.line(scale(at), top, scale(at), bottom, "reference")


def _axis(svg: Svg, scale: Scale, bottom: float, axis: str, width: float) -> None:
    taken = -1e9
    for tick in _ticks(scale):
        x, name = scale(tick), power_of_ten(tick) if scale.log else short(tick)
        half = text_width(name) / 2
        place = min(max(x, half), width - half)
        if place - half > taken + 6:
            svg.text(place, bottom + 16, name, "tick", anchor="middle")
            taken = place + half
    half = text_width(axis) / 2
    center = min(max((scale.start + scale.end) / 2, half), width - half)
    svg.text(center, bottom + 34, axis, "tick", anchor="middle")


def _row(svg: Svg, row: Row, scale: Scale, y: float, cap: float | None) -> None:
    if row.bar is not None:
        cut = cap is not None and row.bar > cap
        end = scale.end if cut else scale(row.bar)
        zero = scale(0.0)
        svg.add(
            "rect", x=min(zero, end), y=y - 6.5, width=max(abs(end - zero), 0.5), height=13, class_=f"{row.hue} fill",
            tip=row.tip,
        )  # fmt: skip
        if cut:
            x = end - 22
            svg.path([(x, y + 9), (x + 5, y - 9), (x + 12, y - 9), (x + 7, y + 9)], "cut", closed=True)
    if row.interval is not None and (cap is None or row.interval[1] <= cap):
        low, high = map(scale, row.interval)
        kind = "whisker" if row.bar is not None else f"{row.hue} interval"
        svg.line(low, y, high, y, kind)
        for x in (low, high):
            svg.line(x, y - 4, x, y + 4, kind)
    for dot in row.dots:
        kind = f"{dot.hue} {'ring' if dot.hollow else 'fill mark'}"
        svg.mark(dot.shape, scale(dot.at), y - dot.lift, kind, radius=dot.radius, tip=dot.tip or row.tip)
