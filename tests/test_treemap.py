"""Treemaps: areas in proportion, no gaps, no overlaps, nothing outside."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orthoopt.treemap import Box, treemap

SIZES = st.lists(st.integers(1, 10**9), min_size=1, max_size=40)
WHOLE = Box(3, 5, 200, 100)


@given(SIZES)
def test_boxes_fill_the_whole_in_proportion(sizes: list[int]) -> None:
    boxes = treemap(sizes, WHOLE)
    total = WHOLE.width * WHOLE.height
    for size, box in zip(sizes, boxes, strict=True):
        # Double rounding, relative to the whole.
        assert box.width * box.height == pytest.approx(total * size / sum(sizes), rel=1e-6, abs=1e-9 * total)
        assert box.width >= 0 and box.height >= 0
        assert WHOLE.x - 1e-6 <= box.x and box.x + box.width <= WHOLE.x + WHOLE.width + 1e-6
        assert WHOLE.y - 1e-6 <= box.y and box.y + box.height <= WHOLE.y + WHOLE.height + 1e-6


@given(SIZES)
def test_boxes_do_not_overlap(sizes: list[int]) -> None:
    boxes = treemap(sizes, WHOLE)
    for i, a in enumerate(boxes):
        for b in boxes[i + 1 :]:
            across = min(a.x + a.width, b.x + b.width) - max(a.x, b.x)
            down = min(a.y + a.height, b.y + b.height) - max(a.y, b.y)
            assert min(across, down) <= 1e-6


def test_equal_sizes_are_nearly_square_and_in_order() -> None:
    boxes = treemap([1] * 32, WHOLE)
    assert all(0.4 < box.width / box.height < 2.5 for box in boxes)
    assert boxes[0][:2] == (3, 5) and treemap([], WHOLE) == []
