"""What to say about a word that is not among the known ones."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any


def near(word: Any, known: Iterable[str]) -> str:
    """``; did you mean 'X'?`` for the known word nearest to this one; a full stop where none is near."""
    close = difflib.get_close_matches(str(word), list(known), 1)
    return f"; did you mean {close[0]!r}?" if close else "."
