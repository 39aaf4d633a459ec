"""Steps of linear-time rules in Triton: momentum, direction and update of many parameters in a few launches.

What they compute is defined by :mod:`orthoopt.rules.row_norm` (rows, not centred) and :mod:`orthoopt.rules.auon`. A
scalar of the whole matrix stands between the momentum and the update, so the momentum is read again:

==============================  ============================================  =======  ===========
bytes an element                passes                                        float32  bf16 p and g
==============================  ============================================  =======  ===========
row_norm                        12 (g, m, write m) + 12 (m, p, write p)       24       18
row_norm, Nesterov              12 + 16 (and g)                               28       20
auon ``paper``                  12 + 12                                       24       18
auon ``paper``, Nesterov        12 + 16                                       28       20
auon ``spectral_bound``         12 + 4 (m) + 12                               28       22
auon ``spectral_bound``,        12 + 8 (g, m) + 16                            36       26
Nesterov
the least a step can move       g, m, p read, m, p written                    20       14
==============================  ============================================  =======  ===========

Partial results of lines add at most 0.6 bytes. Passes go back and forth, so that each begins with what the last one has
left in the cache. The bound of ``spectral_bound`` needs row and column sums before it can weigh entries by them, hence
its third pass; the published factor of ``paper`` is a series of even powers, which one pass sums.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from orthoopt.kernels.device_cache import constants
from orthoopt.kernels.pointer_table import Launch, Lines, launches
from orthoopt.kernels.reference_steps import Moving
from orthoopt.kernels.triton_steps import numbers, on_device, tiling, triton_dtype
from orthoopt.kernels.triton_support import available

EPS_MODES = ("relative", "add", "clamp")
VARIANTS = ("spectral_bound", "paper")


def row_norm_step(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    buffers: Sequence[Tensor],
    moving: Moving,
    *,
    eps_mode: Literal["relative", "add", "clamp"],
    scales: Sequence[float],
    lr: float | Tensor,
    keep: float | Tensor,
    gate: Tensor | None = None,
) -> bool:
    """One step of row_norm: every row of the momentum brought to length one.

    Args:
        params: ``(..., rows, cols)``, float32, bfloat16 or float16; ``param ← keep·param − lr·scale·direction``.
        grads: each shaped as its parameter, any of these dtypes; never written.
        buffers: each shaped as its parameter, float32; moved in place.
        moving: the momentum.
        eps_mode: how short rows are damped, see :func:`orthoopt.rules.row_norm.row_norm_direction`.
        scales: a number a parameter.
        lr: a number, or a 0-d tensor where the parameters are.
        keep: what weight decay leaves, likewise.
        gate: 0-d, 1 or 0. At 0 nothing changes, even where gradients are not finite.

    Returns:
        True; False, with nothing touched, where these tensors are not taken (device, dtype, shared memory).

    Raises:
        ValueError: an unknown ``eps_mode``, or lists that differ in length or shape.
        RuntimeError: unseen tensors during the capture of a CUDA graph.
    """
    if eps_mode not in EPS_MODES:
        raise ValueError(f"eps_mode={eps_mode!r} must be one of {', '.join(map(repr, EPS_MODES))}")
    moving = Moving(*map(float, moving))  # an integer would be compiled in
    found = _launches(params, grads, buffers, scales, "rows")
    if not found:
        return found is not None
    from orthoopt.kernels import triton_jit_row_norm as jit

    device = params[0].device
    shared = {"scales": constants(scales, device), **numbers(lr, keep)}
    with on_device(params[0]):
        for launch in found:
            sets = launch.sets
            assert sets is not None
            peaks, squares = _floats(device, sets.partials), _floats(device, sets.partials)
            lengths = _floats(device, sets.lines)
            sums = torch.empty(sets.programs, dtype=torch.float64, device=device)
            table = (launch.pointers, launch.records, launch.owners)
            jit.row_moments_kernel[(launch.programs,)](
                *table, *moving, gate, peaks, squares, **_signal_tile(launch, moving)
            )
            jit.row_lengths_kernel[(sets.programs,)](sets.records, sets.owners, peaks, squares, lengths, sums)
            jit.row_norm_kernel[(launch.programs,)](
                *table, *moving[2:], gate, lengths, sums,
                EPS_MODE=eps_mode, **shared, **_signal_tile(launch, moving), **_param_tile(launch),
            )  # fmt: skip
    return True


def auon_step(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    buffers: Sequence[Tensor],
    moving: Moving,
    *,
    variant: Literal["spectral_bound", "paper"],
    scales: Sequence[float],
    lr: float | Tensor,
    keep: float | Tensor,
    gate: Tensor | None = None,
) -> bool:
    """One step of AuON: the momentum divided by a length that bounds its spectral norm.

    Args:
        params: ``(..., rows, cols)``, float32, bfloat16 or float16; ``param ← keep·param − lr·scale·direction``.
        grads: each shaped as its parameter, any of these dtypes; never written.
        buffers: each shaped as its parameter, float32; moved in place.
        moving: the momentum.
        variant: see :func:`orthoopt.rules.auon.auon_direction`; ``repository`` has no kernel.
        scales: a number a parameter.
        lr: a number, or a 0-d tensor where the parameters are.
        keep: what weight decay leaves, likewise.
        gate: 0-d, 1 or 0. At 0 nothing changes, even where gradients are not finite.

    Returns:
        True; False, with nothing touched, where these tensors are not taken (device, dtype, shared memory).

    Raises:
        ValueError: an unknown ``variant``, or lists that differ in length or shape.
        RuntimeError: unseen tensors during the capture of a CUDA graph.
    """
    if variant not in VARIANTS:
        raise ValueError(f"variant={variant!r} must be one of {', '.join(map(repr, VARIANTS))}")
    moving = Moving(*map(float, moving))  # an integer would be compiled in
    found = _launches(params, grads, buffers, scales, "tiles" if variant == "paper" else "both")
    if not found:
        return found is not None
    from orthoopt.kernels import triton_jit_auon as jit

    device = params[0].device
    shared = {"scales": constants(scales, device), **numbers(lr, keep)}
    with on_device(params[0]):
        for launch in found:
            move_and_measure = _paper_divisors if variant == "paper" else _spectral_divisors
            divisors = move_and_measure(launch, moving, gate)
            jit.auon_kernel[(launch.programs,)](
                launch.pointers, launch.records, launch.owners, *moving[2:], gate, divisors,
                TILES=variant == "paper", **shared, **_signal_tile(launch, moving), **_param_tile(launch),
            )  # fmt: skip
    return True


def _spectral_divisors(launch: Launch, moving: Moving, gate: Tensor | None) -> Tensor:
    """Move the momentum; min(b(X), ‖X‖_F) of every matrix."""
    from orthoopt.kernels import triton_jit_auon as jit

    sets, device = launch.sets, launch.records.device
    assert sets is not None
    partials, squares = _floats(device, sets.partials), _floats(device, sets.partials)
    lines = _floats(device, sets.lines)
    tops, ratios, sums, divisors = (_floats(device, sets.programs) for _ in range(4))
    table, line_table = (launch.pointers, launch.records, launch.owners), (sets.records, sets.owners)
    jit.sums_kernel[(launch.programs,)](*table, *moving, gate, partials, **_signal_tile(launch, moving))
    jit.add_sums_kernel[(sets.programs,)](*line_table, partials, lines, tops)
    jit.schur_kernel[(launch.programs,)](
        *table, *moving[2:], gate, lines, tops, partials, squares, **_signal_tile(launch, moving)
    )
    jit.add_quotients_kernel[(sets.programs,)](*line_table, partials, squares, lines, tops, ratios, sums)
    jit.spectral_divisor_kernel[(sets.programs,)](*line_table, tops, ratios, sums, divisors)
    return divisors


def _paper_divisors(launch: Launch, moving: Moving, gate: Tensor | None) -> Tensor:
    """Move the momentum; ‖X‖_F over the cosh factor of every matrix."""
    from orthoopt.kernels import triton_jit_paper as jit

    sets, device = launch.sets, launch.records.device
    assert sets is not None
    count = 1 + jit.POWERS.value
    moments, added = _floats(device, count * launch.programs), _floats(device, count * sets.programs)
    divisors = _floats(device, sets.programs)
    jit.powers_kernel[(launch.programs,)](
        launch.pointers,
        launch.records,
        launch.owners,
        *moving,
        gate,
        moments,
        launch.programs,
        **_signal_tile(launch, moving),
    )
    line_table = (sets.records, sets.owners)
    jit.add_powers_kernel[(sets.programs,)](*line_table, moments, launch.programs, added, sets.programs)
    jit.paper_divisor_kernel[(sets.programs,)](*line_table, added, sets.programs, divisors)
    return divisors


def _launches(
    params: Sequence[Tensor], grads: Sequence[Tensor], buffers: Sequence[Tensor], scales: Sequence[float], lines: Lines
) -> list[Launch] | None:
    """The launches of a step; None where its tensors are not taken."""
    if len(scales) != len(params):
        raise ValueError(f"scales must be a number a parameter, got {len(scales)} for {len(params)}")
    if not params:
        return []
    if not available(params[0].device) or any(tensor.ndim < 2 for tensor in params):
        return None
    sides = {"grads": grads, "buffers": buffers, "params": params}
    try:
        return launches(sides, written=("buffers", "params"), primary=1, lines=lines)
    except TypeError:
        return None


def _floats(device: torch.device, count: int) -> Tensor:
    return torch.empty(count, dtype=torch.float32, device=device)


def _signal_tile(launch: Launch, moving: Moving) -> dict[str, Any]:
    tile = {key: value for key, value in tiling(launch).items() if key != "FIELDS"}
    dtype, (grad, buffer, _) = triton_dtype(launch.dtypes[0]), launch.orders
    return {"HAS_GRAD": moving.from_grad != 0, "GRAD": dtype, "GRAD_ORDER": grad, "BUFFER_ORDER": buffer, **tile}


def _param_tile(launch: Launch) -> dict[str, Any]:
    return {"PARAM": triton_dtype(launch.dtypes[2]), "PARAM_ORDER": launch.orders[2]}
