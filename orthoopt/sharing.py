"""Where one process becomes one of many; what they share of a step is in :mod:`orthoopt.distributed`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch.distributed as dist

if TYPE_CHECKING:
    from orthoopt.distributed.engine import Engine


def is_one_of_many() -> bool:
    """Whether this process has others to think of."""
    return dist.is_available() and dist.is_initialized()


def new_engine() -> Engine:
    """What an optimizer needs among many processes; imports what one process does without."""
    from orthoopt.distributed.engine import Engine

    return Engine()
