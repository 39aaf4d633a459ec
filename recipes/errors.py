"""The errors that end a recipe, what they come to on a command line, and how they suggest the name that was meant."""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Callable, Iterable


class RecipeError(ValueError):
    """A wrong option, config or corpus; `orthoopt pretrain` prints it in one line and exits with status 2."""


class TrainingStopped(RuntimeError):
    """Training went wrong and was ended; `orthoopt pretrain` prints it in one line and exits with status 1."""


def exit_status(command: str, run: Callable[[], object]) -> int:
    """Run a command; 0, 1 if training was stopped, 2 for what the user can mend, 130 if interrupted."""
    try:
        run()
    except RecipeError as error:
        _say(f"{command}: error: {error}")
        return 2
    except TrainingStopped as error:
        _say(f"{command}: stopped: {error}")
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _say(line: str) -> None:
    if os.environ.get("RANK", "0") == "0":  # torchrun's other processes have the same to say
        print(line, file=sys.stderr)


def nearest(name: str, known: Iterable[str], likeness: float = 0.5) -> str:
    """Return `; did you mean X?` for the known name closest to `name`, or an empty string; likeness is from 0 to 1."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=likeness)
    return f"; did you mean {close[0]!r}?" if close else ""
