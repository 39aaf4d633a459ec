"""The polar factor U Vᵀ of a batch of matrices, by the method that is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from orthoopt.coefficients import Triple, names, resolve_coefficients
from orthoopt.gram_newton_schulz import gram_newton_schulz
from orthoopt.iteration_form import check_dtype
from orthoopt.newton_schulz import newton_schulz, normalize
from orthoopt.qdwh import qdwh, working_dtype

Method: TypeAlias = Literal["newton_schulz", "gram", "polar_express", "qdwh", "svd", "auto"]
METHODS: tuple[Method, ...] = ("newton_schulz", "gram", "polar_express", "qdwh", "svd", "auto")

AUTO_SIDE = 512
"""Up to this shorter side ``"auto"`` is exact on CPUs: from a side of 128 an SVD costs about what eight steps do, and
below that little (bench/results/orthogonalize_methods_cpu.json). On an accelerator an SVD waits for the host."""

_POLAR_EXPRESS_TABLES = tuple(name for name in names() if name.startswith("polar_express"))


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
        steps: iterations of ``newton_schulz``, ``gram`` and ``polar_express``, at least 1.
        coefficients: the name of a table (``orthoopt.coefficients.names()``), one triple (a, b, c) used in every
            step, or a sequence of triples of which the last repeats; ``polar_express`` takes its own tables alone, and
            ``qdwh`` and ``svd`` need none.
        method: singular values σ of the result, for those of the input relative to ‖X‖_F:

            - ``"newton_schulz"``: as the coefficients say (:mod:`orthoopt.coefficients`), computed in the form that is
              cheapest for the shape (:mod:`orthoopt.iteration_form`).
            - ``"gram"``: the same map, in Gram form whatever the shape; not in bfloat16.
            - ``"polar_express"``: 0.847 to 1.141 above 1e-3 in five steps, within 2e-3 of one in eight or more;
              float32 or wider unless ``dtype`` says otherwise.
            - ``"qdwh"``: one to rounding above :func:`orthoopt.qdwh.null_tolerance`, zero below; ``steps`` has no
              effect.
            - ``"svd"``: the same with a higher bound, :func:`rank_tolerance`; the reference.
            - ``"auto"``: ``"svd"`` on CPUs up to a shorter side of :data:`AUTO_SIDE`, else ``"polar_express"``.
        dtype: dtype of the computation. By default float64 for float64 input, float32 on CPUs, and on CUDA devices
            for ``newton_schulz`` bfloat16 where the hardware has it, for ``gram`` float16 where the table is safe in
            it; ``qdwh`` and ``svd`` promote to float32 at least. The norm is always taken in float32 or wider.

    Returns:
        A new tensor with the shape and dtype of ``x``. Zero matrices give exact zeros; null directions stay null.

    Raises:
        TypeError: ``x`` is complex or an integer tensor.
        ValueError: fewer than two dimensions, an unknown method or table, coefficients or a dtype the method does not
            take, or a number of steps the table does not allow.
    """
    if not x.is_floating_point():
        raise TypeError(f"orthogonalize needs a real floating point tensor, got dtype {x.dtype}")
    if x.ndim < 2:
        raise ValueError(f"orthogonalize needs (..., rows, cols), got shape {tuple(x.shape)}")
    check_method(method, steps, coefficients, dtype)
    return polar_factor(x, method, steps, coefficients, dtype).to(x.dtype)


def check_method(
    method: str, steps: int, coefficients: str | Triple | Sequence[Triple], dtype: torch.dtype | None = None
) -> None:
    """Raise ValueError, naming the method and its options, unless these may stand together."""
    if method not in METHODS:
        raise ValueError(f"method={method!r} must be one of {', '.join(map(repr, METHODS))}")
    if method in ("qdwh", "svd"):
        return
    if method in ("polar_express", "auto") and coefficients not in _POLAR_EXPRESS_TABLES:
        raise ValueError(
            f"method={method!r} takes the coefficients {', '.join(map(repr, _POLAR_EXPRESS_TABLES))}, "
            f"got {coefficients!r}; others are for method='newton_schulz' or 'gram'"
        )
    table = resolve_coefficients(coefficients, steps)
    if method == "gram":
        check_dtype(table, coefficients, dtype)


def polar_factor(
    x: Tensor,
    method: Method,
    steps: int,
    coefficients: str | Triple | Sequence[Triple],
    dtype: torch.dtype | None = None,
) -> Tensor:
    """:func:`orthogonalize` without its checks; the result keeps the dtype that was computed in."""
    if method == "auto":
        method = "svd" if x.device.type == "cpu" and min(x.shape[-2:]) <= AUTO_SIDE else "polar_express"
    if method == "svd":
        return _by_svd(x, dtype)
    if method == "qdwh":
        return qdwh(x, dtype)
    if method == "gram":
        return gram_newton_schulz(x, steps, coefficients, dtype)
    if method == "polar_express" and dtype is None:
        dtype = working_dtype(x, None)
    return newton_schulz(x, steps, coefficients, dtype)


def nuclear_norm(x: Tensor, factor: Tensor) -> Tensor:
    """``⟨X, U⟩`` of each matrix with its polar factor: the sum of singular values, ``(..., 1, 1)``."""
    return (x * factor).sum((-2, -1), keepdim=True)


def rank_tolerance(x: Tensor) -> float:
    """Relative to ‖X‖_F, the singular values that ``svd`` takes for rounding, in the dtype of ``x``."""
    return (16 + max(x.shape[-2:])) * torch.finfo(x.dtype).eps


def _by_svd(x: Tensor, dtype: torch.dtype | None) -> Tensor:
    tall = x.shape[-2] > x.shape[-1]
    x = normalize((x.mT if tall else x).to(working_dtype(x, dtype)))
    lost: Tensor | None = None
    try:
        u, s, vh = torch.linalg.svd(x, full_matrices=False)
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]  # torch does not list it among its exports
        # LAPACK gives up on all of a batch where one matrix is not finite. Nothing else does: what is lost is NaN.
        lost = ~torch.isfinite(x).all(-1, keepdim=True).all(-2, keepdim=True)
        if not lost.any():
            raise
        u, s, vh = torch.linalg.svd(x.masked_fill(lost, 0), full_matrices=False)
    # Directions that are null to rounding stay null: their singular vectors are arbitrary. ‖X‖_F is one here, and
    # LAPACK leaves up to a quarter of max(rows, cols)·eps in them (a matrix of ones).
    kept = s > rank_tolerance(x)
    factor = (u * kept.unsqueeze(-2)) @ vh
    if lost is not None:
        factor = factor.masked_fill(lost, torch.nan)
    return factor.mT if tall else factor
