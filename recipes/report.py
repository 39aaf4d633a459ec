"""What a run leaves behind: run.json, its plan file in full, metrics.jsonl, results.json, loss curve."""

from __future__ import annotations

import json
import math
import platform
import subprocess
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from transformers import (
    TrainerCallback,
    TrainerControl,
    TrainerState,
)
from transformers import TrainingArguments as HFTrainingArguments

from orthoopt.recipes.callbacks import TrainingClock
from orthoopt.recipes.tokenizer import write_atomically

METRICS, RUN, RESULTS, CURVE, SAMPLE = "metrics.jsonl", "run.json", "results.json", "loss.png", "sample.txt"
PLAN = "resolved_plan.yaml"


class MetricsLog(TrainerCallback):
    """Writes metrics.jsonl: one object a log, as docs/training.md describes.

    `keep` holds an earlier run's rows up to the step it is continued from; those after it are written again.
    """

    def __init__(self, path: Path, clock: TrainingClock, *, keep: list[dict[str, Any]]) -> None:
        self.path, self.clock = path, clock
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, "".join(json.dumps(row) + "\n" for row in keep).encode())

    def on_log(
        self,
        args: HFTrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Append a row for a training log or an evaluation."""
        if not state.is_world_process_zero or not logs or not {"loss", "eval_loss"} & set(logs):
            return
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(dumps(metrics_row(logs, state, self.clock.seconds)) + "\n")


_ELSEWHERE = {"step", "num_input_tokens_seen", "total_flos", "eval_runtime", "eval_samples_per_second",
              "eval_steps_per_second", "eval_model_preparation_time"}  # fmt: skip


def metrics_row(logs: Mapping[str, Any], state: TrainerState, seconds: float) -> dict[str, Any]:
    """One row: what was logged, `a/b` as an object `a` with a key `b`; times of evaluations are left out."""
    row: dict[str, Any] = {"step": state.global_step}
    for key, value in logs.items():
        name, slash, role = key.partition("/")
        if slash:
            row.setdefault(name, {})[role] = value
        elif key not in _ELSEWHERE:
            row[key] = value
    return row | {"tokens": state.num_input_tokens_seen, "seconds": round(seconds, 3)}


def read_metrics(path: Path, *, up_to: float = math.inf) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl whose step is at most `up_to`; a broken last line is left out."""
    rows = []
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                continue
            if row["step"] <= up_to:
                rows.append(row)
    return rows


def dumps(value: Any, indent: int | None = None) -> str:
    """Strict JSON: NaN and infinities become null, what JSON does not know its string."""
    return json.dumps(_strict(value), indent=indent, default=str, allow_nan=False)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file at once."""
    write_atomically(path, (dumps(value, indent=2) + "\n").encode())


def read_json(path: Path) -> Any:
    """A JSON file's value, or None when there is no such file."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def versions() -> dict[str, str]:
    """Python's release and the installed releases of what a result depends on."""
    found = {"python": platform.python_version()}
    for name in ("orthoopt", "torch", "transformers", "accelerate", "tokenizers"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "unknown"
    return found


def git_commit() -> str | None:
    """The commit of the checkout this file is tracked in, with `+` if it has changes; None elsewhere."""
    source = Path(__file__).resolve()

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", "-C", str(source.parent), *words], check=True, capture_output=True, text=True, timeout=10
        ).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", source.name)
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def draw_curve(rows: list[dict[str, Any]], path: Path, title: str) -> bool:
    """Draw training and validation loss over steps as a PNG; False when matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.add_subplot()
    for key, label, style in (("loss", "training", "-"), ("eval_loss", "validation", "o-")):
        points = [(row["step"], row[key]) for row in rows if row.get(key) is not None]
        if points:
            axes.plot(*zip(*points, strict=True), style, label=label, markersize=4)
    axes.set(xlabel="step", ylabel="loss (nats per token)", title=title)
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend()
    figure.savefig(path, dpi=130)
    return True


def _strict(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(key): _strict(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_strict(item) for item in value]
    return value
