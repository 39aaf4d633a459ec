"""Tensors stored in awkward ways in memory full of not-a-number, and a check that nothing beside them was written."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from spectra import generator
from torch import Tensor

LAYOUTS = ("dense", "transposed", "sliced", "spread", "shifted", "crossed")

UNIT = {torch.float32: 2.0**-24, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
"""Unit roundoff."""

SMALLEST = {torch.float32: 2.0**-149, torch.float16: 2.0**-24, torch.bfloat16: 2.0**-133}

_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


class Stored:
    """Tensors as views of poisoned memory.

    Layouts: "transposed" swaps the last two dimensions in memory; "sliced" is part of a wider one, as a third of fused
    q, k, v is; "spread" takes every other column; "shifted" starts at an odd address; "crossed" has its first two
    dimensions swapped, which do not merge then.
    """

    def __init__(self) -> None:
        self._kept: list[tuple[Tensor, Tensor, Tensor]] = []

    def put(self, values: Tensor, layout: str, dtype: torch.dtype, device: str = "cpu") -> Tensor:
        """The values in this layout and dtype."""
        memory, view = _place(tuple(values.shape), layout, dtype, device)
        view.copy_(values)
        self._kept.append((memory, view, memory.clone()))
        return view

    def empty(self, shape: Sequence[int], layout: str, dtype: torch.dtype, device: str = "cpu") -> Tensor:
        """Not-a-number in this layout."""
        return self.put(torch.full(tuple(shape), math.nan), layout, dtype, device)

    def check(self) -> None:
        """Fail if memory outside the views has changed by a bit."""
        for memory, view, before in self._kept:
            now = memory.clone()
            _like(view, now).copy_(_like(view, before))
            assert torch.equal(bits(now), bits(before))


def _like(view: Tensor, memory: Tensor) -> Tensor:
    return memory.as_strided(view.shape, view.stride(), view.storage_offset())


def _place(shape: tuple[int, ...], layout: str, dtype: torch.dtype, device: str) -> tuple[Tensor, Tensor]:
    def poison(*size: int) -> Tensor:
        return torch.full(size, math.nan, dtype=dtype, device=device)

    if layout == "shifted" or not shape:
        count = math.prod(shape)
        memory = poison(count + 16)
        return memory, memory[1 : 1 + count].view(shape)
    *batch, rows, cols = shape if len(shape) > 1 else (1, *shape)
    if layout == "transposed":
        memory = poison(*batch, cols, rows)
        view = memory.mT
    elif layout == "sliced":
        memory = poison(*batch, rows, cols + 16)
        view = memory[..., 8 : 8 + cols]
    elif layout == "spread":
        memory = poison(*batch, rows + 1, 2 * cols)
        view = memory[..., 1:, ::2]
    elif layout == "crossed" and len(batch) > 1:
        memory = poison(batch[1], batch[0], *batch[2:], rows, cols)
        view = memory.transpose(0, 1)
    else:
        memory = poison(*batch, rows + 1, cols)
        view = memory[..., :-1, :] if not batch else memory[..., 1:, :]
    return memory, view if len(shape) > 1 else view[0]


def bits(tensor: Tensor) -> Tensor:
    """The tensor's bits as integers; not-a-number equals itself there."""
    return tensor.contiguous().view(_BITS[tensor.element_size()])


def noise(shape: Sequence[int], seed: int, scale: float = 1.0) -> Tensor:
    """Gaussian float64 of this scale."""
    return torch.randn(tuple(shape), generator=generator(seed), dtype=torch.float64) * scale


def assert_rounded(actual: Tensor, exact: Tensor, magnitude: Tensor, roundings: int) -> None:
    """Entry by entry: so many roundings in float32 of terms that sum to ``magnitude``, then one to the dtype."""
    inner = 1.01 * roundings * UNIT[torch.float32] * magnitude.double()
    unit = UNIT[actual.dtype] * (2 if actual.dtype == torch.bfloat16 else 1)
    allowed = inner + unit * (exact.abs() + inner) + SMALLEST[actual.dtype]
    worst = (actual.double() - exact).abs().cpu() / allowed.cpu()
    assert worst.numel() == 0 or worst.max() <= 1, f"{float(worst.max()):.3g} times what rounding allows"
