"""Static SVG: scales and their ticks, how long a text is, and a picture that is put together element by element."""

from __future__ import annotations

import math
from dataclasses import dataclass
from html import escape

SIZE = 12.0
"""Height of all text, in the picture's units, which are pixels where the page shows it at its own width."""

# Widths in DejaVu Sans, the widest of the fonts that browsers take for system-ui; what fits in it fits in all.
_NARROW = dict.fromkeys("iljI|'.,:; !", 0.32) | dict.fromkeys("frt()[]/-", 0.42)
_WIDE = dict.fromkeys("mwMW%@+<>=±−×", 0.92)
_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")

SHAPES = ("circle", "square", "triangle", "diamond", "down", "cross", "pentagon", "star")


_WIDTHS = _NARROW | _WIDE


def text_width(text: str, *, bold: bool = False) -> float:
    """An upper bound on the width of a line of text."""
    return SIZE * (1.12 if bold else 1.0) * sum(_WIDTHS.get(char, 0.70 if char.isupper() else 0.63) for char in text)


def fitted(text: str, width: float, *, bold: bool = False) -> str:
    """The text, cut with an ellipsis if it is wider than ``width``."""
    if text_width(text, bold=bold) <= width:
        return text
    while text and text_width(text + "…", bold=bold) > width:
        text = text[:-1]
    return text + "…"


def short(value: float) -> str:
    """Three digits or four: 0.00123, 1.23, 123, 12,345."""
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else "-"
    size = abs(value)
    if size >= 1000:
        return f"{value:,.0f}"
    if size < 1e-3:
        mantissa, _, power = f"{value:.2e}".partition("e")
        return f"{float(mantissa):g}e{int(power)}"
    return f"{value:.3g}"


def power_of_ten(value: float) -> str:
    """A tick of a logarithmic axis: small and large powers of ten as such."""
    power = round(math.log10(value))
    if math.isclose(value, 10.0**power) and not -3 <= power <= 3:
        return "10" + str(power).translate(_SUPERSCRIPT)
    return short(value)


@dataclass(frozen=True)
class Scale:
    """Values from ``low`` to ``high``, both finite and not equal, onto coordinates from ``start`` to ``end``."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """The coordinate of a value."""
        low, high, value = map(self._moved, (self.low, self.high, value))
        return self.start + (self.end - self.start) * (value - low) / (high - low)

    def ticks(self, about: int = 5) -> list[float]:
        """Round values within the scale: steps of 1, 2 or 5, powers of ten on a logarithmic one."""
        if self.log:
            first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
            every = max(1, math.ceil((last - first) / about))
            found = self._within([10.0**power for power in range(first, last + 1) if (power - first) % every == 0])
            if len(found) >= 3:
                return found
            finer = (1, 2, 5) if last - first <= 2 else (1, 3)
            found = self._within([k * 10.0**power for power in range(first, last + 1) for k in finer])
            if len(found) >= 2:
                return found
        rough = (self.high - self.low) / about
        unit = 10.0 ** math.floor(math.log10(rough))
        step = next(k * unit for k in (1, 2, 5, 10) if k * unit >= rough * 0.999)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [place * step for place in range(first, last + 1)]

    def _within(self, values: list[float]) -> list[float]:
        return [value for value in values if self.low * (1 - 1e-9) <= value <= self.high * (1 + 1e-9)]

    def _moved(self, value: float) -> float:
        return math.log10(value) if self.log else value


def scale_over(
    values: list[float], start: float, end: float, *, log: bool = False, margin: float = 0.05, zero: bool = False
) -> Scale:
    """A scale that holds all values with a margin on both sides; from zero on if ``zero`` and none is below."""
    low, high = min(values), max(values)
    if log:
        low, high = math.log10(low), math.log10(high)
        space = margin * (high - low) if high > low else 0.2
        return Scale(10 ** (low - space), 10 ** (high + space), start, end, True)
    if zero:
        low, high = min(low, 0.0), max(high, 0.0)
    space = margin * (high - low) if high > low else abs(high) * 0.1 or 1.0
    return Scale(0.0 if zero and low == 0 else low - space, 0.0 if zero and high == 0 else high + space, start, end)


class Svg:
    """A picture of a fixed view box. Coordinates that are no numbers are a ValueError, and never reach a page."""

    def __init__(self, width: float, height: float, label: str) -> None:
        self.width, self.height, self.label = width, height, label
        self._parts: list[str] = []

    def add(self, name: str, *, text: str | None = None, tip: str | None = None, **attributes: str | float) -> None:
        """Append an element; ``class_`` is class, ``text_anchor`` text-anchor; ``tip`` is shown to who points at it."""
        words = {k: v if isinstance(v, str) else number(v) for k, v in attributes.items()}
        spelled = "".join(f' {k.rstrip("_").replace("_", "-")}="{escape(v)}"' for k, v in words.items())
        inside = f"<title>{escape(tip)}</title>" if tip else ""
        inside += escape(text) if text else ""
        self._parts.append(f"<{name}{spelled}>{inside}</{name}>" if inside else f"<{name}{spelled}/>")

    def line(self, x1: float, y1: float, x2: float, y2: float, class_: str) -> None:
        """A straight line."""
        self.add("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=class_)

    def text(self, x: float, y: float, text: str, class_: str = "", *, anchor: str = "start") -> None:
        """A line of text on the baseline ``y``."""
        extra = {} if anchor == "start" else {"text_anchor": anchor}
        self.add("text", text=text, x=x, y=y, **({"class_": class_} if class_ else {}), **extra)

    def path(self, points: list[tuple[float, float]], class_: str, *, closed: bool = False, tip: str = "") -> None:
        """A line through points, or the area inside."""
        data = "M" + "L".join(f"{number(x)} {number(y)}" for x, y in points) + ("Z" if closed else "")
        self.add("path", d=data, class_=class_, tip=tip or None)

    def mark(self, shape: str, x: float, y: float, class_: str, *, radius: float = 4.0, tip: str = "") -> None:
        """One of :data:`SHAPES`, or ``bar``, all of about the same area."""
        if shape == "circle":
            self.add("circle", cx=x, cy=y, r=radius, class_=class_, tip=tip or None)
            return
        corners = [(x + radius * dx, y + radius * dy) for dx, dy in _CORNERS[shape]]
        self.path(corners, class_, closed=True, tip=tip)

    def __str__(self) -> str:
        """The element, to be put into a page as it is."""
        size = f'viewBox="0 0 {number(self.width)} {number(self.height)}"'
        return f'<svg {size} role="img" aria-label="{escape(self.label)}">{"".join(self._parts)}</svg>'


def number(value: float) -> str:
    """A coordinate to a hundredth; ValueError for NaN and infinities."""
    if not math.isfinite(value):
        raise ValueError(f"{value} is no coordinate")
    text = f"{value:.2f}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text


def _regular(corners: int, radius: float, turn: float, inner: float | None = None) -> list[tuple[float, float]]:
    """Corners of a regular polygon, or of a star whose other corners are at ``inner``."""
    count = corners * (1 if inner is None else 2)
    angles = [turn + 2 * math.pi * k / count for k in range(count)]
    radii = [radius if inner is None or k % 2 == 0 else inner for k in range(count)]
    return [(r * math.sin(a), -r * math.cos(a)) for r, a in zip(radii, angles, strict=True)]


_CORNERS: dict[str, list[tuple[float, float]]] = {
    "square": [(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)],
    "triangle": [(0, -1.2), (1.15, 0.8), (-1.15, 0.8)],
    "down": [(0, 1.2), (1.15, -0.8), (-1.15, -0.8)],
    "diamond": [(0, -1.35), (1.35, 0), (0, 1.35), (-1.35, 0)],
    "cross": [(-0.4, -1.2), (0.4, -1.2), (0.4, -0.4), (1.2, -0.4), (1.2, 0.4), (0.4, 0.4),
              (0.4, 1.2), (-0.4, 1.2), (-0.4, 0.4), (-1.2, 0.4), (-1.2, -0.4), (-0.4, -0.4)],
    "pentagon": _regular(5, 1.2, 0.0),
    "star": _regular(5, 1.5, 0.0, 0.65),
    "bar": [(-0.28, -1.5), (0.28, -1.5), (0.28, 1.5), (-0.28, 1.5)],
}  # fmt: skip
