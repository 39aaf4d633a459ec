"""Whether a checkpoint is of the run that is to go on from it."""

from __future__ import annotations

import itertools
from typing import Any

from orthoopt.recipes import report
from orthoopt.recipes.errors import RecipeError
from orthoopt.recipes.folders import Place


def check_same_run(place: Place, run: dict[str, Any]) -> None:
    """Refuse to continue a run on another corpus, model or plan."""
    if place.checkpoint is None:
        return
    earlier = report.read_json(place.checkpoint.parent / report.RUN)
    if earlier is None:
        return
    before, now = earlier.get("plan_file"), run["plan_file"]
    for key in ("plan", "model", "finetune", "parameters", "corpus"):
        if key == "plan" and before and now:
            continue  # what the files say counts, not where they are
        if earlier.get(key) != run.get(key):
            then, here = earlier.get(key), run.get(key)
            raise RecipeError(f"{place.checkpoint} was made with {key} {then!r}, this run has {here!r}")
    for key in ("roles", "patterns") if before and now else ():
        if before[key] != now[key]:
            changed = _difference(before[key], now[key])
            raise RecipeError(
                f"{now['path']} has other {key} than when {place.checkpoint} was made: {changed}. "
                f"The plan of then: --plan {place.checkpoint.parent / report.PLAN} "
                f"--learning_rate {earlier['learning_rate']!r}"
            )


def _difference(before: Any, now: Any) -> str:
    """Where two versions of a plan file's roles, or of its patterns, first differ."""
    if isinstance(before, dict):
        role = next(role for role in before if before[role] != now[role])
        return f"{role} had {before[role]}, now {now[role]}"
    pairs = list(itertools.zip_longest(before, now))
    place = next(i for i, (then, here) in enumerate(pairs) if then != here)
    return f"pattern {place + 1} was {pairs[place][0] or 'not there'}, now {pairs[place][1] or 'not there'}"
