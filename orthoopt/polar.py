"""The polar factor U Vᵀ of a batch of matrices, by the method that is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from orthoopt.coefficients import Triple
from orthoopt.newton_schulz import newton_schulz, normalize

Method: TypeAlias = Literal["newton_schulz", "svd"]
METHODS: tuple[Method, ...] = ("newton_schulz", "svd")


@torch.no_grad()
def orthogonalize(
    x: Tensor,
    steps: int = 5,
    coefficients: str | Triple | Sequence[Triple] = "polar_express",
    *,
    method: Method = "newton_schulz",
    dtype: torch.dtype | None = None,
) -> Tensor:
    """The polar factor U Vᵀ of each matrix; the input is never written.

    Args:
        x: ``(..., rows, cols)``, real floating point; leading dimensions are a batch.
        steps: Newton-Schulz iterations, at least 1.
        coefficients: the name of a table (``orthoopt.coefficients.names()``), one triple (a, b, c) used in every
            step, or a sequence of triples of which the last repeats.
        method: ``"newton_schulz"``, to the accuracy of the coefficients, or ``"svd"``, exact to rounding.
        dtype: dtype of the iteration. By default float64 for float64 input, float32 on CPUs, and on CUDA devices
            bfloat16 where the hardware has it. The norm is always taken in float32 or wider.

    Returns:
        A new tensor with the shape and dtype of ``x``. Zero matrices give exact zeros; null directions stay null.

    Raises:
        TypeError: ``x`` is complex or an integer tensor.
        ValueError: fewer than two dimensions, an unknown method or table, or a number of steps the table does not
            allow.
    """
    if not x.is_floating_point():
        raise TypeError(f"orthogonalize needs a real floating point tensor, got dtype {x.dtype}")
    if x.ndim < 2:
        raise ValueError(f"orthogonalize needs (..., rows, cols), got shape {tuple(x.shape)}")
    if method not in METHODS:
        raise ValueError(f"method={method!r} must be one of {', '.join(map(repr, METHODS))}")
    return polar_factor(x, method, steps, coefficients, dtype).to(x.dtype)


def polar_factor(
    x: Tensor,
    method: Method,
    steps: int,
    coefficients: str | Triple | Sequence[Triple],
    dtype: torch.dtype | None = None,
) -> Tensor:
    """:func:`orthogonalize` without its checks; the result keeps the dtype that was computed in."""
    if method == "svd":
        return _by_svd(x)
    return newton_schulz(x, steps, coefficients, dtype)


def nuclear_norm(x: Tensor, factor: Tensor) -> Tensor:
    """``⟨X, U⟩`` of each matrix with its polar factor: the sum of singular values, ``(..., 1, 1)``."""
    return (x * factor).sum((-2, -1), keepdim=True)


def _by_svd(x: Tensor) -> Tensor:
    x = normalize(x)
    u, s, vh = torch.linalg.svd(x, full_matrices=False)
    # Directions that are null to rounding stay null: their singular vectors are arbitrary.
    kept = s > s.amax(-1, keepdim=True) * max(x.shape[-2:]) * torch.finfo(x.dtype).eps
    return (u * kept.unsqueeze(-2)) @ vh
