"""`orthoopt bench step`: one optimizer step of each optimizer on real shapes, timed in one process.

A variant whose result is wrong gets no time. README.md beside this file has the protocol.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from orthoopt.bench import machine, shapes, timing, variants
from orthoopt.bench.results_file import results_folder, write_json
from orthoopt.bench.shapes import ShapeSet
from orthoopt.bench.variants import BASELINE, NS_STEPS, OURS, Variant
from orthoopt.bench.workload import CHECKED_STEPS, GRADIENT_SETS, Contestant, Workload

_REPEATS = {"cpu": 40, "cuda": 100}
_MATMUL = {"cpu": (torch.float32, 1024), "cuda": (torch.bfloat16, 8192)}  # dtype of our iteration there, size
_COPY_MEBIBYTES = {"cpu": 128, "cuda": 2048}  # well beyond any cache

_BUSY = 0.5  # load per core from which other work shows in the times


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print a table, write step_DEVICE.json; 0, 1 if a variant was wrong, 2 for a usage error."""
    options = _parse(sys.argv[1:] if argv is None else argv)
    device = torch.device(options.device)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    folder = results_folder(options.out)
    result: dict[str, Any] = {
        "bench": "step",
        "machine": machine.describe(device),
        "settings": {
            "device": str(device),
            "repeats": options.repeats,
            "seconds_per_variant": options.seconds,
            "gradient_sets": GRADIENT_SETS,
            "checked_steps": CHECKED_STEPS,
            "parameters_dtype": "float32",
            "ns_steps": NS_STEPS,
            "ns_coefficients": variants.NS_COEFFICIENTS,
            "flops": "dense standard iteration: steps * (4 m^2 n + 2 m^3) a matrix, m the shorter side",
            "error": "largest over matrices of |W - W_ref| / |W_ref - W_start| after the checked steps, "
            "W_ref in float64",
        },
        "shapes": {},
    }
    print(_headline(result["machine"]))
    load, cores = result["machine"]["load_average"], result["machine"]["cores"]
    if load is not None and load > cores * _BUSY:
        print(f"the machine is busy (load {load:g} on {cores} cores): these times will not repeat")
    path = folder / f"step_{device.type}.json"
    for shape_set in options.sets:
        row = measure(shape_set, variants.VARIANTS, device, repeats=options.repeats, seconds=options.seconds)
        result["shapes"][shape_set.name] = row
        print(f"\n{table(row)}", flush=True)
        write_json(path, result)
    print(f"\n{path}")
    wrong = any(not variant["correct"] for row in result["shapes"].values() for variant in row["variants"])
    return 1 if wrong else 0


def measure(
    shape_set: ShapeSet,
    contenders: Sequence[Variant],
    device: torch.device,
    *,
    repeats: int,
    seconds: float,
    matmul_size: int | None = None,
    copy_mebibytes: int | None = None,
) -> dict[str, Any]:
    """Check every variant on a set, then time those that are right, in turns.

    Args:
        shape_set: the matrices.
        contenders: the variants; those that need a model's names are left out where the set has none.
        device: where.
        repeats: most repeats of a variant.
        seconds: a variant too slow for so many gets as many as fit into this, at least 3.
        matmul_size: side of the product whose rate is the ceiling; by default fit for the device.
        copy_mebibytes: size of the copy whose rate is the ceiling; by default fit for the device.

    Returns:
        Plain data: the set, the ceilings, and a row a variant, whose times are None if its result was wrong.
    """
    workload = Workload(shape_set, device)
    chosen = [v for v in contenders if shape_set.from_model or not v.needs_model_names]
    contestants = [Contestant(variant, workload) for variant in chosen]
    right = [c for c in contestants if c.correct]
    stopwatch = timing.Stopwatch(device)
    for contestant in right:
        if contestant.estimate < timing.WARM_UP_SECONDS:  # slower ones are warm from the check
            contestant.estimate = stopwatch.warm_up(contestant.step)
    dtype, size = _MATMUL[device.type]
    ceilings = {
        "matmul": timing.matmul_ceiling(device, dtype, matmul_size or size),
        "copy": timing.copy_ceiling(device, copy_mebibytes or _COPY_MEBIBYTES[device.type]),
    }
    for ceiling in ceilings.values():
        stopwatch.warm_up(ceiling.call)
    # Ceilings take their turns too: a neighbour on the machine slows them as it slows the variants.
    runners = [timing.Runner(c.step, c.prepare) for c in right]
    runners += [timing.Runner(ceiling.call) for ceiling in ceilings.values()]
    counts = [timing.repeats_within(seconds, c.estimate, repeats) for c in right] + [repeats] * len(ceilings)
    samples = timing.time_interleaved(runners, counts, stopwatch)
    rates = {name: c.result(s) for (name, c), s in zip(ceilings.items(), samples[len(right) :], strict=True)}
    timed = {c.variant.name: s for c, s in zip(right, samples, strict=False)}
    rows = [_row(c, timed.get(c.variant.name), shape_set, rates) for c in contestants]
    medians = {row["name"]: row["seconds"]["median"] for row in rows if row["seconds"]}
    for row in rows:
        both = row["name"] in medians and BASELINE in medians
        row["times_faster_than_baseline"] = medians[BASELINE] / medians[row["name"]] if both else None
    return {
        "matrices": len(shape_set.matrices),
        "describe": shape_set.describe(),
        "parameters": shape_set.parameters,
        "newton_schulz_flops": shape_set.newton_schulz_flops(NS_STEPS),
        "set": shape_set.name,
        "baseline": BASELINE,
        "ceilings": rates,
        "variants": rows,
        "ours_times_faster_than_baseline": _ratio(rows, "median"),
        "ours_times_faster_at_p20": _ratio(rows, "p20"),  # nearer to an idle machine, where others are at work
    }


def _ratio(rows: Sequence[dict[str, Any]], key: str) -> float | None:
    """The baseline's seconds over ours, if both were timed."""
    seconds = {row["name"]: row["seconds"][key] for row in rows if row["seconds"]}
    return seconds[BASELINE] / seconds[OURS] if {BASELINE, OURS} <= seconds.keys() else None


def _row(
    contestant: Contestant,
    samples: list[tuple[float, float | None]] | None,
    shape_set: ShapeSet,
    rates: dict[str, dict[str, Any]],
) -> dict[str, Any]:
    variant = contestant.variant
    row: dict[str, Any] = {
        "name": variant.name,
        "iteration_dtype": str(contestant.iteration).removeprefix("torch."),
        "error": contestant.error,
        "tolerance": contestant.tolerance,
        "correct": contestant.correct,
        "seconds": None,
        "device_seconds": None,
        "per_second": None,
        "bound": variant.bound,
        "share_of_ceiling": None,
    }
    if samples is None:
        return row
    row["seconds"] = timing.summarize([wall for wall, _ in samples])
    events = [event for _, event in samples if event is not None]
    if events:
        row["device_seconds"] = timing.summarize(events)
    if variant.bound == "matmul":
        amount, ceiling = shape_set.newton_schulz_flops(NS_STEPS), rates["matmul"]
    else:
        amount, ceiling = variant.bytes_per_element * shape_set.parameters, rates["copy"]
    row["per_second"] = amount / row["seconds"]["median"]
    row["share_of_ceiling"] = row["per_second"] / ceiling["per_second"]
    return row


def table(result: dict[str, Any]) -> str:
    """The rows of one set for people: milliseconds, ratio to the baseline, error, share of the machine's rate."""
    matmul, copy = result["ceilings"]["matmul"], result["ceilings"]["copy"]
    lines = [
        f"{result['set']}: {result['describe']}, {result['parameters'] / 1e6:.1f}M parameters, "
        f"{result['newton_schulz_flops'] / 1e9:.1f} GFLOP in {NS_STEPS} dense iterations",
        f"ceilings: {matmul['dtype']} matmul of {matmul['size']} at {matmul['per_second'] / 1e9:.0f} GFLOP/s, "
        f"copy at {copy['per_second'] / 1e9:.1f} GB/s",
        f"{'one step()':<26}{'ms':>10}{'p20':>10}{'p80':>10}{'n':>5}{'speed':>9}{'error':>10}{'allowed':>9}"
        "  share of ceiling",
    ]
    for row in result["variants"]:
        name, check = f"{row['name']:<26}", f"{row['error']:>10.1e}{row['tolerance']:>9.0e}"
        if row["seconds"] is None:
            lines.append(f"{name}{'wrong result: not timed':>44}{check}")
            continue
        times = "".join(f"{_milliseconds(row['seconds'][key]):>10}" for key in ("median", "p20", "p80"))
        ratio = row["times_faster_than_baseline"]
        speed = "" if ratio is None else f"{ratio:.1f}x"
        share = f"{row['share_of_ceiling']:.0%} of {'matmul' if row['bound'] == 'matmul' else 'copy'}"
        lines.append(f"{name}{times}{row['seconds']['repeats']:>5}{speed:>9}{check}  {share}")
    ratio = result["ours_times_faster_than_baseline"]
    if ratio is not None:
        lines.append(
            f"{OURS} {_compared(ratio)} {result['baseline']} in this run "
            f"(medians; at p20 {_compared(result['ours_times_faster_at_p20'])} it)"
        )
    return "\n".join(lines)


def _compared(ratio: float) -> str:
    return f"is {ratio:.1f} times faster than" if ratio >= 1 else f"takes {1 / ratio:.1f} times as long as"


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.4g}"


def _headline(block: dict[str, Any]) -> str:
    releases = block["versions"]
    place = block["gpu"]["name"] if block["gpu"] else f"{block['cpu']}, threads: {block['torch_threads']}"
    return f"{place}; torch {releases['torch']}, Python {releases['python']}"


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="orthoopt bench step", description="Time one step() of each optimizer on real shapes."
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument(
        "--shapes", action="append", default=[], metavar="SET",
        help=f"{', '.join(shapes.SETS)} or all; may be repeated. Default: "
        + "; ".join(f"{device}: {', '.join(names)}" for device, names in shapes.DEFAULTS.items())
        + ". Real models take torch.optim.Muon minutes a step on a CPU.",
    )  # fmt: skip
    parser.add_argument("--repeats", type=_positive(int), help=f"most repeats of a variant, default {_REPEATS}")
    parser.add_argument(
        "--seconds", type=_positive(float), default=60.0,
        help="a variant too slow for so many repeats gets as many as fit into this, at least 3",
    )  # fmt: skip
    parser.add_argument("--threads", type=_positive(int), help="torch's threads, default torch's own choice")
    parser.add_argument("--out", help="folder of step_DEVICE.json; default $OUT, else bench/results")
    options = parser.parse_args(argv)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no CUDA device")
    try:
        options.sets = shapes.choose(options.shapes, options.device)
    except ValueError as error:
        parser.error(f"--shapes: {error}")
    options.repeats = options.repeats or _REPEATS[options.device]
    return options


def _positive(kind: type) -> Any:
    return partial(_positive_number, kind)


def _positive_number(kind: type, text: str) -> Any:
    try:
        number = kind(text)
    except ValueError:
        number = 0
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a positive {kind.__name__}, got {text!r}")
    return number


if __name__ == "__main__":
    raise SystemExit(main())
