"""Norms with their duals, and what they are made of: references for the balls of Scion."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor


def polar(x: Tensor) -> Tensor:
    u, _, vh = torch.linalg.svd(x, full_matrices=False)
    return u @ vh


def lengths(x: Tensor, dim: int) -> Tensor:
    return x.square().sum(dim, keepdim=True).sqrt()


def dual_pairs(rows: int, cols: int) -> dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]]:
    """Norm -> the norm whose unit ball it is, and its dual norm."""
    return {
        "spectral": (
            lambda w: math.sqrt(cols / rows) * torch.linalg.matrix_norm(w, 2),
            lambda d: math.sqrt(rows / cols) * torch.linalg.matrix_norm(d, "nuc"),
        ),
        "sign": (lambda w: cols * w.abs().max(), lambda d: d.abs().sum() / cols),
        "col_norm": (lambda w: lengths(w, 0).max() / math.sqrt(rows), lambda d: lengths(d, 0).sum() * math.sqrt(rows)),
        "row_norm": (lambda w: lengths(w, 1).max() * math.sqrt(cols), lambda d: lengths(d, 1).sum() / math.sqrt(cols)),
    }


NORMS = ("spectral", "sign", "col_norm", "row_norm")
