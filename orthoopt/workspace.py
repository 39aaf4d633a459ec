"""Memory that an iteration works in, kept from one call to the next.

A CPU hands out large blocks page by page, each cleared when it is first touched; an iteration that asks anew for what
it gave back a moment ago spends a tenth of its time there. So one block a device and dtype is kept, as large as the
largest need, up to :data:`CAP_BYTES`. Accelerators need none of this: torch's allocators there keep blocks themselves,
and know of streams and of graphs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

CAP_BYTES = 2**28
"""A larger block is given back to the system after the call that needed it."""

_ALIGNMENT = 64  # bytes: a cache line, and what vectors of 512 bits want

_kept: dict[tuple[torch.device, torch.dtype], Tensor] = {}


@contextmanager
def borrow(shapes: Sequence[Sequence[int]], dtype: torch.dtype, device: torch.device) -> Iterator[list[Tensor]]:
    """Contiguous tensors of these shapes, which hold anything, until the end of the ``with`` block and no longer.

    No one else has their memory meanwhile: a second thread gets a block of its own.
    """
    size = elements_needed(shapes, dtype)
    key = (device, dtype)
    block = _kept.pop(key, None)
    if block is None or block.numel() < size:
        block = None  # give back the smaller one first
        with torch.inference_mode(False):  # a tensor made within it could not be written outside
            block = torch.empty(size, dtype=dtype, device=device)
    try:
        yield _carve(block, shapes)
    finally:
        other = _kept.get(key)
        if block.nbytes <= CAP_BYTES and (other is None or other.numel() < block.numel()):
            _kept[key] = block


def elements_needed(shapes: Sequence[Sequence[int]], dtype: torch.dtype) -> int:
    """The size of a block with room for all of these."""
    return sum(_aligned(math.prod(shape), dtype) for shape in shapes)


def kept_bytes() -> int:
    """What is kept at present, in all."""
    return sum(block.nbytes for block in list(_kept.values()))


def release() -> None:
    """Give everything that is kept back to the system."""
    _kept.clear()


def _carve(block: Tensor, shapes: Sequence[Sequence[int]]) -> list[Tensor]:
    pieces = []
    start = 0
    for shape in shapes:
        size = math.prod(shape)
        pieces.append(block.narrow(0, start, size).view(*shape))
        start += _aligned(size, block.dtype)
    return pieces


def _aligned(size: int, dtype: torch.dtype) -> int:
    unit = _ALIGNMENT // dtype.itemsize
    return -(-size // unit) * unit
