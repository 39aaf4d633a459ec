from __future__ import annotations

import math

import hypothesis.strategies as st
import pytest
from hypothesis import given

from orthoopt.bench.grid import MOST_EXTENSIONS, Grid, GridError, Point, best_index, next_index, search


class Bowl:
    """A fake runner: each arm's loss is a bowl over the index, infinite from a cliff on."""

    def __init__(self, bottoms: dict[str, int], cliff: int | None = None) -> None:
        self.bottoms, self.cliff, self.calls = bottoms, cliff, []

    def __call__(self, points: list[Point]) -> list[float]:
        self.calls.append(points)
        return [self.loss(arm, index) for arm, index in points]

    def loss(self, arm: str, index: int) -> float:
        return math.nan if self.cliff is not None and index >= self.cliff else float((index - self.bottoms[arm]) ** 2)


def test_rates_are_geometric_and_equal_points_equal_numbers() -> None:
    fine, coarse = Grid(2**0.5), Grid(2.0)
    assert [coarse.rate(k) for k in (-1, 0, 1, 4)] == [5e-4, 1e-3, 2e-3, 1.6e-2]
    assert [fine.rate(2 * k) for k in range(-4, 6)] == [coarse.rate(k) for k in range(-4, 6)]
    with pytest.raises(ValueError, match="factor"):
        Grid(1.0)


def test_a_grid_is_laid_around_a_rate() -> None:
    grid = Grid(2.0)
    assert [grid.rate(k) for k in grid.around(2e-3, 5)] == [5e-4, 1e-3, 2e-3, 4e-3, 8e-3]
    assert [grid.rate(k) for k in grid.around(6e-3, 3)] == [4e-3, 8e-3, 1.6e-2]  # 8e-3 is nearer in ratio


def test_a_wide_grid_is_not_extended() -> None:
    bowl = Bowl({"a": 0, "b": 1})
    found = search({"a": [-1, 0, 1], "b": [0, 1, 2]}, bowl)
    assert found == {"a": {-1: 1.0, 0: 0.0, 1: 1.0}, "b": {0: 1.0, 1: 0.0, 2: 1.0}}
    assert len(bowl.calls) == 1  # all arms at once, so that jobs are kept busy


def test_a_best_at_the_edge_extends_only_its_own_arm() -> None:
    bowl = Bowl({"a": 4, "b": 0})
    found = search({"a": [0, 1, 2], "b": [-1, 0, 1]}, bowl)
    assert list(found["a"]) == [0, 1, 2, 3, 4, 5] and list(found["b"]) == [-1, 0, 1]
    assert bowl.calls[1:] == [[("a", 3)], [("a", 4)], [("a", 5)]]


@given(st.integers(-4, 4), st.lists(st.integers(-2, 2), min_size=1, max_size=5, unique=True))
def test_the_best_ends_inside_and_no_point_is_run_twice(bottom: int, start: list[int]) -> None:
    start = list(range(min(start), max(start) + 1))
    bowl = Bowl({"a": bottom})
    found = search({"a": start}, bowl)["a"]
    assert list(found) == sorted(found) and len(found) == sum(map(len, bowl.calls))
    assert best_index(found) == bottom and min(found) < bottom < max(found)


def test_diverged_rates_are_not_best_and_all_diverged_goes_lower() -> None:
    found = search({"a": [2, 3, 4]}, Bowl({"a": 1}, cliff=2))["a"]
    assert best_index(found) == 1 and list(found) == [0, 1, 2, 3, 4]
    assert next_index({5: math.nan, 6: math.inf}) == 4


def test_a_loss_without_a_bottom_gives_up_by_name() -> None:
    def falls_forever(points: list[Point]) -> list[float]:
        return [-float(index) for _, index in points]

    with pytest.raises(GridError, match=rf"symmetry.*{MOST_EXTENSIONS} extensions"):
        search({"symmetry": [0, 1, 2]}, falls_forever)
