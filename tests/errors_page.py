"""The list of errors in docs/errors.md, and whether an error is on it."""

from __future__ import annotations

import builtins
import re
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "errors.md"
_ROW = re.compile(r"^\| `(\w+)` \| `(.+?)` \| .+ \|$", re.M)

LISTED: list[tuple[type[BaseException], str]] = [
    (getattr(builtins, name), text) for name, text in _ROW.findall(PAGE.read_text())
]


def is_listed(error: BaseException) -> bool:
    return any(type(error) is kind and text in str(error) for kind, text in LISTED)
