"""The options of the step bench."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from orthoopt.bench import shapes
from orthoopt.bench.variants import Variant
from orthoopt.bench.workload import COMPILE_SECONDS

REPEATS = {"cpu": 40, "cuda": 100}


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The options, ``sets`` as pairs of a shape set and the variants asked for on it, "" where none were."""
    parser = argparse.ArgumentParser(
        prog="orthoopt bench step", description="Time one step() of each optimizer on real shapes."
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument(
        "--shapes", action="append", default=[], metavar="SET[:VARIANTS]",
        help=f"{', '.join(shapes.SETS)} or all; may be repeated. Default: "
        + "; ".join(f"{device}: {', '.join(names)}" for device, names in shapes.DEFAULTS.items())
        + ". Real models take torch.optim.Muon minutes a step on a CPU.",
    )  # fmt: skip
    parser.add_argument(
        "--variants", default="all",
        help="all, main (ours at its most telling, torch's, and the peers), or names or their beginnings, by commas",
    )  # fmt: skip
    parser.add_argument("--repeats", type=positive(int), help=f"most repeats of a variant, default {REPEATS}")
    parser.add_argument(
        "--seconds", type=positive(float), default=60.0,
        help="a variant too slow for so many repeats gets as many as fit into this, at least 3",
    )  # fmt: skip
    parser.add_argument(
        "--compile-seconds", type=positive(float), default=COMPILE_SECONDS,
        help="a variant that takes longer to compile is left out",
    )  # fmt: skip
    parser.add_argument("--threads", type=positive(int), help="torch's threads, default torch's own choice")
    parser.add_argument("--out", help="folder of step_DEVICE.json and .md; default $OUT, else bench/results")
    options = parser.parse_args(argv)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no CUDA device")
    wanted = {name: variants for name, _, variants in (word.partition(":") for word in options.shapes)}
    try:
        sets = shapes.choose(wanted, options.device)
    except ValueError as error:
        parser.error(f"--shapes: {error}")
    options.sets = [(shape_set, wanted.get(shape_set.name, "")) for shape_set in sets]
    options.repeats = options.repeats or REPEATS[options.device]
    return options


def chosen(contenders: Sequence[Variant], words: str) -> list[Variant]:
    """The variants that ``--variants`` means.

    Raises:
        SystemExit: a word is the beginning of no variant's name; with the names there are, and status 2.
    """
    if words == "all":
        return list(contenders)
    if words == "main":
        return [v for v in contenders if v.main or v.family == "peer"]
    asked = [word.strip().lower() for word in words.split(",")]
    for word in asked:
        if not any(v.name.lower().startswith(word) for v in contenders):
            argparse.ArgumentParser(prog="orthoopt bench step").error(
                f"--variants: {word!r} begins no name; names: {', '.join(v.name for v in contenders)}, all, main"
            )
    return [v for v in contenders if any(v.name.lower().startswith(word) for word in asked)]


def positive(kind: type) -> Any:
    """A type for argparse: a finite number above zero."""
    return partial(_positive_number, kind)


def _positive_number(kind: type, text: str) -> Any:
    try:
        number = kind(text)
    except ValueError:
        number = 0
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a positive {kind.__name__}, got {text!r}")
    return number
