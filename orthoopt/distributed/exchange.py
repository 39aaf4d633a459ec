"""One all-to-all for many tensors of any shapes and dtypes.

A *route* says which parcels go from every rank to every other, in an order both sides know; it stays the same from step
to step. A *mail* is one exchange along it: parcels are written where the buffer wants them, and read where they arrive.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

_ALIGNMENT = 8
"""Bytes: every parcel begins at a multiple of this, so that it can be seen in any dtype."""


class Parcel(NamedTuple):
    """One tensor on its way from one rank to another."""

    sender: int
    receiver: int
    """Places in the ring."""
    key: Hashable
    """What both sides know it by."""
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def bytes(self) -> int:
        """Its room in the buffer."""
        size = math.prod(self.shape) * self.dtype.itemsize
        return -(-size // _ALIGNMENT) * _ALIGNMENT


class _Side(NamedTuple):
    """What one rank sends, or receives: bytes by peer, and where each parcel lies."""

    splits: list[int]
    places: dict[tuple[int, Hashable], tuple[int, Parcel]]

    @property
    def total(self) -> int:
        return sum(self.splits)


class Route:
    """What a rank sends and receives in one exchange of its ring.

    Args:
        parcels: those that this rank sends or receives, in an order that all ranks share; none to itself.
        place: this rank's in the ring.
        count: ranks in the ring.
        is_empty: whether no rank at all has anything to send.
    """

    def __init__(self, parcels: Iterable[Parcel], place: int, count: int, is_empty: bool) -> None:
        parcels = list(parcels)
        self.is_empty = is_empty
        self.out = _side([(parcel.receiver, parcel) for parcel in parcels if parcel.sender == place], count)
        self.into = _side([(parcel.sender, parcel) for parcel in parcels if parcel.receiver == place], count)


def _side(parcels: list[tuple[int, Parcel]], count: int) -> _Side:
    splits, places, offset = [0] * count, {}, 0
    for peer, parcel in sorted(parcels, key=lambda pair: pair[0]):
        places[peer, parcel.key] = (offset, parcel)
        offset += parcel.bytes
        splits[peer] += parcel.bytes
    return _Side(splits, places)


class Mail:
    """One exchange along a route; every rank of the ring makes it, in the same order among its exchanges."""

    def __init__(self, route: Route, group: Any, device: torch.device) -> None:
        self._route, self._group = route, group
        # Zeros: parcels do not fill the rounding of their bytes.
        self._out = torch.zeros(route.out.total, dtype=torch.uint8, device=device)
        self._into = torch.empty(route.into.total, dtype=torch.uint8, device=device)
        self._work: Any = None

    def outgoing(self, receiver: int, key: Hashable) -> Tensor:
        """Where the parcel is to be written, before :meth:`start`."""
        return _see(self._out, *self._route.out.places[receiver, key])

    def incoming(self, sender: int, key: Hashable) -> Tensor:
        """The parcel that has arrived, after :meth:`wait`."""
        return _see(self._into, *self._route.into.places[sender, key])

    def start(self) -> None:
        """Send; returns at once."""
        if not self._route.is_empty:
            self._work = dist.all_to_all_single(
                self._into, self._out, self._route.into.splits, self._route.out.splits, self._group, async_op=True
            )

    def wait(self) -> None:
        """Until what others sent can be read: the host waits on a CPU, the stream elsewhere."""
        if self._work is not None:
            self._work.wait()
            self._work = None
        self._out = self._out.new_empty(0)


def _see(buffer: Tensor, offset: int, parcel: Parcel) -> Tensor:
    size = math.prod(parcel.shape) * parcel.dtype.itemsize
    return buffer[offset : offset + size].view(parcel.dtype).view(parcel.shape)
