"""The command line of `orthoopt bench pretrain`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from orthoopt.bench import machine, sweep
from orthoopt.bench.arms import Arm, parse_arms
from orthoopt.bench.peer_optimizers import PEERS
from orthoopt.bench.pretrain_sets import DEFAULT, SETS


def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """The bench's options, a set's values where none are given, and the words that are the recipe's."""
    parser = _parser()
    options, rest = parser.parse_known_args(argv)
    chosen = SETS[options.set]
    options.config = options.config or chosen.config
    options.name = options.name or f"pretrain_{options.set}"
    for name in ("trials", "seeds"):
        if getattr(options, name) is None:
            setattr(options, name, getattr(chosen, name))
    for name, least in (("seeds", 1), ("trials", len(sweep.FIRST_FACTORS)), ("jobs", 1)):
        if getattr(options, name) < least:
            parser.error(f"--{name} must be at least {least}, got {getattr(options, name)}")
    options.tune = [word.strip() for word in options.tune.split(",")]
    unknown = [word for word in options.tune if word not in sweep.TUNABLE]
    if unknown or sweep.RATE not in options.tune:
        parser.error(f"--tune must be {sweep.RATE}, or {','.join(sweep.TUNABLE)}, got {','.join(options.tune)}")
    try:
        options.arms = parse_arms(options.arms or chosen.arms)
    except ValueError as error:
        parser.error(f"--arms: {error}")
    known = [arm.name for arm in options.arms]
    for name in ("against", "reference"):
        if getattr(options, name) not in (None, *known):
            parser.error(f"--{name} {getattr(options, name)!r} is not among the arms: {', '.join(known)}")
    options.reference = options.reference or options.against or _reference(options.arms)
    return options, rest


def _reference(arms: Sequence[Arm]) -> str:
    """The first arm that is plain AdamW, else the first."""
    return next((arm.name for arm in arms if arm.name in ("torch.optim.AdamW", "adamw")), arms[0].name)


def _parser() -> argparse.ArgumentParser:
    width = max(map(len, SETS))
    sets = "\n".join(f"  {name:<{width}}  {chosen.about}" for name, chosen in SETS.items())
    parser = argparse.ArgumentParser(
        prog="orthoopt bench pretrain",
        description="Compare optimizers by training: the learning rate of each is tuned by its own sweep (Optuna), "
        "then several seeds are trained at the best. Interrupted, it goes on where it stopped.\n\nOptions not listed "
        f"here are the recipe's (orthoopt pretrain --help) and hold for every run.\n\nsets:\n{sets}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("set", nargs="?", choices=SETS, default=DEFAULT, help=f"default {DEFAULT}")
    parser.add_argument(
        "--arms",
        help="comma separated: PLAN, PLAN+embedding_x10, PLAN+matrices_x10, PLAN+option=value; PLAN is a name, a plan "
        f"file, or one of {', '.join(PEERS)}; all: every ready plan; default the set's",
    )
    parser.add_argument("--against", metavar="ARM", help="compare all arms with this one, instead of every two")
    parser.add_argument("--reference", metavar="ARM", help="whose final loss others are timed to; default AdamW")
    parser.add_argument("--tune", default=sweep.RATE, help=f"what sweeps choose: {', '.join(sweep.TUNABLE)}")
    parser.add_argument("--trials", type=int, help="settings each sweep tries; more while the best is at an edge")
    parser.add_argument("--seeds", type=int, help="runs at each best setting, the sweep's included")
    parser.add_argument("--name", help="results are NAME_DEVICE.json and .png; default pretrain_SET")
    parser.add_argument("--jobs", type=int, default=machine.usable_cores(), help="runs at a time, default one a core")
    parser.add_argument("--max_steps", type=int, help="steps of every run, default the config's")
    parser.add_argument("--config", help="the recipe's config, default the set's")
    parser.add_argument("--runs", default="runs/bench", help="where runs and sweeps are kept for a restart")
    parser.add_argument("--no_timing", action="store_true", help="do not time steps at the end")
    parser.add_argument("--timing_seconds", type=float, default=5.0, help="spent on timing each arm, about")
    parser.add_argument("--out", help="folder of the results; default $OUT, else bench/results")
    return parser
