"""Spectral rule (Muon): the polar factor of the momentum, by Newton-Schulz iteration.

Steepest descent in the spectral norm: the update has the singular vectors of the momentum and singular values near
one. Source: KellerJordan/Muon; the default scale and weight decay follow Moonlight (arXiv 2502.16982). Rows may be
brought to equal size over time besides (NorMuon, arXiv 2510.05491, algorithm 1).
"""

import math
from typing import Literal

import torch
from torch import Tensor

from orthoopt.coefficients import resolve_coefficients
from orthoopt.newton_schulz import NS_DTYPES, bytes_needed, newton_schulz, signal_dtype
from orthoopt.rules._base import Equivariance, Options, State, register
from orthoopt.rules._momentum import momentum_rule
from orthoopt.rules._rows import DAMPING


def spectral_advance(
    momentum: Tensor,
    state: State,
    *,
    ns_steps: int = 5,
    ns_coefficients: str | tuple[float, float, float] | tuple[tuple[float, float, float], ...] = "muon",
    ns_dtype: Literal["auto", "float32", "float64", "bfloat16", "float16"] = "auto",
    second_moment: Literal["none", "rows"] = "none",
    beta2: float = 0.95,
) -> tuple[Tensor, State]:
    """Polar factor of the momentum (Muon).

    Args:
        momentum: ``(..., rows, cols)``, leading dimensions a batch.
        state: with ``second_moment="rows"`` the ``row_exp_avg_sq`` of the matrices, ``(..., rows, 1)``.
        ns_steps: Newton-Schulz iterations.
        ns_coefficients: a table of :mod:`orthoopt.coefficients`, one (a, b, c), or several.
        ns_dtype: dtype of the iteration; ``auto`` chooses by device.
        second_moment: ``rows``: divide each row by the root of its running mean square, and keep the Frobenius norm
            of the whole (NorMuon).
        beta2: decay of that mean square.

    Returns:
        The update, ``(..., rows, cols)``, in the dtype of the iteration, and the new state.
    """
    update = newton_schulz(momentum, ns_steps, ns_coefficients, NS_DTYPES[ns_dtype])
    if second_moment == "none":
        return update, {}
    update = update.to(momentum.dtype)
    squares = state["row_exp_avg_sq"].lerp(update.square().mean(-1, keepdim=True), 1 - beta2)
    # Both norms are per matrix, so the bias of the running mean cancels. The damping is relative: the published eps
    # would be an absolute one.
    root = squares.sqrt() + DAMPING * squares.mean(-2, keepdim=True).sqrt()
    scaled = update / root.where(root > 0, 1)
    length = scaled.norm(dim=(-2, -1), keepdim=True)
    scaled = scaled * (update.norm(dim=(-2, -1), keepdim=True) / length.where(length > 0, 1))
    return scaled, {"row_exp_avg_sq": squares}


def _init_matrix(matrix: Tensor, options: Options) -> State:
    if options["second_moment"] == "none":
        return {}
    return {"row_exp_avg_sq": matrix.new_zeros((*matrix.shape[:-1], 1))}


def _signal_dtype(options: Options, rows: int, cols: int, device: torch.device) -> torch.dtype | None:
    if options["second_moment"] != "none":
        return None
    return signal_dtype(
        rows, cols, options["ns_steps"], options["ns_coefficients"], NS_DTYPES[options["ns_dtype"]], device
    )


def _workspace(batch: int, rows: int, cols: int, options: Options, dtype: torch.dtype, device: torch.device) -> int:
    coefficients, steps = options["ns_coefficients"], options["ns_steps"]
    needed = bytes_needed(batch, rows, cols, steps, coefficients, NS_DTYPES[options["ns_dtype"]], dtype, device)
    return needed + (0 if options["second_moment"] == "none" else 2 * batch * rows * cols * dtype.itemsize)


def _rms(rows: int, cols: int, options: Options) -> float:
    return 1 / math.sqrt(max(rows, cols))


def _check(options: Options) -> None:
    resolve_coefficients(options["ns_coefficients"], options["ns_steps"])
    if not 0 <= options["beta2"] < 1:
        raise ValueError(f"beta2 must be at least 0 and below 1, got {options['beta2']!r}")


def _equivariance(options: Options, rows: int, cols: int) -> Equivariance:
    aol = options["ns_coefficients"] == "aol4"
    if aol:
        # Rescaling rows by sums of magnitudes of the Gram matrix is tied to the coordinates of the shorter side.
        return Equivariance("signed_permutation", "signed_permutation")
    if options["second_moment"] == "rows":
        return Equivariance("signed_permutation", "orthogonal", breaks=(("left", "orthogonal"),))
    return Equivariance("orthogonal", "orthogonal")


spectral = register(
    momentum_rule(
        "spectral",
        spectral_advance,
        rms=_rms,
        equivariance=_equivariance,
        transposable=lambda options: options["second_moment"] == "none",
        init_matrix=_init_matrix,
        signal_dtype=_signal_dtype,
        workspace=_workspace,
        check=_check,
    )
)
