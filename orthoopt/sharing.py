"""Whether ranks with the same parameters may share the work of a step; how is in :mod:`orthoopt.distributed`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch.distributed as dist

from orthoopt.spelling import near

if TYPE_CHECKING:
    from orthoopt.distributed.engine import Engine

SHARES = ("auto", "off")


def check_share(share: Any, where: str = "") -> None:
    """Raise ValueError unless ``share`` is one of :data:`SHARES`."""
    if share not in SHARES:
        place, hint = f" ({where})" if where else "", near(share, SHARES).removesuffix(".")
        raise ValueError(f"share={share!r}{place} must be one of {', '.join(map(repr, SHARES))}{hint}")


def is_one_of_many() -> bool:
    """Whether this process has others to think of."""
    return dist.is_available() and dist.is_initialized()


def new_engine() -> Engine:
    """What an optimizer needs among many processes; imports what one process does without."""
    from orthoopt.distributed.engine import Engine

    return Engine()
