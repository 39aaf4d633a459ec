"""`orthoopt bench orthogonalize`: the methods of ``orthogonalize`` on Gaussian matrices, timed in one process.

Every result is compared with the polar factor by SVD in float64 first; one beyond its tolerance gets no time. This is
where the size up to which ``method="auto"`` is exact was read off.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from orthoopt.bench import machine, timing
from orthoopt.bench.results_file import results_folder, write_json
from orthoopt.polar import Method, orthogonalize


class Way(NamedTuple):
    """A method with its settings, and the largest |σ − 1| it may leave on a well-conditioned matrix."""

    name: str
    method: Method
    steps: int
    tolerance: float


# The table's own 5- and 8-step bands; factorizations in float32, some hundred roundings.
WAYS = (
    Way("newton_schulz, 5 steps", "newton_schulz", 5, 0.154),
    Way("gram, 5 steps", "gram", 5, 0.154),
    Way("polar_express, 5 steps", "polar_express", 5, 0.154),
    Way("polar_express, 8 steps", "polar_express", 8, 2e-3),
    Way("qdwh", "qdwh", 5, 1e-4),
    Way("svd", "svd", 5, 1e-4),
)
SIDES = (16, 32, 64, 128, 256, 512, 1024)
ASPECTS = (1, 4)
_BATCH_ELEMENTS = 2**18
_MOST_ELEMENTS = 2**21


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print a table, write orthogonalize_DEVICE.json; 0, or 1 if a method was wrong."""
    options = _parse(sys.argv[1:] if argv is None else argv)
    device = torch.device(options.device)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    folder = results_folder(options.out)
    rows: list[dict[str, Any]] = []
    result = {
        "bench": "orthogonalize",
        "machine": machine.describe(device),
        "settings": {"device": str(device), "dtype": "float32", "repeats": options.repeats, "table": "polar_express"},
        "rows": rows,
    }
    path = folder / f"orthogonalize_{device.type}.json"
    print(f"{'microseconds a matrix':<24}" + "".join(f"{way.name:>24}" for way in WAYS))
    for side in options.sides:
        for aspect in ASPECTS:
            if side * side * aspect <= _MOST_ELEMENTS:
                rows.append(measure(side, aspect, device, options.repeats, options.seconds))
                print(_line(rows[-1]), flush=True)
                write_json(path, result)
    print(f"\n{path}")
    return 0 if all(way["correct"] for row in rows for way in row["ways"]) else 1


def measure(side: int, aspect: int, device: torch.device, repeats: int, seconds: float) -> dict[str, Any]:
    """Check, then time in turns, every method on a batch of ``side × aspect·side`` Gaussian matrices.

    Returns:
        Plain data: shape, batch, and a row a method with its error and, if that is within tolerance, its seconds a
        batch.
    """
    batch = max(1, _BATCH_ELEMENTS // (side * side * aspect))
    source = torch.Generator().manual_seed(0)
    sets = [torch.randn(batch, side, aspect * side, generator=source).to(device) for _ in range(3)]
    stopwatch = timing.Stopwatch(device)
    errors = [_error(sets[0], way) for way in WAYS]
    right = [way for way, error in zip(WAYS, errors, strict=True) if error <= way.tolerance]
    runners, counts = [], []
    for way in right:
        turns = iter(range(10**9))
        call = partial(_call, sets, turns, way)
        counts.append(timing.repeats_within(seconds, stopwatch.warm_up(call), repeats))
        runners.append(timing.Runner(call))
    samples = timing.time_interleaved(runners, counts, stopwatch)
    times = {way.name: timing.summarize([wall for wall, _ in s]) for way, s in zip(right, samples, strict=True)}
    ways = [
        {"name": way.name, "error": error, "correct": way.name in times, "seconds": times.get(way.name)}
        for way, error in zip(WAYS, errors, strict=True)
    ]
    return {"rows": side, "cols": aspect * side, "batch": batch, "ways": ways}


def _call(sets: Sequence[Tensor], turns: Any, way: Way) -> Tensor:
    return orthogonalize(sets[next(turns) % len(sets)], way.steps, method=way.method)


def _error(x: Tensor, way: Way) -> float:
    """The largest |σ − 1| of the result, over directions above 1e-3 of ‖X‖_F, with whatever is off the diagonal."""
    u, s, vh = torch.linalg.svd(x[:4].double(), full_matrices=False)
    core = u.mT @ orthogonalize(x, way.steps, method=way.method)[:4].double() @ vh.mT
    kept = (s > 1e-3 * s.norm(dim=-1, keepdim=True)).double()
    core = (
        (core - torch.eye(s.shape[-1], dtype=core.dtype, device=core.device)) * kept.unsqueeze(-1) * kept.unsqueeze(-2)
    )
    return float(torch.linalg.matrix_norm(core, 2).max())


def _line(row: dict[str, Any]) -> str:
    cells = [
        f"{'wrong' if way['seconds'] is None else format(1e6 * way['seconds']['median'] / row['batch'], '.0f'):>24}"
        for way in row["ways"]
    ]
    return f"{row['batch']:>6} of {row['rows']}x{row['cols']}".ljust(24) + "".join(cells)


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="orthoopt bench orthogonalize", description=__doc__)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--sides", type=int, nargs="+", default=list(SIDES), help="shorter sides to measure")
    parser.add_argument("--repeats", type=int, default=20, help="most repeats of a method")
    parser.add_argument("--seconds", type=float, default=4.0, help="a method too slow for so many gets what fits")
    parser.add_argument("--threads", type=int, help="threads of torch on the CPU")
    parser.add_argument("--out", help="folder of the result; default $OUT, else bench/results")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
