"""Clocks: interleaved repeats, their median and spread, and the machine's own rates."""

from __future__ import annotations

import gc
import random
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

LEAST_REPEATS = 3
WARM_UP_SECONDS = 0.025


class Stopwatch:
    """Times calls on a device: the synchronised wall clock, and CUDA events where there are any."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def __call__(self, call: Callable[[], object]) -> tuple[float, float | None]:
        """Run once; seconds by the wall clock with the device idle before and after, and seconds by events."""
        if self.device.type != "cuda":
            start = time.perf_counter()
            call()
            return time.perf_counter() - start, None
        before, after = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize(self.device)
        start = time.perf_counter()
        before.record()
        call()
        after.record()
        torch.cuda.synchronize(self.device)
        return time.perf_counter() - start, before.elapsed_time(after) / 1e3

    def warm_up(self, call: Callable[[], object], prepare: Callable[[], object] = lambda: None) -> float:
        """Run for 25 ms, each time after what is not timed; the last run's seconds."""
        spent = last = 0.0
        while spent < WARM_UP_SECONDS:
            prepare()
            last, _ = self(call)
            spent += last
        return last


def repeats_within(seconds: float, estimate: float, most: int) -> int:
    """How often a call of ``estimate`` seconds fits into ``seconds``: at least 3 times, or ``most`` if that is less."""
    return max(min(LEAST_REPEATS, most), min(most, int(seconds / max(estimate, 1e-9))))


def interleave(counts: Sequence[int], seed: int = 0) -> list[int]:
    """An order of calls in which number ``i`` occurs ``counts[i]`` times, spread evenly over the whole.

    Each round is shuffled, so that none always runs after the same other.
    """
    generator = random.Random(seed)
    order: list[int] = []
    rounds = max(counts, default=0)
    for number in range(rounds):
        due = [i for i, n in enumerate(counts) if (number + 1) * n // rounds > number * n // rounds]
        generator.shuffle(due)
        order += due
    return order


class Runner(NamedTuple):
    """A call that is timed, and what is done before it untimed."""

    call: Callable[[], object]
    prepare: Callable[[], object] = lambda: None


def time_interleaved(
    runners: Sequence[Runner], counts: Sequence[int], stopwatch: Stopwatch
) -> list[list[tuple[float, float | None]]]:
    """Time each call as often as ``counts`` says, in turns, in one process and without garbage collection."""
    samples: list[list[tuple[float, float | None]]] = [[] for _ in runners]
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        for i in interleave(counts):
            runners[i].prepare()
            samples[i].append(stopwatch(runners[i].call))
    finally:
        if collecting:
            gc.enable()
    return samples


def summarize(seconds: Sequence[float]) -> dict[str, Any]:
    """Median, 20th and 80th percentile, and the medians of the first and second half: their gap is the noise floor."""
    half = len(seconds) // 2
    return {
        "repeats": len(seconds),
        "median": statistics.median(seconds),
        "p20": quantile(seconds, 0.2),
        "p80": quantile(seconds, 0.8),
        "halves": [statistics.median(seconds[:half]), statistics.median(seconds[half:])] if half else None,
    }


def quantile(values: Sequence[float], fraction: float) -> float:
    """The quantile by linear interpolation between order statistics."""
    ordered = sorted(values)
    place = fraction * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


class Ceiling:
    """Something the machine does at full speed, timed beside the variants: what their rates are shares of."""

    def __init__(self, call: Callable[[], object], amount: int, what: dict[str, Any]) -> None:
        self.call, self.amount, self.what = call, amount, what

    def result(self, samples: Sequence[tuple[float, float | None]]) -> dict[str, Any]:
        """Rate per second from the median, by events where there are any, with the seconds."""
        seconds = summarize([wall if event is None else event for wall, event in samples])
        return {**self.what, "per_second": self.amount / seconds["median"], "seconds": seconds}


def matmul_ceiling(device: torch.device, dtype: torch.dtype, size: int) -> Ceiling:
    """A large square matrix product of random data; FLOP."""
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(left)
    what = {"unit": "FLOP/s", "size": size, "dtype": str(dtype).removeprefix("torch.")}
    return Ceiling(lambda: torch.mm(left, right, out=out), 2 * size**3, what)


def copy_ceiling(device: torch.device, mebibytes: int) -> Ceiling:
    """A large copy; bytes read and bytes written both count."""
    source = torch.randn(mebibytes * 2**18, device=device)
    target = torch.empty_like(source)
    what = {"unit": "B/s", "mebibytes": mebibytes}
    return Ceiling(lambda: target.copy_(source), 2 * 4 * source.numel(), what)
