"""Singular values: what the tests of polar factors measure, and matrices that have given ones."""

from __future__ import annotations

import math

import torch
from torch import Tensor

SPECTRA = ("gaussian", "even", "log", "rank_one", "half_zero", "outlier")


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def matrix(rows: int, cols: int, spectrum: str, seed: int, batch: tuple[int, ...] = ()) -> Tensor:
    """A float64 matrix, or a batch of them, with singular values as the name says, the largest near one."""
    source = generator(seed)
    gaussian = torch.randn(*batch, rows, cols, generator=source, dtype=torch.float64)
    if spectrum == "gaussian":
        return gaussian
    u, s, vh = torch.linalg.svd(gaussian, full_matrices=False)
    count = s.shape[-1]
    if spectrum == "even":
        s = torch.linspace(1, 0.5, count, dtype=torch.float64)
    elif spectrum == "log":
        s = torch.logspace(0, -4, count, dtype=torch.float64)
    elif spectrum == "rank_one":
        s = torch.zeros(count, dtype=torch.float64)
        s[0] = 1
    elif spectrum == "half_zero":
        s = torch.ones(count, dtype=torch.float64)
        s[(count + 1) // 2 :] = 0
    result = (u * s.unsqueeze(-2)) @ vh
    if spectrum == "outlier":
        result[..., 0, 0] = 1e3
    return result


def eps(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).eps


def spectrum(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The SVD in float64, singular values relative to the Frobenius norm."""
    u, s, vh = torch.linalg.svd(x.double(), full_matrices=False)
    return u, s / s.norm(dim=-1, keepdim=True), vh


def kept_error(x: Tensor, result: Tensor, above: float) -> float:
    """The largest ‖Uᵀ·result·V − 1‖₂ over the directions of x whose relative singular value is above a bound."""
    u, s, vh = spectrum(x)
    kept = (s > above).double()
    core = (u.mT @ result.double() @ vh.mT) * kept.unsqueeze(-1) * kept.unsqueeze(-2)
    return float(torch.linalg.matrix_norm(core - torch.diag_embed(kept), 2).max())


def with_condition(rows: int, cols: int, condition: float, seed: int) -> Tensor:
    """A float64 matrix of full rank whose singular values fall geometrically from 1 to 1/condition."""
    u, s, vh = torch.linalg.svd(matrix(rows, cols, "gaussian", seed), full_matrices=False)
    return (u * torch.logspace(0, -math.log10(condition), s.numel(), dtype=torch.float64)) @ vh


def momentum_like(rows: int, cols: int, seed: int) -> Tensor:
    """A few large singular values and a tail of 1e-1 to 3e-4."""
    u, s, vh = torch.linalg.svd(matrix(rows, cols, "gaussian", seed), full_matrices=False)
    s = torch.logspace(-1, -3.5, s.numel(), dtype=torch.float64)
    s[: max(1, s.numel() // 4)] = 1
    return (u * s) @ vh
