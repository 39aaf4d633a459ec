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
    rounded = noise(x.shape, position, salt, offset, whole).add_(x.view(torch.int32)).bitwise_and_(-0x10000)
    # An infinity's lower bits are zeros, so that nothing carries; those of a NaN may be anything.
    return torch.where(x == x, rounded.view(torch.float32), x).to(torch.bfloat16)


def noise(
    shape: Sequence[int], position: Tensor, salt: str, offset: Sequence[int] = (), whole: Sequence[int] = ()
) -> Tensor:
    """Numbers from 0 to 65535, int32, for a part of a tensor; see :func:`to_bfloat16`."""
    low, high = _wrapped(position), _wrapped(position >> 32)
    first = _mix_(_mix_(low + _signed(zlib.crc32(salt.encode()))) ^ high)
    second = _mix_(first + _ODD)
    places = _places(tuple(shape), tuple(offset) or (0,) * len(shape), tuple(whole) or tuple(shape), position.device)
    # Both keys, by operations that do not commute: the noise of one step is no rearrangement of another's.
    mixed = _mix_(places.bitwise_xor_(first).add_(second))
    return mixed.bitwise_right_shift_(16).bitwise_and_(0xFFFF)


def _places(shape: tuple[int, ...], offset: tuple[int, ...], whole: tuple[int, ...], device: torch.device) -> Tensor:
    """The place of every element in the whole tensor, counted row by row, modulo 2³² as int32."""
    places = torch.zeros((), dtype=torch.int32, device=device)
    stride = 1
    for size, start, extent in reversed(list(zip(shape, offset, whole, strict=True))):
        line = _wrapped(torch.arange(start, start + size, device=device, dtype=torch.int64) * stride)
        places = places + line.reshape(-1, *[1] * places.ndim)
        stride *= extent
    return places.reshape(shape)


def _mix_(x: Tensor) -> Tensor:
    """A bijection of int32 that leaves no pattern; in place, for memory is what this costs."""
    shifted = torch.empty_like(x)
    for shift, factor in zip(_SHIFTS, (*_FACTORS, 1), strict=True):
        torch.bitwise_right_shift(x, shift, out=shifted)
        x.bitwise_xor_(shifted.bitwise_and_((1 << 32 - shift) - 1))  # the shift of int32 drags the sign along
        if factor != 1:
            x.mul_(factor)
    return x


def _wrapped(x: Tensor) -> Tensor:
    """The lower half of int64, as int32."""
    return ((x << 32) >> 32).to(torch.int32)


def _signed(number: int) -> int:
    return (number & _LOW) - 2**32 if number & 2**31 else number & _LOW
