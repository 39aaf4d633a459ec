from __future__ import annotations

import math

import hypothesis.strategies as st
import pytest
from hypothesis import given

from orthoopt.bench import intervals

# Student's t, two-sided 95%, as printed in tables.
TABLE = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 10: 2.228, 30: 2.042, 100: 1.984}


@pytest.mark.parametrize("freedom", TABLE)
def test_quantiles_are_the_tables(freedom: int) -> None:
    assert intervals.t_quantile(freedom) == pytest.approx(TABLE[freedom], abs=5e-4)  # three printed decimals


def test_99_percent_too() -> None:
    assert intervals.t_quantile(2, 0.99) == pytest.approx(9.925, abs=5e-4)
    with pytest.raises(ValueError, match="0"):
        intervals.t_quantile(0)


@given(st.integers(1, 60), st.floats(0.0, 50.0))
def test_probability_inverts_the_quantile_and_is_odd(freedom: int, t: float) -> None:
    p = intervals.t_probability(t, freedom)
    assert 0.0 <= p <= 1.0 + 1e-12  # rounding of the sum
    assert intervals.t_probability(-t, freedom) == pytest.approx(-p, abs=1e-12)
    if 0.05 < p < 0.999:
        assert intervals.t_quantile(freedom, p) == pytest.approx(t, rel=1e-6)  # bisection ends at rounding of p


def test_interval_by_hand() -> None:
    # 1, 2, 3: mean 2, deviation 1, half width 4.30265 / sqrt(3) = 2.48414
    summary = intervals.summarize([1.0, 2.0, 3.0])
    assert summary["mean"] == 2.0 and summary["standard_deviation"] == 1.0 and summary["n"] == 3
    assert summary["ci95"] == pytest.approx([2 - 2.48414, 2 + 2.48414], abs=1e-5)  # digits of the hand value


def test_one_value_has_no_interval() -> None:
    assert intervals.summarize([3.5]) == {"n": 1, "mean": 3.5, "standard_deviation": None, "ci95": None}


def losses(**arms: list[float]) -> dict[str, dict[int, float]]:
    return {name: dict(enumerate(values)) for name, values in arms.items()}


def test_a_clear_difference_has_a_winner_whichever_way_round() -> None:
    data = losses(a=[3.00, 3.10, 3.20], b=[3.51, 3.60, 3.69])
    forth, back = intervals.compare("a", "b", data), intervals.compare("b", "a", data)
    assert forth["winner"] == back["winner"] == "a"
    # differences -0.51, -0.50, -0.49: mean -0.5, deviation 0.01, half width 0.0248414
    assert forth["difference"]["ci95"] == pytest.approx([-0.5248414, -0.4751586], abs=1e-6)  # digits by hand
    assert "a is lower than b" in forth["verdict"]


def test_inside_the_noise_there_is_no_winner() -> None:
    result = intervals.compare("a", "b", losses(a=[3.0, 3.1, 3.2], b=[3.1, 3.0, 3.21]))
    assert result["winner"] is None and "inside the noise of 3 seeds" in result["verdict"]


def test_one_seed_or_a_diverged_run_gives_no_winner() -> None:
    single = intervals.compare("a", "b", losses(a=[1.0], b=[9.0]))
    assert single["winner"] is None and "one seed" in single["verdict"]
    diverged = intervals.compare("a", "b", losses(a=[1.0, 1.0], b=[9.0, math.nan]))
    assert diverged["winner"] is None and "diverged" in diverged["verdict"]


def test_unequal_seeds_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\[0, 1\].*\[0\]"):
        intervals.compare("a", "b", losses(a=[1.0, 2.0], b=[1.0]))


def test_the_overall_winner_beats_all_others() -> None:
    data = losses(a=[3.0, 3.01, 3.02], b=[3.0, 3.02, 3.01], c=[4.0, 4.01, 4.02])
    pairs = [intervals.compare(x, y, data) for x, y in (("a", "b"), ("a", "c"), ("b", "c"))]
    assert [p["winner"] for p in pairs] == [None, "a", "b"]
    assert intervals.overall_winner(["a", "b", "c"], pairs) is None
    assert intervals.overall_winner(["a", "c"], pairs[1:2]) == "a"
    assert intervals.overall_winner(["a"], []) is None
