"""The one error a recipe raises for something the user typed, and how it suggests the name that was meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class RecipeError(ValueError):
    """A wrong option, config or corpus; `orthoopt pretrain` prints it in one line and exits with status 2."""


class TrainingStopped(RuntimeError):
    """Training went wrong and was ended; `orthoopt pretrain` prints it in one line and exits with status 1."""


def nearest(name: str, known: Iterable[str], likeness: float = 0.5) -> str:
    """Return `; did you mean X?` for the known name closest to `name`, or an empty string; likeness is from 0 to 1."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=likeness)
    return f"; did you mean {close[0]!r}?" if close else ""
