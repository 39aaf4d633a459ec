"""Rounding to bfloat16 whose expectation is the number itself, from noise that is a function of where and when.

A bfloat16 has the upper 16 bits of a float32. With r uniform on 0 ... 65535 added to the whole before the lower bits
are cut off, x goes to its neighbour away from zero with probability (lower bits)/65536: the expectation is x exactly,
so that small changes add up where rounding to nearest would lose every one (arXiv 1502.02551; arXiv 2010.06192 for
weights in bfloat16).

The noise is a hash of an element's place in the whole tensor and of the tensor's position in its own stream, which
lies in its state and moves by one a step. So nothing is drawn from torch's generators, a resumed run goes on with the
noise it would have had, replicas agree to the bit, and a shard gets the noise of its part of the whole.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import torch
from torch import Tensor

# The finalizer "lowbias32" of C. Wellons' hash prospector (public domain): every bit of the input flips every bit of
# the output with a probability within 0.2% of a half.
_SHIFTS = (16, 15, 16)
_FACTORS = (0x7FEB352D, 0x846CA68B - 2**32)  # as int32
_ODD = 0x9E3779B9 - 2**32
_LOW = 2**32 - 1


def first_position(name: str, device: torch.device) -> Tensor:
    """Where the stream of a parameter begins: int64, 0-d; far from that of every other name."""
    low, high = zlib.crc32(name.encode()), zlib.adler32(name.encode()[::-1])
    # Below 2⁶², so that no run is long enough to wrap it; 2³⁰ steps apart at least in what the CRC tells apart.
    return torch.tensor((low << 30) ^ (high & (2**30 - 1)), dtype=torch.int64, device=device)


def to_bfloat16(
    x: Tensor, position: Tensor, salt: str, offset: Sequence[int] = (), whole: Sequence[int] = ()
) -> Tensor:
    """``x`` in bfloat16, rounded up or down at random with expectation ``x``.

    Args:
        x: any shape, float32 (others are brought to it first); only read. Infinities and NaNs stay what they are;
            beyond the largest bfloat16 there is infinity alone, as everywhere.
        position: int64, 0-d, on ``x``'s device: where the tensor's stream is.
        salt: which of the tensors at this position this is.
        offset: of ``x`` in the tensor it is part of; nothing for the whole.
        whole: that tensor's shape.

    Returns:
        bfloat16, of ``x``'s shape.
    """
    x = x.to(torch.float32)
    bits = x.view(torch.int32)
    rounded = ((bits + noise(x.shape, position, salt, offset, whole)) & -0x10000).view(torch.float32)
    return torch.where(torch.isfinite(x), rounded, x).to(torch.bfloat16)


def noise(
    shape: Sequence[int], position: Tensor, salt: str, offset: Sequence[int] = (), whole: Sequence[int] = ()
) -> Tensor:
    """Numbers from 0 to 65535, int32, for a part of a tensor; see :func:`to_bfloat16`."""
    device = position.device
    low, high = _wrapped(position), _wrapped(position >> 32)
    first = _mixed(_mixed(low + _signed(zlib.crc32(salt.encode()))) ^ high)
    second = _mixed(first + _ODD)
    places = _places(tuple(shape), tuple(offset) or (0,) * len(shape), tuple(whole) or tuple(shape), device)
    return (_mixed(_mixed(places ^ first) + second) >> 16) & 0xFFFF


def _places(shape: tuple[int, ...], offset: tuple[int, ...], whole: tuple[int, ...], device: torch.device) -> Tensor:
    """The place of every element in the whole tensor, counted row by row, modulo 2³² as int32."""
    places = torch.zeros((), dtype=torch.int32, device=device)
    stride = 1
    for size, start, extent in reversed(list(zip(shape, offset, whole, strict=True))):
        line = _wrapped(torch.arange(start, start + size, device=device, dtype=torch.int64) * stride)
        places = places + line.reshape(-1, *[1] * max(places.ndim, 0))
        stride *= extent
    return places.reshape(shape)


def _mixed(x: Tensor) -> Tensor:
    """A bijection of int32 that leaves no pattern."""
    x = x ^ ((x >> _SHIFTS[0]) & ((1 << 32 - _SHIFTS[0]) - 1))
    for factor, shift in zip(_FACTORS, _SHIFTS[1:], strict=True):
        x = x * factor
        x = x ^ ((x >> shift) & ((1 << 32 - shift) - 1))
    return x


def _wrapped(x: Tensor) -> Tensor:
    """The lower half of int64, as int32."""
    return ((x << 32) >> 32).to(torch.int32)


def _signed(number: int) -> int:
    return (number & _LOW) - 2**32 if number & 2**31 else number & _LOW
