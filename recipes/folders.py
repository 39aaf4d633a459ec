"""Which folder a run writes to, and which checkpoint it continues from."""

from __future__ import annotations

import json
import shutil
from itertools import count
from pathlib import Path
from typing import NamedTuple

from transformers.trainer_utils import sort_checkpoints

from orthoopt.recipes.arguments import Arguments
from orthoopt.recipes.errors import RecipeError

_RUNS = Path("runs")


class Place(NamedTuple):
    """Where a run writes, and the checkpoint it starts from."""

    output: Path
    checkpoint: Path | None


def find_place(arguments: Arguments) -> Place:
    """Choose the output folder and the checkpoint, as the arguments and what is on disk say.

    Without --output_dir it is runs/CONFIG-PLAN, or the first free one of runs/CONFIG-PLAN-2, -3 and so on;
    with `--resume_from_checkpoint auto` the latest of these that has a checkpoint. Raises `RecipeError` when
    the checkpoint is missing or incomplete, or when the folder holds the checkpoints of another run.
    """
    training, base = arguments.training, f"{arguments.config}-{arguments.plan_name}"
    wanted = training.resume_from_checkpoint
    named = Path(training.output_dir) if training.names_output_dir else None
    if wanted is None:
        output = named or next(path for path in _candidates(base) if not path.exists())
        existing = sorted(output.glob("checkpoint-*"))
        if existing and not arguments.run.overwrite_output_dir:
            raise RecipeError(
                f"{output} holds {existing[0].name} of an earlier run: continue it with "
                "--resume_from_checkpoint auto, or give another --output_dir, or --overwrite_output_dir true"
            )
        return Place(output, None)
    if wanted == "auto":
        places = [named] if named else [path for path in _candidates(base, existing=True)]
        found = [checkpoint for path in places if (checkpoint := last_checkpoint(path))]
        if not found:
            return Place(named or next(path for path in _candidates(base) if not path.exists()), None)
        latest = max(found, key=lambda path: path.stat().st_mtime)
        return Place(named or latest.parent, latest)
    path = Path(wanted)
    checkpoint = path if is_complete(path) else last_checkpoint(path)
    if checkpoint is None:
        reason = "is not a complete checkpoint and holds none" if path.is_dir() else "does not exist"
        raise RecipeError(f"--resume_from_checkpoint {wanted}: the folder {reason}")
    return Place(named or checkpoint.parent, checkpoint)


def last_checkpoint(output: Path) -> Path | None:
    """The complete checkpoint of the highest step in an output folder."""
    if not output.is_dir():
        return None
    for name in reversed(sort_checkpoints(str(output))):
        if is_complete(Path(name)):
            return Path(name)
    return None


def is_complete(checkpoint: Path) -> bool:
    """Whether Trainer finished writing it: the state file comes last, and a kill can cut it off."""
    try:
        json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        return False
    return True


def checkpoint_step(checkpoint: Path) -> int:
    """The step a checkpoint was made after."""
    return int(json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))["global_step"])


def remove_checkpoints(output: Path) -> None:
    """Delete an earlier run's checkpoints, or those that a kill left incomplete."""
    for path in output.glob("checkpoint-*"):
        shutil.rmtree(path)


def _candidates(base: str, *, existing: bool = False) -> list[Path]:
    """runs/BASE, runs/BASE-2, ...: those that exist, or as many and one more."""
    names: list[Path] = []
    for number in count(1):
        path = _RUNS / (base if number == 1 else f"{base}-{number}")
        if not path.exists():
            return names if existing else [*names, path]
        names.append(path)
    raise AssertionError("unreachable")
