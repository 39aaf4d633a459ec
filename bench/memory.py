"""`orthoopt bench memory`: what a step needs beyond parameters, gradients and state, and what state comes to.

The peak of a step is held beside the stated need of its largest bucket, and state of every plan beside AdamW's on
whole models, built without memory. README.md beside this file has the protocol.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

import orthoopt
from orthoopt.bench import machine, shapes, step, step_options, tables, variants
from orthoopt.bench.allocations import forget_workspaces, peak_extra_bytes
from orthoopt.bench.claims import PEAK_OVER_NEED, STATE_OF_ADAMW, claim, spelled
from orthoopt.bench.results_file import results_folder, write_json
from orthoopt.bench.shapes import ShapeSet
from orthoopt.bench.variants import OURS, Variant
from orthoopt.bench.workload import Workload

MODELS = ("gpt2", "qwen3-0.6b", "llama-3.2-1b", "olmoe-1b-7b")
_SETS = {"cpu": ("cpu_small", "cpu_batch", "gpt2_layer"), "cuda": ("gpt2", "qwen3_0.6b", "llama3.2_1b")}
_WATCHED_STEPS = 2  # what is made once and kept counts too
_HELD_TO = ("qwen3-0.6b", "symmetry")


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print tables, write memory_DEVICE.json and .md; 0, or 2 for a usage error."""
    options = _parse(sys.argv[1:] if argv is None else argv)
    device = torch.device(options.device)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    path = results_folder(options.out) / f"memory_{device.type}.json"
    result: dict[str, Any] = {
        "bench": "memory",
        "machine": machine.describe(device),
        "settings": {
            "device": str(device), "parameters_dtype": "float32", "watched_steps": _WATCHED_STEPS,
            "peak": "bytes given out by torch's allocator at the highest point of the watched steps, above where they "
            "began with parameters, gradients and state in place",
        },
        "must_show": [], "peaks": [], "state": [], "left_out": [],
    }  # fmt: skip
    print(tables.place(result["machine"]))
    for shape_set in options.sets:
        result["peaks"] += measure_set(shape_set, step_options.chosen(variants.VARIANTS, options.variants), device)
    if result["peaks"]:
        print("\n" + tables.aligned(PEAK_HEADER, [_peak_cells(row) for row in result["peaks"]]), flush=True)
    for model in options.models:
        rows, problem = state_of(model)
        result["state"] += rows
        result["left_out"] += [{"model": model, "reason": problem}] if problem else []
    if result["state"]:
        print("\n" + tables.aligned(*state_table(result["state"])))
    for entry in result["left_out"]:
        print(f"left out, {entry['reason']}: {entry['model']}")
    result["must_show"] = _claims(result)
    write_json(path, result)
    tables.write_markdown(path.with_suffix(".md"), tables.document("Memory of a step", result, _pages(result)))
    print("", *spelled(result["must_show"]), "", path, sep="\n")
    return 0


def stated_need(optimizer: Optimizer) -> int | None:
    """Bytes that the optimizer itself says its largest bucket needs; None where nothing states it."""
    return optimizer.stated_need() if isinstance(optimizer, orthoopt.OrthoOpt) else None


def measure_set(shape_set: ShapeSet, contenders: Sequence[Variant], device: torch.device) -> list[dict[str, Any]]:
    """A row for each variant that can run on the set: bytes of parameters and state, peak of a step, stated need."""
    workload = Workload(shape_set, device)
    rows = []
    for variant in contenders:
        emulated = device.type == "cpu" and variant.iteration is variants.bfloat16  # slow, and its peak is no news
        if variant.compiled or emulated or step.reason_to_skip(variant, shape_set, device):
            continue
        forget_workspaces()
        optimizer = variant.build(workload.matrices_apart if variant.matrices_alone else workload.named)
        give = dict(apart=variant.matrices_alone, own=not variant.keeps_gradients)
        workload.give_gradients(0, **give)
        with variant.around():
            if isinstance(optimizer, orthoopt.OrthoOpt):
                optimizer.init_state()
            else:
                optimizer.step()  # torch makes state in the first step
            peak = peak_extra_bytes(partial(_steps, optimizer), device)
        need = stated_need(optimizer)
        rows.append(
            {
                "set": shape_set.name, "name": variant.name, "family": variant.family,
                "parameter_bytes": 4 * shape_set.parameters, "state_bytes": state_bytes(optimizer),
                "peak_extra_bytes": peak, "stated_need_bytes": need, "peak_over_need": peak / need if need else None,
            }
        )  # fmt: skip
    return rows


def _steps(optimizer: Optimizer) -> None:
    for _ in range(_WATCHED_STEPS):
        optimizer.step()


def state_bytes(optimizer: Optimizer) -> int:
    """Bytes of all tensors in the optimizer's state; on the meta device those they would take."""
    tensors = (value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor))
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def state_of(model: str) -> tuple[list[dict[str, Any]], str]:
    """State of a model's parameters under every plan beside ``torch.optim.AdamW``'s, and why there is none, or ""."""
    try:
        from orthoopt.recipes.meta import build_meta_model
    except ModuleNotFoundError as error:
        return [], f"{error.name} is not installed"
    network = build_meta_model(model)
    for parameter in network.parameters():
        parameter.grad = torch.empty_like(parameter)
    adamw = torch.optim.AdamW(network.parameters(), foreach=False)
    adamw.step()
    rows = []
    for plan in orthoopt.plans.names():
        optimizer = orthoopt.OrthoOpt(orthoopt.param_groups(network, plan))
        optimizer.init_state()
        bytes_of_plan, bytes_of_adamw = state_bytes(optimizer), state_bytes(adamw)
        rows.append(
            {
                "model": model, "plan": plan, "parameters": sum(p.numel() for p in network.parameters()),
                "state_bytes": bytes_of_plan, "adamw_state_bytes": bytes_of_adamw,
                "of_adamw": bytes_of_plan / bytes_of_adamw,
            }
        )  # fmt: skip
    return rows, ""


def _claims(result: dict[str, Any]) -> list[dict[str, Any]]:
    lines = []
    for row in result["peaks"]:
        if row["name"] == OURS:
            what = f"peak of a step of {OURS} over its stated need"
            lines.append(claim(what, row["peak_over_need"], PEAK_OVER_NEED, at_least=False, set=row["set"]))
    for row in result["state"]:
        if (row["model"], row["plan"]) == _HELD_TO:
            beside = {"model": row["model"], "plan": row["plan"]}
            lines.append(claim("state over AdamW's", row["of_adamw"], STATE_OF_ADAMW, at_least=False, **beside))
    return lines


PEAK_HEADER = ("one step()", "set", "parameters MB", "state MB", "peak MB", "need MB", "peak/need")


def _peak_cells(row: dict[str, Any]) -> tuple[str, ...]:
    need, ratio = row["stated_need_bytes"], row["peak_over_need"]
    sizes = [f"{row[key] / 1e6:.1f}" for key in ("parameter_bytes", "state_bytes", "peak_extra_bytes")]
    stated = ("-", "-") if need is None else (f"{need / 1e6:.1f}", "-" if ratio is None else f"{ratio:.2f}")
    return (row["name"], row["set"], *sizes, *stated)


def state_table(rows: Sequence[dict[str, Any]]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Header and lines: a plan a line, a model a column, its state in MB and as a share of AdamW's."""
    models = list(dict.fromkeys(row["model"] for row in rows))
    parameters = {row["model"]: row["parameters"] for row in rows}
    cells = {(row["plan"], row["model"]): f"{row['state_bytes'] / 1e6:.0f} ({row['of_adamw']:.3f})" for row in rows}
    plans = list(dict.fromkeys(row["plan"] for row in rows))
    header = ("state in MB (of AdamW's)", *(f"{model}, {parameters[model] / 1e6:.0f}M" for model in models))
    return header, [(plan, *(cells[plan, model] for model in models)) for plan in plans]


def _pages(result: dict[str, Any]) -> list[str]:
    pages = []
    if result["peaks"]:
        rows = [_peak_cells(row) for row in result["peaks"]]
        pages += ["## Peak of a step", result["settings"]["peak"] + ".", tables.markdown(PEAK_HEADER, rows)]
    if result["state"]:
        pages += ["## State of whole models", tables.markdown(*state_table(result["state"]))]
    return pages


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="orthoopt bench memory", description=__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument(
        "--shapes", action="append", default=[], metavar="SET",
        help=f"sets whose steps are watched: {', '.join(shapes.SETS)}, all or none; may be repeated. Default: "
        + "; ".join(f"{device}: {', '.join(names)}" for device, names in _SETS.items()),
    )  # fmt: skip
    parser.add_argument("--variants", default="all", help="as for orthoopt bench step")
    parser.add_argument(
        "--models", nargs="*", default=list(MODELS),
        help=f"whole models whose state is counted, as orthoopt explain takes them; default {' '.join(MODELS)}",
    )  # fmt: skip
    parser.add_argument("--threads", type=step_options.positive(int), help="threads of torch on the CPU")
    parser.add_argument("--out", help="folder of the results; default $OUT, else bench/results")
    options = parser.parse_args(argv)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no CUDA device")
    try:
        wanted = options.shapes or _SETS[options.device]
        options.sets = [] if wanted == ["none"] else shapes.choose(wanted, options.device)
    except ValueError as error:
        parser.error(f"--shapes: {error}")
    return options


if __name__ == "__main__":
    sys.exit(main())
