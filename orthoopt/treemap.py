"""Rectangles whose areas are in proportion to numbers, as square as they can be in the given order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Box(NamedTuple):
    """A rectangle: left and top edge, width and height."""

    x: float
    y: float
    width: float
    height: float


def treemap(sizes: Sequence[float], box: Box) -> list[Box]:
    """One box for each size, together filling ``box`` without gaps.

    Squarified (Bruls, Huizing, van Wijk, 2000): boxes are laid along the shorter side of what is left, as many in a
    row as make the worst of them squarer.

    Args:
        sizes: positive.
        box: of positive width and height.
    """
    scale = box.width * box.height / sum(sizes) if sizes else 0
    areas = [size * scale for size in sizes]
    boxes: list[Box] = []
    start = 0
    while start < len(areas):
        side = min(box.width, box.height)
        end = start + 1
        while end < len(areas) and _worst(areas[start : end + 1], side) <= _worst(areas[start:end], side):
            end += 1
        row = areas[start:end]
        # The last row takes what is left, so that rounding leaves no gap and no negative side.
        thick = sum(row) / side if end < len(areas) else max(box.width, box.height)
        boxes += _laid(row, box, thick)
        if box.width >= box.height:
            box = Box(box.x + thick, box.y, max(box.width - thick, 1e-12), box.height)
        else:
            box = Box(box.x, box.y + thick, box.width, max(box.height - thick, 1e-12))
        start = end
    return boxes


def _laid(row: Sequence[float], box: Box, thick: float) -> list[Box]:
    """A row along the shorter side of a box."""
    upright = box.width >= box.height
    side, total, done = min(box.width, box.height), sum(row), 0.0
    boxes = []
    for area in row:
        length = side * area / total
        boxes.append(Box(box.x, box.y + done, thick, length) if upright else Box(box.x + done, box.y, length, thick))
        done += length
    return boxes


def _worst(row: Sequence[float], side: float) -> float:
    """The largest ratio of sides in a row of these areas along a side."""
    total = sum(row)
    return max(side * side * max(row) / (total * total), total * total / (side * side * min(row)))
