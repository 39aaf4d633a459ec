"""What MkDocs does beside building: pages are laid out first, and the navigation leaves out what is not there yet."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from pages import assemble
from reference import reference


def on_config(config: Any) -> Any:
    """Build from `build/docs`, beside the site, instead of docs/ itself."""
    out = Path(config["site_dir"]).parent / "build" / "docs"
    assemble(out, reference)
    config["docs_dir"] = str(out)
    config["nav"] = [entry for entry in map(lambda entry: _existing(entry, out), config["nav"]) if entry]
    return config


def _existing(entry: Any, out: Path) -> Any:
    """`entry` of the navigation without pages that there are none of; None if nothing is left."""
    if isinstance(entry, str):
        return entry if (out / entry).exists() else None
    ((title, content),) = entry.items()
    if isinstance(content, str):
        return entry if (out / content).exists() else None
    kept = [item for item in (_existing(item, out) for item in content) if item]
    return {title: kept} if kept else None
