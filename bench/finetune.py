"""`orthoopt bench finetune`: plan against plan on models that are pretrained already, with AdamW and with symmetry.

Each base is pretrained once by the default recipe on the standard library's source, then fine-tuned on Python's manual
by every arm, at the arm's own best learning rate: the one of the lowest loss on held-out pages of the manual with seed
0, of a grid that is extended while its best is at an edge. The other seeds run there. What is forgotten is the rise of
the loss on the source that pretraining held out. Seeds draw the order of the data and the adapters, not the base: of
each kind there is one.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from orthoopt.bench import intervals, machine, tables
from orthoopt.bench.arms import Arm, parse_arm
from orthoopt.bench.finetune_tables import page
from orthoopt.bench.grid import Grid, GridError, Point, best_index, search
from orthoopt.bench.results_file import results_folder, write_json
from orthoopt.recipes import arguments as recipe_arguments
from orthoopt.recipes import finetune, pretrain
from orthoopt.recipes.errors import RecipeError
from orthoopt.recipes.finetune_arguments import parse_finetune

ARMS = "adamw,muon,symmetry,lora:adamw,lora:muon"
_LORA = "lora:"
_STARTS = {"adamw": 2e-3, "muon": 4e-3, "symmetry": 4e-3, "lora:adamw": 8e-3, "lora:muon": 1.6e-2}
"""Middle of an arm's first grid; of others, that of `muon`. It saves runs, and decides nothing: grids are extended."""
_LEAN = (
    "--generate_sample", "false", "--save_strategy", "no", "--log_update_norms", "false", "--disable_tqdm", "true",
    "--report_to", "none", "--overwrite_output_dir", "true",
)  # fmt: skip
_FIGURES = ("new_loss", "new_bits_per_byte", "old_loss", "forgotten", "seconds")


class Tuning(NamedTuple):
    """An arm: a plan, for all weights or for LoRA adapters."""

    name: str
    arm: Arm
    rank: int

    def flags(self) -> list[str]:
        """The recipe's options: its config, plan and adapters."""
        lora = ["--lora_rank", str(self.rank)] if self.rank else []
        return ["finetune_lora" if self.rank else "finetune", *self.arm.flags(), *lora]


def main(argv: Sequence[str] | None = None) -> int:
    """Compare, print a table, write finetune_cpu.json and .md; 0, 1 if no best rate was found, 2 for a wrong option."""
    options = _parse(sys.argv[1:] if argv is None else argv)
    torch.set_num_threads(options.threads)
    runs = Path(options.runs)
    result: dict[str, Any] = {"bench": "finetune", "machine": machine.describe(), "settings": _settings(options)}
    try:
        bases = {plan: pretrained(plan, runs, options.pretrain_steps, options.flags) for plan in options.bases}
        result["bases"] = {plan: compare(base, options, runs) for plan, base in bases.items()}
    except GridError as error:
        print(f"orthoopt bench finetune: {error}", file=sys.stderr)
        return 1
    except RecipeError as error:
        print(f"orthoopt bench finetune: error: {error}", file=sys.stderr)
        return 2
    folder = results_folder(options.out)
    written = write_json(folder / "finetune_cpu.json", result)
    text = page(result)
    print(f"\n{text}\n{written}\n{tables.write_markdown(folder / 'finetune_cpu.md', text)}")
    return 0


def pretrained(plan: str, runs: Path, steps: int, flags: Sequence[str]) -> dict[str, Any]:
    """The base of `plan`, made by the default recipe or kept from an earlier call: its folder and its results."""
    folder = runs / f"base-{plan}"
    given = ["--max_steps", str(steps), "--plan", plan, "--output_dir", str(folder), *_LEAN, *flags]
    done = _read(folder / "results.json")
    if done is None or (done["plan"], done["steps"]) != (plan, steps):
        print(f"pretraining with {plan}, {steps} steps", flush=True)
        with contextlib.redirect_stdout(io.StringIO()):
            pretrain.pretrain(recipe_arguments.parse(["default", "--eval_strategy", "no", *given]))
        done = _read(folder / "results.json")
    kept = ("plan", "learning_rate", "steps", "tokens", "eval_loss", "eval_bits_per_byte", "model", "parameters",
            "corpus", "seed", "git_commit", "versions")  # fmt: skip
    weights = hashlib.sha256((folder / "model" / "model.safetensors").read_bytes()).hexdigest()
    return {"folder": str(folder), "weights_sha256": weights, "pretraining": {key: done[key] for key in kept}}


def compare(base: Mapping[str, Any], options: argparse.Namespace, runs: Path) -> dict[str, Any]:
    """Every arm on one base: its grid, its seeds at the best rate, and its differences from AdamW on all weights."""
    grid, by_name = Grid(options.factor), {tuning.name: tuning for tuning in options.arms}
    rows: dict[Point, dict[str, Any]] = {}

    def evaluate(points: list[Point]) -> list[float]:
        for name, index in points:
            rows[name, index] = one_run(base, by_name[name], grid.rate(index), 0, options, runs)
        return [rows[point]["new_loss"] for point in points]

    rates = _STARTS | options.starts
    starts = {name: grid.around(rates.get(name, rates["muon"]), options.points) for name in by_name}
    losses = search(starts, evaluate)
    arms = {}
    for name, tuning in by_name.items():
        best = best_index(losses[name])
        seeds = [rows[name, best]]
        seeds += [one_run(base, tuning, grid.rate(best), seed, options, runs) for seed in range(1, options.seeds)]
        arms[name] = {
            "plan": tuning.arm.plan,
            "overrides": tuning.arm.overrides,
            "lora_rank": tuning.rank,
            "trainable": seeds[0]["trainable"],
            "grid": [{"learning_rate": grid.rate(i)} | _figures(rows[name, i]) for i in losses[name]],
            "best_learning_rate": grid.rate(best),
            "seeds": [{"seed": seed} | _figures(row) for seed, row in enumerate(seeds)],
            **{key: intervals.summarize([row[key] for row in seeds]) for key in _FIGURES},
        }
    differences = {}
    for key in ("new_loss", "old_loss"):
        by_seed = {name: {row["seed"]: row[key] for row in arm["seeds"]} for name, arm in arms.items()}
        others = [name for name in arms if name != "adamw"] if "adamw" in arms else []
        differences[key] = [intervals.compare(name, "adamw", by_seed) for name in others]
    shared = next(iter(rows.values()))
    return {
        **{key: base[key] for key in ("weights_sha256", "pretraining")},
        **{key: shared[key] for key in ("before", "corpus", "scored", "steps", "tokens")},
        "arms": arms,
        "differences": differences,
    }


def one_run(
    base: Mapping[str, Any], tuning: Tuning, rate: float, seed: int, options: argparse.Namespace, runs: Path
) -> dict[str, Any]:
    """One fine-tuning in this process, or what an earlier call kept of it under everything that decides it."""
    chosen = [*tuning.flags(), "--learning_rate", repr(rate), "--seed", str(seed), "--data_seed", str(seed)]
    flags = [*chosen, "--max_steps", str(options.max_steps), "--per_device_train_batch_size", str(options.batch),
             "--eval_blocks", str(options.eval_blocks), "--eval_strategy", "no", "--save_final", "false",
             *_LEAN, *options.flags]  # fmt: skip
    key = [
        base["weights_sha256"],
        flags,
        machine.source_digest(),
        machine.versions(),
        machine.cpu_model(),
        options.threads,
    ]
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:24]
    kept = runs / "kept" / f"{name}.json"
    row = _read(kept)
    if row is None:
        output = runs / f"running-{base['pretraining']['plan']}"
        with contextlib.redirect_stdout(io.StringIO()):
            arguments = parse_finetune([base["folder"], *flags, "--output_dir", str(output)])
            results = finetune.finetune(arguments)
        row = _row(results, json.loads((output / "run.json").read_text(encoding="utf-8")))
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_json(kept, row)
    print(
        f"  {base['pretraining']['plan']} -> {tuning.name} lr {rate:g} seed {seed}: new {row['new_loss']:.4f}, "
        f"old {row['old_loss']:.4f}, {row['seconds']:.0f} s",
        flush=True,
    )
    return row


def _row(results: Mapping[str, Any], run: Mapping[str, Any]) -> dict[str, Any]:
    old = results["also"]
    return {
        "new_loss": _number(results["eval_loss"]),
        "new_bits_per_byte": _number(results["eval_bits_per_byte"]),
        "old_loss": _number(old["after"]["loss"]),
        "forgotten": _number(old["after"]["loss"]) - old["before"]["loss"],
        "seconds": results["train_seconds"],
        "before": {"new_loss": results["before"]["eval_loss"], "old_loss": old["before"]["loss"]},
        "trainable": run["trainable"],
        "also": run["also"],
        **{key: results[key] for key in ("corpus", "scored", "steps", "tokens")},
    }


def _figures(row: Mapping[str, Any]) -> dict[str, Any]:
    return {key: row[key] for key in _FIGURES}


def _number(value: float | None) -> float:
    """The recipe writes null for a loss that is not finite."""
    return float("nan") if value is None else float(value)


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def _settings(options: argparse.Namespace) -> dict[str, Any]:
    given = vars(options) | {"arms": [tuning.name for tuning in options.arms], "confidence": intervals.CONFIDENCE}
    return {key: value for key, value in given.items() if key not in ("runs", "out")}


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="orthoopt bench finetune",
        description="Compare plans in fine-tuning, each at its own best learning rate. Options not listed here are the "
        "recipes' (orthoopt finetune --help), and hold for pretraining and every run.",
        allow_abbrev=False,
    )
    parser.add_argument("--bases", default="adamw,symmetry", help="plans that the bases are pretrained with")
    parser.add_argument("--arms", default=ARMS, help="comma separated: PLAN as of bench pretrain, lora:PLAN")
    parser.add_argument("--rank", type=int, default=16, help="of LoRA adapters")
    parser.add_argument("--pretrain_steps", type=int, default=600)
    parser.add_argument("--max_steps", type=int, default=40, help="of every fine-tuning")
    parser.add_argument("--batch", type=int, default=4, help="blocks a step of fine-tuning")
    parser.add_argument("--eval_blocks", type=int, default=48, help="blocks scored, of the new and of the old text")
    parser.add_argument("--points", type=int, default=3, help="learning rates to begin with")
    parser.add_argument("--starts", default="", help="the middles of arms' first grids: ARM=RATE,ARM=RATE")
    parser.add_argument("--factor", type=float, default=2.0, help="between neighbouring learning rates")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", default="runs/bench-finetune", help="where bases and finished runs are kept")
    parser.add_argument("--out", help="folder of the results; default $OUT, else bench/results")
    options, flags = parser.parse_known_args(argv)
    options.flags = flags
    options.bases = options.bases.split(",")
    try:
        options.arms = [_tuning(spec, options.rank) for spec in options.arms.split(",")]
        options.starts = {arm: float(rate) for arm, _, rate in _pairs(options.starts)}
    except ValueError as error:
        parser.error(f"--arms or --starts: {error}")
    return options


def _pairs(text: str) -> list[tuple[str, str, str]]:
    return [item.rpartition("=") for item in text.split(",") if item]


def _tuning(spec: str, rank: int) -> Tuning:
    lora = spec.startswith(_LORA)
    return Tuning(spec, parse_arm(spec.removeprefix(_LORA)), rank if lora else 0)


if __name__ == "__main__":
    raise SystemExit(main())
