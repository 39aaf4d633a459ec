"""Confidence intervals over seeds: how much of a difference is noise."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

CONFIDENCE = 0.95


def t_probability(t: float, freedom: int) -> float:
    """P(|T| < t) of Student's T with an integer number of degrees of freedom (Abramowitz and Stegun 26.7.3, 26.7.4)."""
    if freedom < 1:
        raise ValueError(f"degrees of freedom must be at least 1, got {freedom}")
    angle = math.atan2(t, math.sqrt(freedom))
    cosine = math.cos(angle)
    odd = freedom % 2
    term, total = (cosine, 0.0) if odd else (1.0, 0.0)
    for k in range(1 + odd, freedom, 2):
        total += term
        term *= cosine * cosine * k / (k + 1)
    return 2 / math.pi * (angle + math.sin(angle) * total) if odd else math.sin(angle) * total


def t_quantile(freedom: int, confidence: float = CONFIDENCE) -> float:
    """The t with P(|T| < t) = ``confidence``, by bisection."""
    low, high = 0.0, 1.0
    while t_probability(high, freedom) < confidence:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if t_probability(middle, freedom) < confidence else (low, middle)
    return (low + high) / 2


def summarize(values: Sequence[float]) -> dict[str, Any]:
    """Mean, standard deviation and the 95% interval of the mean (t); of one value the last two are None."""
    mean = statistics.fmean(values)
    if len(values) < 2 or not all(map(math.isfinite, values)):
        return {"n": len(values), "mean": mean, "standard_deviation": None, "ci95": None}
    deviation = statistics.stdev(values)
    half = t_quantile(len(values) - 1) * deviation / math.sqrt(len(values))
    return {
        "n": len(values),
        "mean": mean,
        "standard_deviation": deviation,
        "ci95": [mean - half, mean + half],
    }


def compare(first: str, second: str, losses: dict[str, dict[int, float]]) -> dict[str, Any]:
    """The difference of two arms' losses, paired by seed, with its interval; a winner only if that excludes zero.

    A seed decides initialization and data order alike in both arms, so the difference is taken within the seed.

    Args:
        first: one arm.
        second: the other.
        losses: arm -> seed -> loss, lower being better; both arms need the same seeds.
    """
    if losses[first].keys() != losses[second].keys():
        raise ValueError(f"{first} has seeds {sorted(losses[first])}, {second} has {sorted(losses[second])}")
    seeds = sorted(losses[first])
    difference = summarize([losses[first][seed] - losses[second][seed] for seed in seeds])
    result: dict[str, Any] = {
        "between": [first, second], "paired_by_seed": True, "seeds": seeds, "difference": difference, "winner": None,
    }  # fmt: skip
    interval = difference["ci95"]
    if interval is None:
        reason = "one seed gives no interval" if len(seeds) < 2 else "a run diverged"
        return result | {"verdict": f"{first} against {second}: {reason}, so there is no winner"}
    low, high = interval
    span = f"{difference['mean']:+.4f}, 95% interval [{low:+.4f}, {high:+.4f}]"
    if low <= 0 <= high:
        return result | {"verdict": f"{first} - {second} = {span}: inside the noise of {len(seeds)} seeds"}
    winner, loser = (first, second) if high < 0 else (second, first)
    return result | {"winner": winner, "verdict": f"{winner} is lower than {loser}: {first} - {second} = {span}"}


def overall_winner(arms: Sequence[str], differences: Sequence[dict[str, Any]]) -> str | None:
    """The arm that wins every comparison it is in, if there is one; each at 95%, not corrected for their number."""
    for arm in arms:
        own = [row for row in differences if arm in row["between"]]
        if own and all(row["winner"] == arm for row in own):
            return arm
    return None
