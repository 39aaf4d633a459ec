"""Where a bench's results go, and how they are written: strict JSON, all at once."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

DEFAULT_FOLDER = Path("bench") / "results"


def results_folder(given: str | None) -> Path:
    """``--out`` if given, else ``$OUT`` if set, else bench/results here; created."""
    folder = Path(given or os.environ.get("OUT") or DEFAULT_FOLDER)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def write_json(path: Path, value: Any) -> Path:
    """Write plain data; NaN and infinities become null. A reader never sees half a file."""
    building = path.with_name(f".{path.name}.{os.getpid()}")
    building.write_text(json.dumps(strict(value), indent=2, allow_nan=False) + "\n", encoding="utf-8")
    building.replace(path)
    return path


def strict(value: Any) -> Any:
    """The value with what JSON has no number for as None."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(key): strict(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [strict(item) for item in value]
    return value
