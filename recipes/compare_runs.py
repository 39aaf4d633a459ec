"""Run folders as they are compared: their rows, their settings, what differs, and what makes losses incomparable."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orthoopt.recipes.errors import RecipeError

KEYS = {
    "eval_loss": "validation loss, nats per token",
    "loss": "training loss, nats per token",
    "eval_bits_per_byte": "validation, bits per byte",
}
"""What can be drawn, in words."""

_FIRST = ("plan", "learning_rate", "weight_decay", "seed", "data_seed", "model", "parameters", "corpus.name", "config")
# Where a run writes, what it was called, and what the other settings decide.
_LEFT_OUT = ("routing", "git_commit", "plan_file", "versions", "model_config.vocab_size", "arguments.run.plan")
_ANYWHERE = (
    "output_dir", "logging_dir", "run_name", "resume_from_checkpoint", "overwrite_output_dir", "hub_model_id",
    "disable_tqdm", "report_to", "cache_dir",
)  # fmt: skip


@dataclass(frozen=True)
class Run:
    """A run's folder, the rows of its metrics.jsonl by step, its run.json, and whether it ended."""

    folder: Path
    rows: Sequence[Mapping[str, Any]]
    settings: Mapping[str, Any]
    finished: bool


def read_run(folder: Path) -> Run:
    """Read a folder that `orthoopt pretrain` wrote.

    Raises:
        RecipeError: there is no such folder, it holds no metrics, or run.json is no JSON object.
    """
    if not folder.is_dir():
        raise RecipeError(f"{folder}: no such folder")
    path = folder / "metrics.jsonl"
    if not path.is_file():
        raise RecipeError(f"{folder}: no metrics.jsonl, so not a run's folder")
    rows = list(_rows(path.read_text(encoding="utf-8")))
    if not rows:
        raise RecipeError(f"{path}: nothing was logged")
    settings = {}
    if (folder / "run.json").is_file():
        try:
            settings = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise RecipeError(f"{folder / 'run.json'}: {error}") from error
    if not isinstance(settings, dict):
        raise RecipeError(f"{folder / 'run.json'}: not a JSON object")
    return Run(folder, rows, settings, (folder / "results.json").is_file())


def _rows(text: str) -> Iterator[Mapping[str, Any]]:
    """Rows with a step; a line that a kill cut off is left out, and so is a figure that is not finite."""
    for line in text.splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            yield {key: value for key, value in row.items() if not isinstance(value, float) or math.isfinite(value)}


def differing(runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    """Settings that are not the same in all runs, the telling ones first: name, and each run's value."""
    flat = [dict(_flat(run.settings)) for run in runs]
    names = dict.fromkeys([*_FIRST, *(name for settings in flat for name in settings)])
    found = []
    for name in names:
        if name.startswith(_LEFT_OUT) or name.rpartition(".")[2] in _ANYWHERE:
            continue
        values = [settings.get(name) for settings in flat]
        if any(value != values[0] for value in values):
            short = name.removeprefix("arguments.").partition(".")[2] if name.startswith("arguments.") else name
            found.append((short or name, ["" if value is None else _spelled(value) for value in values]))
    # A setting that stands in several places is one.
    return list({(name, tuple(values)): (name, values) for name, values in found}.values())


def _flat(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, item in value.items():
        if isinstance(item, Mapping) and item:
            yield from _flat(item, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", item


def _spelled(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: ""}[value]
    if isinstance(value, float):
        return f"{value:g}"
    return f"{value:,}" if isinstance(value, int) and abs(value) >= 10000 else str(value)


def cautions(runs: Sequence[Run], key: str) -> list[str]:
    """Why the runs' losses would differ for reasons that are not the optimizer's; in sentences."""
    found = []
    if _differ(runs, "corpus.digest") or _differ(runs, "corpus.name"):
        found.append("the runs read different corpora, so their losses do not compare")
    elif _differ(runs, "scored.tokens") or _differ(runs, "scored.bytes"):
        found.append("the runs are scored on different held-out text, so their losses do not compare")
    if _differ(runs, "vocabulary"):
        unit = "compare eval_bits_per_byte" if key != "eval_bits_per_byte" else "bits per byte do"
        found.append(f"the runs have different vocabularies, so nats per token do not compare: {unit}")
    if _differ(runs, "model") or _differ(runs, "parameters") or _differ(runs, "model_config"):
        found.append("the runs train different models, so the difference is not the optimizer's alone")
    ends = [run.rows[-1]["step"] for run in runs]
    unfinished = [str(run.folder) for run in runs if not run.finished]
    if unfinished:
        found.append(f"not finished: {', '.join(unfinished)}; a loss in the middle of a schedule is not its end's")
    elif len(set(ends)) > 1:
        found.append(f"the runs have different lengths, {', '.join(map(str, ends))} steps: compare ends of schedules")
    seeds = {(_plan(run), run.settings.get("learning_rate")) for run in runs}
    if len(runs) > 1 and len(seeds) == len(runs):
        found.append("one seed each: the difference may be noise; `orthoopt bench pretrain` compares over seeds")
    return found


def _plan(run: Run) -> str:
    return json.dumps([run.settings.get("plan"), run.settings.get("plan_file")], sort_keys=True, default=str)


def _differ(runs: Sequence[Run], name: str) -> bool:
    """Whether two runs that state it have another value of a setting."""
    values = []
    for run in runs:
        value: Any = run.settings
        for step in name.split("."):
            value = value.get(step) if isinstance(value, Mapping) else None
        if value is not None:
            values.append(value)
    return any(value != values[0] for value in values)
