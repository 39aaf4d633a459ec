"""`orthoopt bench pretrain`: plans compared by training the same model, each at its own best learning rate.

README.md beside this file has the protocol.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from orthoopt.bench import intervals, machine, plot
from orthoopt.bench.arms import Arm, parse_arms
from orthoopt.bench.grid import Grid, GridError, Point, best_index, search
from orthoopt.bench.results_file import results_folder, write_json
from orthoopt.bench.runs import RECIPE, BenchError, Run, Runner, check_comparable
from orthoopt.recipes import arguments as recipe_arguments
from orthoopt.recipes.corpus import Corpus, load_corpus
from orthoopt.recipes.data import prepare_data
from orthoopt.recipes.errors import RecipeError
from orthoopt.recipes.tokenizer import cache_root, load_tokenizer

# Nothing that costs time and decides no result. The user's options come after these and win.
_LEAN = (
    "--generate_sample", "false", "--save_final", "false", "--save_strategy", "no", "--log_update_norms", "false",
    "--disable_tqdm", "true", "--report_to", "none", "--overwrite_output_dir", "true",
)  # fmt: skip
_OURS = ("--plan", "--plan_options", "--overrides", "--learning_rate", "--plan_learning_rates", "--seed",
         "--data_seed", "--output_dir", "--resume_from_checkpoint")  # fmt: skip
_QUICK: dict[str, Any] = {"plans": "adamw,symmetry", "factor": 2.0, "points": 5}
_FULL: dict[str, Any] = {"plans": "adamw,adamw+embedding_x10,muon,symmetry", "factor": 2**0.5, "points": 9}
_UNTUNED = 2e-3  # middle of the grid of a plan to which the config gives no learning rate


def main(argv: Sequence[str] | None = None, *, command: Sequence[str] = RECIPE) -> int:
    """Compare, print a table, write NAME_DEVICE.json and .png; 0, 1 if a run failed, 2 for a usage error."""
    options, rest = _parse(sys.argv[1:] if argv is None else argv)
    try:
        corpus, runner, starts = _prepare(options, rest, command)
    except RecipeError as error:
        print(f"orthoopt bench pretrain: error: {error}", file=sys.stderr)
        return 2
    try:
        result = compare(options.arms, Grid(options.factor), starts, options.seeds, runner, options.against)
    except (BenchError, GridError) as error:
        print(f"orthoopt bench pretrain: {error}", file=sys.stderr)
        return 1
    settings = {
        "quick": options.quick,
        "config": options.config,
        "config_values": dict(runner.settings),
        "flags": list(runner.flags),
        "grid": {"base": Grid().base, "factor": options.factor, "points_at_first": options.points},
        "seeds": options.seeds,
        "jobs": options.jobs,
        "threads_per_run": runner.threads,
        "confidence": intervals.CONFIDENCE,
    }
    result = {"bench": "pretrain", "machine": machine.describe(), "settings": settings} | result
    folder = results_folder(options.out)
    name = f"{options.name}_{result['device'].partition(':')[0]}"
    written = write_json(folder / f"{name}.json", result)
    drawn = plot.draw(result, folder / f"{name}.png")
    print(f"\n{table(result)}\n\n{written}\n{drawn}")
    return 0


def compare(
    arms: Sequence[Arm],
    grid: Grid,
    starts: Mapping[str, Sequence[int]],
    seeds: int,
    runner: Runner,
    against: str | None = None,
) -> dict[str, Any]:
    """Find each arm's best learning rate with seed 0, train the other seeds there, and compare.

    Args:
        arms: what is compared.
        grid: the learning rates of all arms.
        starts: arm's name -> indices of the grid to begin with.
        seeds: how many; seed 0 is the grid's own run.
        runner: makes the runs.
        against: the arm that all others are compared with; by default every two arms are compared.

    Raises:
        BenchError: a run failed, or runs differ in more than plan, learning rate and seed.
        GridError: an arm's best learning rate stays at the edge of its grid.
    """
    by_name = {arm.name: arm for arm in arms}
    rows: dict[Point, dict[str, Any]] = {}

    def evaluate(points: list[Point]) -> list[float]:
        print(f"grid: {len(points)} runs", flush=True)
        made = runner.run_all([Run(by_name[name], grid.rate(index), 0) for name, index in points])
        rows.update(zip(points, made, strict=True))
        return [row["validation_loss"] for row in made]

    losses = search(starts, evaluate)
    best = {name: best_index(found) for name, found in losses.items()}
    more = [Run(arm, grid.rate(best[arm.name]), seed) for arm in arms for seed in range(1, seeds)]
    print(f"seeds: {len(more)} more runs at the best learning rates", flush=True)
    others = runner.run_all(more)
    check_comparable([*rows.values(), *others])
    plans = {}
    for arm in arms:
        at_best = [rows[arm.name, best[arm.name]], *(row for row in others if row["arm"] == arm.name)]
        on_grid = [rows[arm.name, index] for index in losses[arm.name]]
        plans[arm.name] = _describe_arm(arm, on_grid, grid.rate(best[arm.name]), at_best)
    by_seed = {name: {row["seed"]: row["validation_loss"] for row in plan["seeds"]} for name, plan in plans.items()}
    pairs = [pair for pair in itertools.combinations(by_name, 2) if against is None or against in pair]
    differences = [intervals.compare(a, b, by_seed) for a, b in pairs]
    shared = next(iter(rows.values()))
    return {
        **{key: shared[key] for key in ("model", "parameters", "corpus", "scored", "steps", "tokens", "device")},
        "plans": plans,
        "differences": differences,
        "winner": intervals.overall_winner(list(by_name), differences) if against is None else None,
    }


def _describe_arm(
    arm: Arm, grid: Sequence[dict[str, Any]], best: float, at_best: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    def pick(row: Mapping[str, Any], *keys: str) -> dict[str, Any]:
        return {key: row[key] for key in keys}

    figures = ("validation_loss", "bits_per_byte", "seconds", "optimizer_seconds")
    optimizer = [row["optimizer_seconds"] for row in at_best]
    rates = [row["learning_rate"] for row in grid]
    return {
        "plan": arm.plan,
        "plan_file": arm.plan_file,
        "overrides": arm.overrides,
        "options": arm.options,
        "grid": [pick(row, "learning_rate", *figures) for row in grid],
        "best_learning_rate": best,
        "best_is_inside_grid": min(rates) < best < max(rates),
        "seeds": [pick(row, "seed", *figures, "training_curve", "validation_curve") for row in at_best],
        "validation_loss": intervals.summarize([row["validation_loss"] for row in at_best]),
        "bits_per_byte": intervals.summarize([row["bits_per_byte"] for row in at_best]),
        "seconds": statistics.fmean(row["seconds"] for row in at_best),
        "optimizer_seconds": None if None in optimizer else statistics.fmean(optimizer),
        "tokens": at_best[0]["tokens"],
    }


def table(result: Mapping[str, Any]) -> str:
    """The outcome for people: one line a plan, one a difference."""
    width = max(map(len, result["plans"]))
    lines = [
        f"{result['model']}, {result['parameters']:,} parameters, {result['steps']} steps, {result['tokens']:,} "
        f"tokens of {result['corpus']['name']}",
        f"{'plan':<{width}}  {'best lr':>8}  {'grid':>17}  {'validation loss':>24}  {'bits per byte':>13}  "
        f"{'seconds':>7}  {'optimizer':>9}",
    ]
    for name, plan in result["plans"].items():
        loss, interval = plan["validation_loss"]["mean"], plan["validation_loss"]["ci95"]
        spread = f" +- {(interval[1] - interval[0]) / 2:.4f} (n={len(plan['seeds'])})" if interval else ""
        rates = [row["learning_rate"] for row in plan["grid"]]
        optimizer = "" if plan["optimizer_seconds"] is None else f"{plan['optimizer_seconds']:.1f}"
        lines.append(
            f"{name:<{width}}  {plan['best_learning_rate']:>8.4g}  {f'{min(rates):.3g}-{max(rates):.3g}':>17}  "
            f"{f'{loss:.4f}{spread}':>24}  {plan['bits_per_byte']['mean']:>13.4f}  {plan['seconds']:>7.0f}  "
            f"{optimizer:>9}"
        )
    return "\n".join([*lines, *(row["verdict"] for row in result["differences"])])


def _prepare(
    options: argparse.Namespace, rest: Sequence[str], command: Sequence[str]
) -> tuple[Corpus, Runner, dict[str, list[int]]]:
    """Check the recipe's options, make what all runs share, and find where each arm's grid begins."""
    taken = [word for word in rest if word.partition("=")[0] in _OURS]
    if taken:
        raise RecipeError(f"{taken[0]} is the bench's own to set; --plans chooses arms, --seeds the number of seeds")
    steps = [] if options.max_steps is None else ["--max_steps", str(options.max_steps)]
    flags = [*_LEAN, *steps, *rest]
    first = Run(options.arms[0], _UNTUNED, 0)
    parsed = recipe_arguments.parse([options.config, *flags, *first.flags()])
    corpus = load_corpus(parsed.data)
    if corpus.info.digest is None:
        raise RecipeError("a stream has no digest, so runs on it cannot be shown to have seen the same text")
    cache = cache_root(parsed.data.cache_dir)
    tokenizer = load_tokenizer(parsed.data.tokenizer, corpus, vocab_size=parsed.data.vocab_size, cache=cache)
    prepare_data(corpus, tokenizer, block_size=parsed.data.block_size, eval_blocks=parsed.data.eval_blocks, cache=cache)
    rates = recipe_arguments.parse_mapping(parsed.run.plan_learning_rates, "plan_learning_rates")
    grid = Grid(options.factor)
    starts = {arm.name: grid.around(_middle(arm, rates), options.points) for arm in options.arms}
    runner = Runner(
        Path(options.runs), options.config, recipe_arguments.read_config(options.config), flags,
        corpus.info.digest, options.jobs, max(1, machine.usable_cores() // options.jobs), command,
    )  # fmt: skip
    return corpus, runner, starts


def _middle(arm: Arm, rates: Mapping[str, Any]) -> float:
    """The learning rate that the config gives to an arm, its plan, or the ready plan that its file is based on."""
    names = (arm.name, arm.plan, (arm.plan_file or {}).get("base"))
    return next((rates[str(name)] for name in names if name in rates), _UNTUNED)


def _parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        prog="orthoopt bench pretrain",
        description="Compare plans by training, each at its own best learning rate of a geometric grid, over several "
        "seeds there. Options not listed here are the recipe's (orthoopt pretrain --help) and hold for every run.",
        allow_abbrev=False,
    )
    parser.add_argument("--quick", action="store_true", help=f"the comparison of {_QUICK['plans']} alone, factor 2")
    parser.add_argument(
        "--plans",
        help="arms, comma separated: PLAN, PLAN+embedding_x10, PLAN+matrices_x10, PLAN+option=value; PLAN is a "
        "name or a plan file; all: every ready plan",
    )
    parser.add_argument("--against", metavar="ARM", help="compare all arms with this one, instead of every two")
    parser.add_argument("--name", default="pretrain", help="results are NAME_DEVICE.json and .png, default pretrain")
    parser.add_argument("--seeds", type=int, default=3, help="runs at each best learning rate, the grid's included")
    parser.add_argument(
        "--points", type=int, help="learning rates to begin with; extended while the best is at an edge"
    )
    parser.add_argument("--jobs", type=int, default=machine.usable_cores(), help="runs at a time, default one a core")
    parser.add_argument("--max_steps", type=int, help="steps of every run, default the config's")
    parser.add_argument("--config", default="default", help="the recipe's config")
    parser.add_argument("--runs", default="runs/bench", help="where finished runs are kept for a restart")
    parser.add_argument("--out", help="folder of the results; default $OUT, else bench/results")
    options, rest = parser.parse_known_args(argv)
    defaults = _QUICK if options.quick else _FULL
    options.factor = defaults["factor"]
    options.points = defaults["points"] if options.points is None else options.points
    for name in ("seeds", "points", "jobs"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(options, name)}")
    try:
        options.arms = parse_arms(options.plans or defaults["plans"])
    except ValueError as error:
        parser.error(f"--plans: {error}")
    known = [arm.name for arm in options.arms]
    if options.against is not None and options.against not in known:
        parser.error(f"--against {options.against!r} is not among the arms: {', '.join(known)}")
    return options, rest


if __name__ == "__main__":
    raise SystemExit(main())
