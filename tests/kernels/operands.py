"""Matrices in awkward layouts, outputs in poisoned memory, and bounds on what rounding may do."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from spectra import generator
from torch import Tensor

LAYOUTS = ("contiguous", "transposed", "sliced", "expanded", "permuted")
OUT_LAYOUTS = ("padded", "transposed", "strided", "permuted")

UNIT = {torch.float32: 2.0**-24, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8, torch.float64: 2.0**-53}
"""Unit roundoff."""


def laid_out(shape: tuple[int, ...], layout: str, dtype: torch.dtype, seed: int) -> Tensor:
    """Gaussian ``(..., rows, cols)``; "permuted" has batch dimensions that do not merge into one."""
    *batch, rows, cols = shape
    source = generator(seed)
    if layout == "transposed":
        return torch.randn(*batch, cols, rows, generator=source).to(dtype).mT
    if layout == "sliced":
        return torch.randn(*batch, rows + 3, 2 * cols, generator=source).to(dtype)[..., 1:-2, ::2]
    if layout == "expanded" and batch:
        return torch.randn(rows, cols, generator=source).to(dtype).expand(shape)
    if layout == "permuted" and batch:
        return torch.randn(*reversed(batch), rows, cols, generator=source).to(dtype).permute(*_reversed(batch))
    return torch.randn(*shape, generator=source).to(dtype)


def poisoned(shape: tuple[int, ...], layout: str, dtype: torch.dtype) -> tuple[Tensor, Callable[[], None]]:
    """An output full of not-a-number inside memory full of it, and a check that all of it alone was written."""
    *batch, rows, cols = shape
    if layout == "transposed":
        memory = torch.full((*batch, cols + 2, rows + 5), math.nan, dtype=dtype)
        view = memory[..., 1:-1, 2:-3].mT
    elif layout == "strided":
        memory = torch.full((*batch, 2 * rows + 1, 3 * cols), math.nan, dtype=dtype)
        view = memory[..., 1::2, ::3]
    elif layout == "permuted":
        memory = torch.full((*reversed(batch), rows + 2, cols + 3), math.nan, dtype=dtype)
        view = memory.permute(*_reversed(batch))[..., 1:-1, :-3]
    else:
        memory = torch.full((*batch, rows + 2, cols + 3), math.nan, dtype=dtype)
        view = memory[..., 1:-1, 1:-2]
    assert view.shape == shape

    def check() -> None:
        assert not view.isnan().any()
        assert int((~memory.isnan()).sum()) == view.numel()

    return view, check


def _reversed(batch: list[int]) -> tuple[int, ...]:
    return (*range(len(batch) - 1, -1, -1), len(batch), len(batch) + 1)


def assert_product(
    result: Tensor, left: Tensor, right: Tensor, addend: Tensor | None, alpha: Tensor, beta: Tensor, rough: float = 1.0
) -> None:
    """``result = alpha·L R + beta·C`` entry by entry, up to what float32 sums and one rounding of the result allow.

    A sum of k products in any order is off by at most k roundings of the sum of magnitudes (Higham, Accuracy and
    Stability of Numerical Algorithms, 3.1); six more for scalars, their products and the last addition. Where numbers
    are subnormal a product is off by the smallest of them as well (2.2, there), whether it is that of two entries or
    that of one with alpha, which then meets the other factor.

    Args:
        result: what is judged.
        left: ``(..., rows, inner)``.
        right: ``(..., inner, cols)``.
        addend: None for none.
        alpha: broadcasts over matrices.
        beta: likewise.
        rough: the last rounding in unit roundoffs: 2 where a store truncates.
    """
    left, right, alpha, beta = (
        left.double(),
        right.double(),
        alpha.double()[..., None, None],
        beta.double()[..., None, None],
    )
    exact = alpha * (left @ right)
    magnitude = alpha.abs() * (left.abs() @ right.abs())
    if addend is not None:
        exact = exact + beta * addend.double()
        magnitude = magnitude + beta.abs() * addend.double().abs()
    inner = (left.shape[-1] + 6) * 1.01 * UNIT[torch.float32]
    smallest = {torch.float16: 2.0**-24, torch.bfloat16: 2.0**-133}.get(result.dtype, 2.0**-149)
    sums = left.abs().sum(-1, keepdim=True) + right.abs().sum(-2, keepdim=True) + left.shape[-1]
    allowed = inner * magnitude + rough * UNIT[result.dtype] * (exact.abs() + inner * magnitude)
    allowed = allowed + smallest + sums * 2.0**-149
    worst = ((result.double() - exact).abs() / allowed).max()
    assert worst <= 1, f"{float(worst):.3g} times what rounding allows"
