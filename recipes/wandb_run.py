"""Weights & Biases: one run for one output folder, in the folder, continued when the training is."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from orthoopt.recipes import report
from orthoopt.recipes.errors import RecipeError

ID = "wandb_run.json"


class WandbRun:
    """The run that Trainer logs to; without wandb among `report_to`, or where the caller has a run already, nothing.

    The run's id is kept in `wandb_run.json`. A training that goes on in its folder goes on in this run; WANDB_RUN_ID,
    WANDB_PROJECT, WANDB_DIR, WANDB_MODE and wandb's other variables say what they always say.
    """

    def __init__(
        self, output: Path, *, wanted: bool, continued: bool, name: str | None, config: Mapping[str, Any]
    ) -> None:
        self._run: Any = None
        if not wanted:
            return
        import wandb

        if wandb.run is not None:
            return
        kept = report.read_json(output / ID) if continued else None
        identity = os.environ.get("WANDB_RUN_ID") or (kept or {}).get("id") or secrets.token_hex(4)
        offline = os.environ.get("WANDB_MODE") in ("offline", "dryrun", "disabled")
        try:
            self._run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", "orthoopt"),
                id=identity,
                name=name or output.name,
                dir=os.environ.get("WANDB_DIR", str(output)),
                config=dict(config),
                # Offline it is `wandb sync` that appends to the run of this id.
                resume=None if offline else "allow",
            )
        except (wandb.Error, OSError) as error:
            reason = " ".join(str(error).split())
            raise RecipeError(
                f"--report_to wandb: {reason}; `wandb login` and WANDB_MODE=offline, to be synced later, are ways on"
            ) from error
        report.write_json(output / ID, {"id": self._run.id, "project": self._run.project})

    def finish(self, exit_code: int = 0) -> None:
        """Write what is left and close the run."""
        if self._run is not None:
            self._run.finish(exit_code=exit_code)
            self._run = None
