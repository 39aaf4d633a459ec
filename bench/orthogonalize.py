"""`orthoopt bench orthogonalize`: forms of the Newton-Schulz iteration by shape, and the methods of ``orthogonalize``.

Every result is checked in float64 first; a wrong one gets no time. README.md beside this file has the protocol.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

import torch

from orthoopt.bench import forms, machine, methods, shapes, step, tables, timing
from orthoopt.bench.claims import ITERATION_MILLISECONDS, claim, spelled
from orthoopt.bench.results_file import results_folder, write_json
from orthoopt.bench.step_options import positive

_PARTS = ("forms", "sets", "methods")
_COEFFICIENTS = "muon"


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print tables, write orthogonalize_DEVICE.json and .md; 0, or 1 if a result was wrong."""
    options = _parse(sys.argv[1:] if argv is None else argv)
    device = torch.device(options.device)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    path = results_folder(options.out) / f"orthogonalize_{device.type}.json"
    result: dict[str, Any] = {
        "bench": "orthogonalize",
        "machine": machine.describe(device),
        "settings": {
            "device": str(device), "dtype": "float32", "repeats": options.repeats, "seconds": options.seconds,
            "steps": forms.STEPS, "coefficients": options.coefficients, "methods_table": "polar_express",
        },
        "must_show": [], "forms": [], "sets": [], "rows": [],
    }  # fmt: skip
    print(tables.place(result["machine"]))
    for part, run in zip(_PARTS, (_forms, _sets, _methods), strict=True):
        if part in options.parts:
            run(result, options, device)
            write_json(path, result)
            text = tables.document("Orthogonalization", result, _pages(result))
            tables.write_markdown(path.with_suffix(".md"), text)
    print("", *spelled(result["must_show"]), "", path, sep="\n")
    ways = [way for row in [*result["forms"], *result["sets"], *result["rows"]] for way in row["ways"]]
    return 0 if all(way["correct"] for way in ways) else 1


def _forms(result: dict[str, Any], options: argparse.Namespace, device: torch.device) -> None:
    ceiling = _ceiling(device)
    for coefficients in options.coefficients:
        for stack in forms.shapes_to_measure(options.sets, options.sides or forms.SIDES[device.type], device.type):
            row = forms.measure(
                [stack], coefficients, device, ceiling, repeats=options.repeats, seconds=options.seconds
            )
            row["name"] = "{} of {}x{}".format(*stack)
            result["forms"].append(row)
            if device.type == "cpu":
                result["must_show"] += forms.claims(row["name"], row)
    print(f"\n{_table(result['forms'])}", flush=True)


def _sets(result: dict[str, Any], options: argparse.Namespace, device: torch.device) -> None:
    """Whole sets, all their stacks one after the other: what a step spends on the iteration."""
    for coefficients in options.coefficients:
        for shape_set in options.sets:
            row = forms.measure(
                forms.stacks_of(shape_set), coefficients, device, _ceiling(device),
                repeats=options.repeats, seconds=options.seconds,
            )  # fmt: skip
            row["name"] = f"{shape_set.name}, {coefficients}"
            result["sets"].append(row)
            limit = ITERATION_MILLISECONDS.get(shape_set.name)
            default = next(way for way in row["ways"] if way["name"] == forms.DEFAULT)
            if device.type == "cuda" and limit is not None and default["seconds"]:
                value = 1e3 * default["seconds"]["median"]
                beside = {"set": shape_set.name, "coefficients": coefficients}
                result["must_show"].append(
                    claim("milliseconds of the iteration", value, limit, at_least=False, **beside)
                )
    print(f"\n{_table(result['sets'])}", flush=True)


def _methods(result: dict[str, Any], options: argparse.Namespace, device: torch.device) -> None:
    for side in options.sides or methods.SIDES:
        for aspect in methods.ASPECTS:
            if side * side * aspect <= methods.MOST_ELEMENTS:
                result["rows"].append(methods.measure(side, aspect, device, options.repeats, options.seconds))
    print("\n" + tables.aligned(methods.HEADER, [methods.cells(row) for row in result["rows"]]), flush=True)


def _ceiling(device: torch.device) -> timing.Ceiling:
    dtype, size = step.MATMUL[device.type]
    return timing.matmul_ceiling(device, dtype, size)


def _table(rows: Sequence[dict[str, Any]]) -> str:
    return tables.aligned(forms.HEADER, [forms.cells(row["name"], row) for row in rows])


def _pages(result: dict[str, Any]) -> list[str]:
    pages = []
    for part, title in (("forms", "Forms by shape"), ("sets", "Whole sets")):
        if result[part]:
            rows = [forms.cells(row["name"], row) for row in result[part]]
            pages += [f"## {title}", tables.markdown(forms.HEADER, rows)]
    if result["rows"]:
        rows = [methods.cells(row) for row in result["rows"]]
        pages += ["## Methods", tables.markdown(methods.HEADER, rows)]
    return pages


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="orthoopt bench orthogonalize", description=__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--parts", nargs="+", choices=_PARTS, default=list(_PARTS), help="tables to make; all")
    parser.add_argument(
        "--shapes", action="append", default=[], metavar="SET",
        help=f"{', '.join(shapes.SETS)} or all; may be repeated. Default: "
        + "; ".join(f"{device}: {', '.join(names)}" for device, names in shapes.DEFAULTS.items()),
    )  # fmt: skip
    parser.add_argument("--sides", type=positive(int), nargs="+", help="shorter sides to measure")
    parser.add_argument(
        "--coefficients", nargs="+", help=f"tables of the forms; by default {_COEFFICIENTS}, on GPUs polar_express too"
    )
    parser.add_argument("--repeats", type=positive(int), default=20, help="most repeats of a way")
    parser.add_argument(
        "--seconds", type=positive(float), default=4.0, help="a way too slow for so many gets what fits, at least 3"
    )
    parser.add_argument("--threads", type=positive(int), help="threads of torch on the CPU")
    parser.add_argument("--out", help="folder of the results; default $OUT, else bench/results")
    options = parser.parse_args(argv)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no CUDA device")
    try:
        options.sets = shapes.choose(options.shapes, options.device)
    except ValueError as error:
        parser.error(f"--shapes: {error}")
    if options.coefficients is None:
        options.coefficients = [_COEFFICIENTS, *(["polar_express"] if options.device == "cuda" else [])]
    return options


if __name__ == "__main__":
    sys.exit(main())
