"""Charts of one quantity over another: lines with bands and marks, named where they end."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from orthoopt.bench.report_svg import Scale, Svg, fitted, power_of_ten, scale_over, short, text_width

Point = tuple[float, float]


@dataclass(frozen=True)
class Series:
    """What is drawn of one thing: a line, marks, or both, and a band of lowest and highest values around it."""

    name: str
    points: tuple[Point, ...]
    hue: str = "c1"
    shape: str | None = "circle"
    line: bool = True
    thin: bool = False
    band: tuple[tuple[float, float, float], ...] = ()
    ringed: int | None = None
    tips: tuple[str, ...] = ()
    named: bool = True


def xy_chart(
    series: Sequence[Series],
    width: int,
    height: int,
    *,
    x: str,
    y: str,
    label: str,
    title: str = "",
    log_x: bool = False,
    log_y: bool = False,
    y_range: tuple[float, float] | None = None,
    x_range: tuple[float, float] | None = None,
    direct: bool = True,
    spell_x: Callable[[float], str] | None = None,
    x_ticks: Sequence[float] | None = None,
) -> str:
    """The chart as SVG.

    Args:
        series: drawn in this order, later ones on top.
        width: of the picture.
        height: of it.
        x: what is measured along, with its unit.
        y: what is measured, with its unit.
        label: the picture in words, for who does not see it.
        title: a line above.
        log_x: a logarithmic axis.
        log_y: the same upwards.
        y_range: values outside are left out: lines end at the edge, bands are cut there.
        x_range: of the axis; else what is drawn decides.
        direct: name lines beside their ends.
        spell_x: a tick in words.
        x_ticks: where ticks stand, if not at round values.
    """
    ends = [one for one in series if one.named and one.points] if direct else []
    names = min(max((text_width(one.name, bold=True) for one in ends), default=0.0), width * 0.3)
    every = [point for one in series for point in one.points]
    if not every:
        raise ValueError("there is nothing to draw")
    y_spots = [at for one in series for at in [*(p[1] for p in one.points), *(v for b in one.band for v in b[1:])]]
    low, high = y_range or (min(y_spots), max(y_spots))
    rising = scale_over([low, high], 0, 1, log=log_y, margin=0.0 if y_range else 0.06)
    labels = [power_of_ten(tick) if log_y else short(tick) for tick in rising.ticks(5)]
    left = max(map(text_width, labels), default=20.0) + 8
    top, bottom = (40.0 if title else 24.0), height - 40.0
    right = width - (names + 22 if ends else 10)
    rising = Scale(rising.low, rising.high, bottom, top, log_y)
    across = scale_over(list(x_range or [p[0] for p in every]), left, right, log=log_x, margin=0.03)
    svg = Svg(width, height, label)
    if title:
        svg.text(0, 14, fitted(title, width, bold=True), "strong")
    svg.text(0, top - 10, fitted(y, width), "tick")
    _axes(svg, across, rising, x, width, spell_x, x_ticks)
    for one in series:
        _band(svg, one, across, rising)
    for one in series:
        _line(svg, one, across, rising)
    _names(svg, ends, across, rising, names)
    return str(svg)


def _axes(
    svg: Svg, across: Scale, rising: Scale, x: str, width: int, spell: Callable[[float], str] | None,
    ticks: Sequence[float] | None,
) -> None:  # fmt: skip
    for tick in rising.ticks(5):
        at = rising(tick)
        svg.line(across.start, at, across.end, at, "grid")
        svg.text(across.start - 6, at + 4, power_of_ten(tick) if rising.log else short(tick), "tick", anchor="end")
    spell = spell or (power_of_ten if across.log else short)
    taken = -1e9
    for tick in ticks or across.ticks(max(2, int((across.end - across.start) / 70))):
        at, name = across(tick), spell(tick)
        svg.line(at, rising.start, at, rising.start + 4, "axis")
        half = text_width(name) / 2
        place = min(max(at, half), width - half)
        if place - half > taken + 6:
            svg.text(place, rising.start + 18, name, "tick", anchor="middle")
            taken = place + half
    svg.line(across.start, rising.start, across.end, rising.start, "axis")
    half = text_width(x) / 2
    svg.text(max((across.start + across.end) / 2, half), rising.start + 35, x, "tick", anchor="middle")


def _band(svg: Svg, one: Series, across: Scale, rising: Scale) -> None:
    if len(one.band) < 2:
        return
    inside = [(x, *(min(max(v, rising.low), rising.high) for v in (lo, hi))) for x, lo, hi in one.band]
    outline = [(across(x), rising(hi)) for x, _, hi in inside] + [(across(x), rising(lo)) for x, lo, _ in inside[::-1]]
    svg.path(outline, f"{one.hue} band", closed=True)


def _line(svg: Svg, one: Series, across: Scale, rising: Scale) -> None:
    pieces = clipped(one.points, rising.low, rising.high) if one.line else []
    for piece in pieces:
        spots = [(across(x), rising(y)) for x, y in piece]
        svg.path(spots, f"{one.hue} {'thin' if one.thin else 'line'}", tip=one.name)
    if one.shape is None:
        return
    tips = one.tips or tuple(f"{one.name}: {short(y)} at {short(x)}" for x, y in one.points)
    for place, ((x, y), tip) in enumerate(zip(one.points, tips, strict=True)):
        if rising.low <= y <= rising.high:
            if place == one.ringed:
                svg.mark("circle", across(x), rising(y), f"{one.hue} ring", radius=8.5)
            svg.mark(one.shape, across(x), rising(y), f"{one.hue} fill mark", radius=3.6, tip=tip)


def clipped(points: Sequence[Point], low: float, high: float) -> list[list[Point]]:
    """The pieces of a line through points that lie between two heights, cut exactly where it crosses them."""
    pieces: list[list[Point]] = []
    for (x1, y1), (x2, y2) in zip(points, points[1:], strict=False):
        cuts = [(bound - y1) / (y2 - y1) for bound in (low, high) if y1 != y2]
        inner = sorted(t for t in cuts if 0 < t < 1)
        for start, end in zip([0.0, *inner], [*inner, 1.0], strict=True):
            middle = y1 + (start + end) / 2 * (y2 - y1)
            if not low <= middle <= high:
                continue
            ends = [(x1 + t * (x2 - x1), min(max(y1 + t * (y2 - y1), low), high)) for t in (start, end)]
            if pieces and math.dist(pieces[-1][-1], ends[0]) < 1e-12:
                pieces[-1].append(ends[1])
            else:
                pieces.append(ends)
    return pieces


def _names(svg: Svg, ends: Sequence[Series], across: Scale, rising: Scale, room: float) -> None:
    """Each line's name beside its last point, moved apart where they would touch."""
    spots = []
    for one in ends:
        x, y = one.points[-1]
        spots.append((rising(min(max(y, rising.low), rising.high)), across(x), one))
    spots.sort(key=lambda spot: spot[0])
    heights = spread([spot[0] for spot in spots], 15.0, rising.end, rising.start)
    for (y, x, one), moved in zip(spots, heights, strict=True):
        start = across.end + 16
        svg.path([(x + 5, y), (start - 3, moved)], f"{one.hue} leader")
        svg.text(start, moved + 4, fitted(one.name, room, bold=True), f"{one.hue} name")


def spread(wanted: Sequence[float], apart: float, low: float, high: float) -> list[float]:
    """Sorted places near the wanted ones, at least ``apart`` from each other, within bounds if there is room."""
    places = list(wanted)
    for _ in range(60):
        for k in range(len(places) - 1):
            lack = apart - (places[k + 1] - places[k])
            if lack > 0:
                places[k] -= lack / 2
                places[k + 1] += lack / 2
        if places:
            places[0] = max(places[0], low)
            places[-1] = min(places[-1], high)
    for k in range(1, len(places)):
        places[k] = max(places[k], places[k - 1] + apart)
    return places
