"""Singular values: what the tests of polar factors measure, and matrices that have given ones."""

from __future__ import annotations

import math

import torch
from strategies import matrix
from torch import Tensor


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
