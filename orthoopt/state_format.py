"""The form in which state lies, by number."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

STATE_FORMAT = 1
"""The form of the state that this version writes, kept in every group as ``state_format``.

A group is the one place that ``torch.distributed.checkpoint``, flattened or not, carries along. A change of what a
state key means or of its shape raises it; new options with defaults do not.
"""


def check_format(groups: Iterable[Mapping[str, Any]]) -> None:
    """Raise ValueError if a group was written in a later form than :data:`STATE_FORMAT`."""
    for group in groups:
        saved = group.get("state_format", STATE_FORMAT)
        if not isinstance(saved, int) or saved > STATE_FORMAT:
            raise ValueError(
                f"this state has state_format={saved!r}, this version of orthoopt reads up to {STATE_FORMAT}: load it "
                "with the version that wrote it, or a later one; nothing was loaded"
            )
