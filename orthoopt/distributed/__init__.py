"""Many processes: matrices are gathered to owners, computed once, and their updates sent back; see docs/distributed.md.

The modules are imported at the first step of a program that has initialised ``torch.distributed``, never before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from orthoopt.distributed.traffic import Traffic as Traffic
    from orthoopt.distributed.traffic import bytes_per_step as bytes_per_step

__all__ = ["Traffic", "bytes_per_step"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from orthoopt.distributed import traffic

    return getattr(traffic, name)
