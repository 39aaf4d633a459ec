from __future__ import annotations

import math
from pathlib import Path

import pytest

from orthoopt.bench import sweep
from orthoopt.bench.sweep import MOST_EXTENSIONS, Point, SweepError, Trial, best_trial, edge, search


class Bowl:
    """Stands in for training: each arm's loss is a bowl over the logarithm of the rate, not finite from a cliff on."""

    def __init__(self, bottoms: dict[str, float], cliff: float = math.inf) -> None:
        self.bottoms, self.cliff = bottoms, cliff
        self.calls: list[list[Point]] = []

    def __call__(self, points: list[Point]) -> list[float]:
        self.calls.append(points)
        return [self.loss(point) for point in points]

    def loss(self, point: Point) -> float:
        if point.learning_rate >= self.cliff:
            return math.nan
        decay = 0.0 if point.weight_decay is None else 0.01 * math.log(point.weight_decay / 0.05) ** 2
        return 3 + 0.05 * math.log2(point.learning_rate / self.bottoms[point.arm]) ** 2 + decay


def run(bowl: Bowl, storage: Path, middle: float = 4e-3, **options: object) -> dict[str, list[Trial]]:
    middles = dict.fromkeys(bowl.bottoms, middle)
    return search(middles, {arm: arm for arm in middles}, bowl, **({"trials": 7, "storage": storage} | options))


def test_every_arm_comes_near_its_own_best_with_arms_in_turn(tmp_path: Path) -> None:
    bowl = Bowl({"low": 1e-3, "high": 2e-2})
    found = run(bowl, tmp_path / "sweeps.db")
    assert all([point.arm for point in points] == ["low", "high"] for points in bowl.calls[:7])
    for arm, bottom in bowl.bottoms.items():
        best = best_trial(found[arm])
        assert 0.8 < best.learning_rate / bottom < 1.25 and edge(found[arm]) == 0
        assert len(found[arm]) >= 7 and [t.learning_rate for t in found[arm]] == sorted(
            t.learning_rate for t in found[arm]
        )
    firsts = [points[0].learning_rate for points in bowl.calls[:3]]
    assert firsts == pytest.approx([4e-3, 4e-3 / 3, 1.2e-2])


def test_a_sweep_that_was_cut_off_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    whole = run(Bowl({"a": 1e-3, "b": 9e-3}), tmp_path / "whole.db")

    class Cut(Bowl):
        def __call__(self, points: list[Point]) -> list[float]:
            if len(self.calls) == self.most:
                raise KeyboardInterrupt
            return super().__call__(points)

        most = 4

    cut = Cut({"a": 1e-3, "b": 9e-3})
    with pytest.raises(KeyboardInterrupt):
        run(cut, tmp_path / "cut.db")
    rest = Bowl(cut.bottoms)
    assert run(rest, tmp_path / "cut.db") == whole
    assert len(rest.calls) + 4 == max(map(len, whole.values()))
    again = Bowl(cut.bottoms)
    assert run(again, tmp_path / "cut.db") == whole and not again.calls
    # Another key is another study.
    search({"a": 4e-3}, {"a": "changed"}, again, trials=3, storage=tmp_path / "cut.db")
    assert len(again.calls) >= 3


def test_diverged_trials_are_worst_and_the_best_lies_between_worse_ones(tmp_path: Path) -> None:
    found = run(Bowl({"a": 2e-2}, cliff=3e-3), tmp_path / "sweeps.db", trials=5)["a"]
    best = best_trial(found)
    assert best.learning_rate < 3e-3 and edge(found) == 0
    assert all(trial.loss == math.inf for trial in found if trial.learning_rate >= 3e-3)


def test_weight_decay_is_swept_where_asked(tmp_path: Path) -> None:
    bowl = Bowl({"a": 4e-3})
    found = run(bowl, tmp_path / "sweeps.db", tune=sweep.TUNABLE, weight_decay=0.1, trials=12)["a"]
    assert {points[0].weight_decay for points in bowl.calls[:3]} == {0.1}
    decays = {trial.weight_decay for trial in found}
    assert len(decays) > 3
    best = best_trial(found)
    assert best.weight_decay is not None and 0.02 < best.weight_decay < 0.12


def test_a_best_that_stays_at_the_edge_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SweepError, match=rf"a: .*after {MOST_EXTENSIONS} extensions"):
        run(Bowl({"a": 1e9}), tmp_path / "sweeps.db", trials=3)


@pytest.mark.parametrize(("losses", "side"), [((1, 2, 3), -1), ((3, 2, 1), 1), ((2, 1, 2), 0), ((math.inf,) * 3, -1)])
def test_edges(losses: tuple[float, ...], side: int) -> None:
    assert edge([Trial(10.0**i, None, loss) for i, loss in enumerate(losses)]) == side
