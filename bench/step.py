"""`orthoopt bench step`: one optimizer step of each optimizer on real shapes, timed in one process.

A variant whose result is wrong gets no time. README.md beside this file has the protocol.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from typing import Any

import torch

from orthoopt.bench import machine, step_options, step_table, tables, timing, variants
from orthoopt.bench.claims import spelled, step_claims
from orthoopt.bench.definitions import NS_COEFFICIENTS, NS_STEPS
from orthoopt.bench.peers import peers
from orthoopt.bench.results_file import results_folder, write_json
from orthoopt.bench.shapes import ShapeSet
from orthoopt.bench.variants import BASELINE, OURS, Variant
from orthoopt.bench.workload import CHECKED_STEPS, COMPILE_SECONDS, Contestant, Workload

MATMUL = {"cpu": (torch.float32, 1024), "cuda": (torch.bfloat16, 8192)}  # dtype of our iteration there, size
COPY_MEBIBYTES = {"cpu": 128, "cuda": 2048}  # well beyond any cache

_BUSY = 0.5  # load per core from which other work shows in the times
_EMULATED_FLOPS = 2e10  # of a set, from which an iteration in emulated bfloat16 takes minutes


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print tables, write step_DEVICE.json and .md; 0, 1 if a variant was wrong, 2 for a usage error."""
    options = step_options.parse(sys.argv[1:] if argv is None else argv)
    device = torch.device(options.device)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    folder = results_folder(options.out)
    contenders = [*variants.VARIANTS, *peers(device)]
    result: dict[str, Any] = {
        "bench": "step",
        "machine": machine.describe(device),
        "settings": {
            "device": str(device),
            "repeats": options.repeats,
            "seconds_per_variant": options.seconds,
            "checked_steps": CHECKED_STEPS,
            "parameters_dtype": "float32",
            "ns_steps": NS_STEPS,
            "ns_coefficients": NS_COEFFICIENTS,
            "flops": "cheaper of the dense standard iteration, steps * (4 m^2 n + 2 m^3), and its Gram form without "
            "restart, 2 (4 steps - 3) m^3 + 4 m^2 n, a matrix; m the shorter side",
            "error": "largest over checked matrices of |W - W_ref| / |W_ref - W_start| after the checked steps, "
            "W_ref in float64",
        },
        "must_show": [],
        "shapes": {},
    }
    print(tables.place(result["machine"]))
    load, cores = result["machine"]["load_average"], result["machine"]["cores"]
    if load is not None and load > cores * _BUSY:
        print(f"the machine is busy (load {load:g} on {cores} cores): these times will not repeat")
    path = folder / f"step_{device.type}.json"
    for shape_set, wanted in options.sets:
        print(f"\n{shape_set.name} ...", file=sys.stderr, flush=True)  # checks and repeats take minutes
        row = measure(
            shape_set, step_options.chosen(contenders, wanted or options.variants), device,
            repeats=options.repeats, seconds=options.seconds, compile_seconds=options.compile_seconds,
        )  # fmt: skip
        result["shapes"][shape_set.name] = row
        hardware = result["machine"]["bfloat16_in_hardware"]
        result["must_show"] = step_claims(result["shapes"].values(), device.type, hardware)
        print(f"\n{step_table.terminal(row)}", flush=True)
        write_json(path, result)
        pages = [step_table.markdown(row) for row in result["shapes"].values()]
        tables.write_markdown(path.with_suffix(".md"), tables.document("One optimizer step", result, pages))
    print("", *spelled(result["must_show"]), "", path, sep="\n")
    wrong = any(not variant["correct"] for row in result["shapes"].values() for variant in row["variants"])
    return 1 if wrong else 0


def measure(
    shape_set: ShapeSet,
    contenders: Sequence[Variant],
    device: torch.device,
    *,
    repeats: int,
    seconds: float,
    compile_seconds: float = COMPILE_SECONDS,
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
        compile_seconds: a variant that takes longer to compile is left out.
        matmul_size: side of the product whose rate is the ceiling; by default fit for the device.
        copy_mebibytes: size of the copy whose rate is the ceiling; by default fit for the device.

    Returns:
        Plain data: the set, the ceilings, a row a variant, whose times are None if its result was wrong, and the
        variants left out with the reason.
    """
    torch.compiler.reset()
    workload = Workload(shape_set, device)
    contestants: list[Contestant] = []
    skipped: list[dict[str, str]] = []
    for variant in contenders:
        reason = reason_to_skip(variant, shape_set, device)
        if not reason:
            try:
                with warnings.catch_warnings():
                    if variant.family != "ours":
                        warnings.simplefilter("ignore")
                    contestants.append(Contestant(variant, workload, compile_seconds))
            except Exception as error:
                # A foreign optimizer, or a compiler, may fail as it likes; one of ours may not.
                if variant.family == "ours" or (variant.family == "torch" and not variant.compiled):
                    raise
                reason = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:200]}"
        if reason:
            skipped.append({"name": variant.name, "reason": reason})
    right = [c for c in contestants if c.correct]
    stopwatch = timing.Stopwatch(device)
    for contestant in right:
        contestant.prepare()
        if contestant.estimate < timing.WARM_UP_SECONDS:  # slower ones are warm from the check
            contestant.estimate = stopwatch.warm_up(contestant.step, contestant.prepare)
    dtype, size = MATMUL[device.type]
    ceilings = {
        "matmul": timing.matmul_ceiling(device, dtype, matmul_size or size),
        "copy": timing.copy_ceiling(device, copy_mebibytes or COPY_MEBIBYTES[device.type]),
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
        "matrices": len(workload.pieces),
        "checked_matrices": len(workload.checked),
        "gradient_sets": len(workload.gradients),
        "describe": shape_set.describe(),
        "parameters": shape_set.parameters,
        "newton_schulz_flops": shape_set.newton_schulz_flops(NS_STEPS),
        "set": shape_set.name,
        "baseline": BASELINE,
        "ceilings": rates,
        "variants": rows,
        "skipped": skipped,
        "ours_times_faster_than_baseline": _ratio(rows, "median"),
        "ours_times_faster_at_p20": _ratio(rows, "p20"),  # nearer to an idle machine, where others are at work
    }


def reason_to_skip(variant: Variant, shape_set: ShapeSet, device: torch.device) -> str:
    """Why the variant does not run on this set here; "" where it does."""
    if variant.missing:
        return variant.missing
    if variant.needs_model_names and not shape_set.from_model:
        return "the set has no model's names"
    emulated = device.type == "cpu" and variant.iteration is variants.bfloat16 and not machine.bfloat16_in_hardware()
    if emulated and shape_set.newton_schulz_flops(NS_STEPS) > _EMULATED_FLOPS:
        return "bfloat16 is emulated on this CPU: minutes a step"
    return ""


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
        "family": variant.family,
        "note": variant.note,
        "same_work": variant.same_work,
        "iteration_dtype": str(contestant.iteration).removeprefix("torch."),
        "error": contestant.error,
        "tolerance": contestant.tolerance,
        "correct": contestant.correct,
        "first_step_seconds": contestant.first_seconds,
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
    if variant.bound == "other":
        return row
    if variant.bound == "matmul":
        amount, ceiling = shape_set.newton_schulz_flops(NS_STEPS), rates["matmul"]
    else:
        amount, ceiling = variant.bytes_per_element * shape_set.parameters, rates["copy"]
    row["per_second"] = amount / row["seconds"]["median"]
    row["share_of_ceiling"] = row["per_second"] / ceiling["per_second"]
    return row


if __name__ == "__main__":
    raise SystemExit(main())
