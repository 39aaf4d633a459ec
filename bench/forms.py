"""The forms of the Newton-Schulz iteration by shape: what the library chooses, each form forced, and the plain loop.

Each is held against the same polynomial in float64 first; one beyond its tolerance gets no time.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from orthoopt import buckets
from orthoopt.bench import definitions, shapes, timing
from orthoopt.bench.claims import OVER_STANDARD_AT_FOUR, SHARE_OF_MATMUL, claim
from orthoopt.bench.methods import Frame
from orthoopt.bench.shapes import ShapeSet
from orthoopt.coefficients import Table, resolve_coefficients
from orthoopt.gram_newton_schulz import gram_newton_schulz
from orthoopt.newton_schulz import iteration_dtype, newton_schulz, normalize

STEPS = 5
DEFAULT, PLAIN = "default", "plain batched"
# On Gaussian matrices, relative in Frobenius norm; float32 sees 1e-6 to 4e-5, and an error of a coefficient costs 1e-1.
TOLERANCES = {torch.float32: 5e-4, torch.float16: 1e-2, torch.bfloat16: 3e-2}
SIDES = {"cpu": (128, 256, 512, 1024), "cuda": (128, 256, 512, 1024, 2048, 4096)}
ASPECTS = (1, 2, 4, 8)
_BATCH_ELEMENTS = {"cpu": 2**20, "cuda": buckets.MAX_ELEMENTS}
_MOST_ELEMENTS = {"cpu": 2**22, "cuda": 2**26}
# Where the library chooses between forms; before it did, its iteration was the standard one.
_STANDARD: dict[str, Any] = {"form": "standard"} if "form" in inspect.signature(newton_schulz).parameters else {}
_FRAMED = 2048  # the longest shorter side whose singular vectors are computed
_INPUT_SETS, _INPUT_BYTES = 3, 2**29  # rotated, unless one set does not fit a cache anyway


class Way(NamedTuple):
    """A way to iterate: (batch, rows, cols) with rows ≤ cols -> the same shape, in the dtype of the iteration."""

    name: str
    call: Callable[[Tensor], Tensor]


def ways(coefficients: str) -> tuple[Way, ...]:
    """What is compared, under a table of coefficients."""
    return (
        Way(DEFAULT, lambda x: newton_schulz(x, STEPS, coefficients)),
        Way("standard", lambda x: forced("standard", x, coefficients)),
        Way("gram", lambda x: forced("gram", x, coefficients)),
        Way(PLAIN, lambda x: plain_batched(x, resolve_coefficients(coefficients, STEPS))),
    )


def forced(form: str, x: Tensor, coefficients: str) -> Tensor:
    """The library's iteration in this form, whatever it would choose; the Gram form in the dtype that it is fit for."""
    if form == "gram":
        return gram_newton_schulz(x, STEPS, coefficients)
    return newton_schulz(x, STEPS, coefficients, **_STANDARD)


def plain_batched(x: Tensor, table: Table) -> Tensor:
    """The standard form as one would write it at first: a normalization, then three batched products a step."""
    x = normalize(x, table.kappa).to(iteration_dtype(x))
    for a, b, c in table.rows:
        gram = torch.bmm(x, x.mT)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


def shapes_to_measure(sets: Sequence[ShapeSet], sides: Sequence[int], device_type: str) -> list[tuple[int, int, int]]:
    """(batch, rows, cols) with rows ≤ cols: the buckets of the sets, then each side at each aspect, in fair batches."""
    wanted = [shape for shape_set in sets for shape in stacks_of(shape_set)]
    for side in sides:
        for aspect in ASPECTS:
            elements = side * side * aspect
            if elements <= _MOST_ELEMENTS[device_type]:
                wanted.append((max(1, _BATCH_ELEMENTS[device_type] // elements), side, side * aspect))
    return list(dict.fromkeys(wanted))


def stacks_of(shape_set: ShapeSet) -> list[tuple[int, int, int]]:
    """The stacks that a step makes of a set: lying matrices of one shape, as many as a bucket holds."""
    counts: dict[tuple[int, int], int] = {}
    for (rows, cols), count in shape_set.counts().items():
        shape = min(rows, cols), max(rows, cols)
        counts[shape] = counts.get(shape, 0) + count
    found = []
    for (rows, cols), count in counts.items():
        most = max(1, buckets.MAX_ELEMENTS // (rows * cols))
        found += [(most, rows, cols)] * (count // most) + ([(count % most, rows, cols)] if count % most else [])
    return found


def measure(
    stacks: Sequence[tuple[int, int, int]],
    coefficients: str,
    device: torch.device,
    ceiling: timing.Ceiling,
    *,
    repeats: int,
    seconds: float,
) -> dict[str, Any]:
    """Check, then time in turns, every way on stacks of Gaussian matrices, all stacks in one call.

    Args:
        stacks: (batch, rows, cols) with rows ≤ cols.
        coefficients: a table's name.
        device: where.
        ceiling: the product whose rate is the yardstick; it takes its turns too.
        repeats: most repeats of a way.
        seconds: a way too slow for so many gets as many as fit into this, at least 3.

    Returns:
        Plain data: the operations, the ceiling, and a row a way.
    """
    flops = sum(batch * shapes.newton_schulz_flops(rows, cols, STEPS) for batch, rows, cols in stacks)
    source = torch.Generator(device).manual_seed(0)
    elements = sum(batch * rows * cols for batch, rows, cols in stacks)
    sets = [
        [torch.randn(*shape, generator=source, device=device) for shape in stacks]
        for _ in range(_INPUT_SETS if 4 * elements < _INPUT_BYTES else 1)
    ]
    stopwatch = timing.Stopwatch(device)
    table = resolve_coefficients(coefficients, STEPS)
    rows = _checked(ways(coefficients), sets[0], table)
    right = [way for way, row in zip(ways(coefficients), rows, strict=True) if row["correct"]]
    runners = [timing.Runner(partial(_call, way, sets, iter(range(10**9)))) for way in right]
    counts = [timing.repeats_within(seconds, stopwatch.warm_up(runner.call), repeats) for runner in runners]
    stopwatch.warm_up(ceiling.call)
    samples = timing.time_interleaved([*runners, timing.Runner(ceiling.call)], [*counts, repeats], stopwatch)
    rate = ceiling.result(samples[-1])
    # Launches hide behind a queue in training, so on a GPU the device's own clock counts.
    times = {
        way.name: timing.summarize([wall if event is None else event for wall, event in s])
        for way, s in zip(right, samples, strict=False)
    }
    for row in rows:
        row["seconds"] = times.get(row["name"])
        row["share_of_matmul"] = flops / row["seconds"]["median"] / rate["per_second"] if row["seconds"] else None
    return {
        "stacks": list(stacks), "coefficients": coefficients, "flops": flops, "matmul": rate, "ways": rows,
        "over_plain": _ratio(times, PLAIN), "over_standard": _ratio(times, "standard"),
    }  # fmt: skip


def _ratio(times: dict[str, Any], name: str) -> float | None:
    return times[name]["median"] / times[DEFAULT]["median"] if {name, DEFAULT} <= times.keys() else None


def _call(way: Way, sets: Sequence[Sequence[Tensor]], turns: Any) -> None:
    for x in sets[next(turns) % len(sets)]:
        way.call(x)


def _checked(contenders: Sequence[Way], stacks: Sequence[Tensor], table: Table) -> list[dict[str, Any]]:
    """Rows without times: errors are the worst of the first matrix of each distinct shape."""
    errors: dict[str, list[float]] = {way.name: [] for way in contenders}
    polar: dict[str, list[float]] = {way.name: [] for way in contenders}
    dtypes: dict[str, torch.dtype] = {}
    for x in {tuple(x.shape[1:]): x for x in stacks}.values():
        first = x[:1].double()
        wanted = definitions.newton_schulz(first, table.rows, table.kappa)
        frame = Frame.of(first) if x.shape[-2] <= _FRAMED else None
        for way in contenders:
            update = way.call(x)
            dtypes[way.name] = update.dtype
            errors[way.name].append(float((update[:1].double() - wanted).norm() / wanted.norm()))
            if frame is not None:
                polar[way.name].append(frame.error(update[:1]))
    return [
        {
            "name": name, "dtype": str(dtype).removeprefix("torch."), "error": max(errors[name]),
            "tolerance": TOLERANCES[dtype], "polar_error": max(polar[name], default=None),
            "correct": all(error <= TOLERANCES[dtype] for error in errors[name]),  # a NaN is not
        }
        for name, dtype in dtypes.items()
    ]  # fmt: skip


HEADER = (
    "ms for all", "sgemm", *(word for name in (DEFAULT, "standard", "gram", "plain") for word in (name, "%")),
    "over plain", "error", "to polar",
)  # fmt: skip


def cells(name: str, result: dict[str, Any]) -> tuple[str, ...]:
    """One line of the table under :data:`HEADER`; shares are of the product's rate, on the cheapest form's count."""
    times = []
    for way in result["ways"]:
        done = way["seconds"] is not None
        times.append(f"{1e3 * way['seconds']['median']:.4g}" if done else "wrong")
        times.append(f"{way['share_of_matmul']:.0%}" if done else "-")
    default = next(way for way in result["ways"] if way["name"] == DEFAULT)
    ratio = "-" if result["over_plain"] is None else f"{result['over_plain']:.2f}x"
    rate = f"{result['matmul']['per_second'] / 1e9:.0f}"
    polar = "-" if default["polar_error"] is None else f"{default['polar_error']:.2f}"
    return (name, rate, *times, ratio, f"{default['error']:.0e}", polar)


def claims(name: str, result: dict[str, Any]) -> list[dict[str, Any]]:
    """What the form of one stack must show on a CPU; see :mod:`orthoopt.bench.claims`."""
    default = next(way for way in result["ways"] if way["name"] == DEFAULT)
    lines = [
        claim("share of the product's rate", default["share_of_matmul"], SHARE_OF_MATMUL, at_least=True, stack=name)
    ]
    _, rows, cols = result["stacks"][0]
    if cols == 4 * rows:
        ratio = result["over_plain"]
        lines.append(claim(f"{PLAIN} over {DEFAULT}", ratio, OVER_STANDARD_AT_FOUR, at_least=True, stack=name))
    return lines
