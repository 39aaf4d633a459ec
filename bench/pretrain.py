"""`orthoopt bench pretrain`: optimizers compared by training the same model, each at its own best learning rate.

README.md beside this file has the protocol.
"""

from __future__ import annotations

import itertools
import json
import statistics
import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from orthoopt.bench import intervals, machine, plot, sweep
from orthoopt.bench.arms import Arm
from orthoopt.bench.pretrain_options import parse
from orthoopt.bench.pretrain_table import table
from orthoopt.bench.pretrain_timing import time_arms, to_reach
from orthoopt.bench.results_file import results_folder, write_json
from orthoopt.bench.runs import BenchError, Run, Runner, check_comparable
from orthoopt.bench.sweep import Point, SweepError, Trial
from orthoopt.recipes import arguments as recipe_arguments
from orthoopt.recipes.corpus import load_corpus
from orthoopt.recipes.data import prepare_data
from orthoopt.recipes.errors import RecipeError
from orthoopt.recipes.models import build_model
from orthoopt.recipes.tokenizer import cache_root, load_tokenizer

# Nothing that costs time and decides no result. The user's options come after these and win.
_LEAN = (
    "--generate_sample", "false", "--save_final", "false", "--save_strategy", "no", "--log_update_norms", "false",
    "--log_diagnostics", "false", "--max_nonfinite_steps", "0", "--disable_tqdm", "true", "--report_to", "none",
    "--overwrite_output_dir", "true",
)  # fmt: skip
_OURS = ("--plan", "--plan_options", "--overrides", "--optimizer", "--optimizer_options", "--learning_rate",
         "--plan_learning_rates", "--seed", "--data_seed", "--output_dir", "--resume_from_checkpoint")  # fmt: skip
_UNTUNED = 2e-3  # middle of the sweep of a plan to which the config gives no learning rate


def main(argv: Sequence[str] | None = None, *, command: Sequence[str] | None = None) -> int:
    """Compare, print a table, write NAME_DEVICE.json and .png; 0, 1 if a run failed, 2 for a usage error."""
    options, rest = parse(sys.argv[1:] if argv is None else argv)
    try:
        runner, middles, prepared = _prepare(options, rest, command)
    except RecipeError as error:
        print(f"orthoopt bench pretrain: error: {error}", file=sys.stderr)
        return 2
    try:
        trained = train(options, runner, middles, prepared.weight_decay)
    except (BenchError, SweepError) as error:
        print(f"orthoopt bench pretrain: {error}", file=sys.stderr)
        return 1
    timings = {} if options.no_timing else _time(options, runner, trained, prepared)
    made = {"bench": "pretrain", "machine": machine.describe(), "settings": _settings(options, runner)}
    result: dict[str, Any] = made | compare(trained, options.reference, timings, options.against)
    folder = results_folder(options.out)
    name = f"{options.name}_{result['device'].partition(':')[0]}"
    written = write_json(folder / f"{name}.json", result)
    drawn = plot.draw(result, folder / f"{name}.png")
    print(f"\n{table(result)}\n\n{written}\n{drawn}")
    return 0


class Trained(NamedTuple):
    """The runs of one arm."""

    arm: Arm
    trials: list[Trial]
    sweep: list[dict[str, Any]]
    """Rows of the trials, in their order."""
    best: Trial
    seeds: list[dict[str, Any]]
    """Rows at the best setting, the sweep's own first."""


def train(options: Namespace, runner: Runner, middles: Mapping[str, float], weight_decay: float) -> list[Trained]:
    """Sweep each arm with seed 0, then train the other seeds at its best setting.

    Raises:
        BenchError: a run failed, or runs differ in more than arm, seed and what is tuned.
        SweepError: an arm's best learning rate stays at the edge of those tried.
    """
    arms = {arm.name: arm for arm in options.arms}
    rows: dict[Point, dict[str, Any]] = {}

    def run_of(point: Point, seed: int) -> Run:
        return Run(arms[point.arm], point.learning_rate, seed, point.weight_decay)

    def evaluate(points: list[Point]) -> list[float]:
        print(f"sweep: {len(points)} runs", flush=True)
        made = runner.run_all([run_of(point, 0) for point in points])
        rows.update(zip(points, made, strict=True))
        return [row["validation_loss"] for row in made]

    keys = {name: runner.key_of(Run(arm, 0.0, 0)) for name, arm in arms.items()}
    found = sweep.search(
        middles, json.loads(json.dumps(keys)), evaluate, trials=options.trials,
        storage=Path(options.runs) / "sweeps.db", tune=options.tune, weight_decay=weight_decay,
    )  # fmt: skip
    points = {name: [Point(name, t.learning_rate, t.weight_decay) for t in trials] for name, trials in found.items()}
    missing = [point for of_arm in points.values() for point in of_arm if point not in rows]
    rows.update(zip(missing, runner.run_all([run_of(point, 0) for point in missing]), strict=True))  # kept ones
    best = {name: sweep.best_trial(trials) for name, trials in found.items()}
    at_best = {name: Point(name, trial.learning_rate, trial.weight_decay) for name, trial in best.items()}
    more = [run_of(at_best[name], seed) for name in arms for seed in range(1, options.seeds)]
    print(f"seeds: {len(more)} more runs at the best settings", flush=True)
    others = runner.run_all(more)
    check_comparable([*rows.values(), *others], but=options.tune)
    return [
        Trained(
            arm, found[name], [rows[point] for point in points[name]], best[name],
            [rows[at_best[name]], *(row for row in others if row["arm"] == name)],
        )
        for name, arm in arms.items()
    ]  # fmt: skip


def compare(
    trained: Sequence[Trained], reference: str, timings: Mapping[str, Any], against: str | None = None
) -> dict[str, Any]:
    """The comparison as plain data.

    Args:
        trained: the arms.
        reference: the arm whose final loss the others are timed to.
        timings: arm -> what `time_arms` gives; may lack arms.
        against: the arm that all others are compared with; by default every two are.
    """
    by_seed = {t.arm.name: {row["seed"]: row["validation_loss"] for row in t.seeds} for t in trained}
    plans = {t.arm.name: _describe(t, by_seed[reference], timings.get(t.arm.name)) for t in trained}
    pairs = [pair for pair in itertools.combinations(by_seed, 2) if against is None or against in pair]
    differences = [intervals.compare(a, b, by_seed) for a, b in pairs]
    shared = trained[0].seeds[0]
    return {
        **{key: shared[key] for key in ("model", "parameters", "corpus", "scored", "steps", "tokens", "device")},
        "reference": reference,
        "plans": plans,
        "differences": differences,
        "winner": intervals.overall_winner(list(by_seed), differences) if against is None else None,
    }


def _describe(trained: Trained, targets: Mapping[int, float], timing: dict[str, Any] | None) -> dict[str, Any]:
    def pick(row: Mapping[str, Any], *keys: str) -> dict[str, Any]:
        return {key: row[key] for key in keys}

    figures = ("validation_loss", "bits_per_byte", "seconds", "optimizer_seconds")
    arm, seeds = trained.arm, trained.seeds
    optimizer = [row["optimizer_seconds"] for row in seeds]
    curves = [row["validation_curve"] for row in seeds]
    step_ms = None if timing is None else timing["step_ms"]["median"]
    return {
        "plan": arm.plan,
        "peer": arm.peer,
        "plan_file": arm.plan_file,
        "overrides": arm.overrides,
        "options": arm.options,
        "grid": [pick(row, "learning_rate", "weight_decay", *figures) for row in trained.sweep],
        "best_learning_rate": trained.best.learning_rate,
        "best_weight_decay": seeds[0]["weight_decay"],
        "best_is_inside_grid": sweep.edge(trained.trials) == 0,
        "seeds": [pick(row, "seed", *figures, "training_curve", "validation_curve") for row in seeds],
        "validation_loss": intervals.summarize([row["validation_loss"] for row in seeds]),
        "bits_per_byte": intervals.summarize([row["bits_per_byte"] for row in seeds]),
        "seconds": statistics.fmean(row["seconds"] for row in seeds),
        "optimizer_seconds": None if None in optimizer else statistics.fmean(optimizer),
        "tokens": seeds[0]["tokens"],
        "timing": timing,
        "to_reference": to_reach(
            [targets[row["seed"]] for row in seeds], curves, seeds[0]["steps"], seeds[0]["tokens"], step_ms
        ),
    }


class Prepared(NamedTuple):
    """What all runs share."""

    weight_decay: float
    tokenizer: Any
    data: Any


def _time(options: Namespace, runner: Runner, trained: Sequence[Trained], prepared: Prepared) -> dict[str, Any]:
    print("timing: steps of all arms on one model, in turns", flush=True)
    arguments = {}
    for t in trained:
        run = Run(t.arm, t.best.learning_rate, 0, t.best.weight_decay)
        arguments[t.arm.name] = recipe_arguments.parse([runner.config, *runner.flags, *run.flags()])
    first = next(iter(arguments.values()))
    model = build_model(first.model.model, first.model_overrides, prepared.tokenizer,
                        block_size=first.data.block_size, seed=0)  # fmt: skip
    return time_arms(arguments, model, prepared.data, seconds=options.timing_seconds)


def _settings(options: Namespace, runner: Runner) -> dict[str, Any]:
    return {
        "set": options.set,
        "config": options.config,
        "config_values": dict(runner.settings),
        "flags": list(runner.flags),
        "sweep": {"trials": options.trials, "tune": options.tune, "sampler": "optuna.samplers.GPSampler",
                  "first_factors": list(sweep.FIRST_FACTORS)},
        "seeds": options.seeds,
        "jobs": options.jobs,
        "threads_per_run": runner.threads,
        "confidence": intervals.CONFIDENCE,
    }  # fmt: skip


def _prepare(
    options: Namespace, rest: Sequence[str], command: Sequence[str] | None
) -> tuple[Runner, dict[str, float], Prepared]:
    """Check the recipe's options, make what all runs share, and find where each arm's sweep begins."""
    ours = [*_OURS, *(["--weight_decay"] if sweep.DECAY in options.tune else [])]
    taken = [word for word in rest if word.partition("=")[0] in ours]
    if taken:
        raise RecipeError(f"{taken[0]} is the bench's own to set; --arms chooses arms, --seeds the number of seeds")
    steps = [] if options.max_steps is None else ["--max_steps", str(options.max_steps)]
    flags = [*_LEAN, *steps, *rest]
    parsed = recipe_arguments.parse([options.config, *flags, *Run(options.arms[0], _UNTUNED, 0).flags()])
    corpus = load_corpus(parsed.data)
    if corpus.info.digest is None:
        raise RecipeError("a stream has no digest, so runs on it cannot be shown to have seen the same text")
    cache = cache_root(parsed.data.cache_dir)
    tokenizer = load_tokenizer(parsed.data.tokenizer, corpus, vocab_size=parsed.data.vocab_size, cache=cache)
    data = prepare_data(corpus, tokenizer, block_size=parsed.data.block_size, eval_blocks=parsed.data.eval_blocks,
                        cache=cache)  # fmt: skip
    rates = recipe_arguments.parse_mapping(parsed.run.plan_learning_rates, "plan_learning_rates")
    runner = Runner(
        Path(options.runs), options.config, recipe_arguments.read_config(options.config), flags,
        corpus.info.digest, options.jobs, max(1, machine.usable_cores() // options.jobs), command,
        tuned=[key for key in options.tune if key != sweep.RATE],
    )  # fmt: skip
    middles = {arm.name: _middle(arm, rates) for arm in options.arms}
    return runner, middles, Prepared(parsed.training.weight_decay, tokenizer, data)


def _middle(arm: Arm, rates: Mapping[str, Any]) -> float:
    """The learning rate that the config gives to an arm, its plan, or the ready plan that its file is based on."""
    names = (arm.name, arm.plan, (arm.plan_file or {}).get("base"))
    return next((float(rates[str(name)]) for name in names if name in rates), _UNTUNED)


if __name__ == "__main__":
    raise SystemExit(main())
