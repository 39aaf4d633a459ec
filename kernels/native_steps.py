"""Steps on CPU tensors by compiled loops: about one pass over memory where torch operations take five.

Each function does all of its work or none of it. What the loops do not take (another device or dtype, an inner stride)
is left to the caller, or given to the reference where the return value says nothing.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from orthoopt.kernels import reference_steps
from orthoopt.kernels.native import Library, available, library
from orthoopt.kernels.native_table import GRAD, LINE, PART, flat_or_rows, is_plain, scan_line, step_lines
from orthoopt.kernels.reference_steps import Moving

__all__ = [
    "all_finite",
    "available",
    "momentum_into",
    "prepare_auon_step",
    "prepare_row_norm_step",
    "subtract_updates",
]

_EPS_MODES = {"relative": 0, "add": 1, "clamp": 2}
_VARIANTS = {"spectral_bound": 0, "paper": 1}
_ROW_NORM, _AUON, _MOMENTUM_INTO, _SUBTRACT_UPDATES = range(4)
_TABLE = "native table"

Step: TypeAlias = Callable[[], bool]


def prepare_row_norm_step(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    buffers: Sequence[Tensor],
    moving: Moving,
    *,
    eps_mode: str,
    scales: Sequence[float],
    lr: float | Tensor,
    keep: float | Tensor,
    gate: Tensor | None = None,
    memo: dict[Any, Any] | None = None,
    alike: bool = False,
) -> Step | None:
    """To move each buffer, bring the rows of its signal to length one, and subtract them from the parameter.

    All that Python has to do is done here, so that what is returned runs at once: before it comes what decides whether
    it may, and that is a walk through memory which leaves little of Python in the caches.

    The direction is that of :mod:`orthoopt.rules.row_norm`, rows without centring. Row lengths are right from the
    smallest to the largest float32.

    Args:
        params: each ``(..., rows, cols)``, float32 or bfloat16, written in place: keep·param − lr·scale·direction.
        grads: shaped as the parameters, float32 or bfloat16; never written.
        buffers: likewise, float32; moved in place.
        moving: the momentum.
        eps_mode: ``"relative"``, ``"add"`` or ``"clamp"``.
        scales: a number a parameter.
        lr: a number or a 0-d tensor.
        keep: what weight decay leaves, likewise.
        gate: 0-d, 1 or 0; at 0 nothing changes, whatever the gradients hold.
        memo: stays with these params and buffers, which stay where they are; None to remember nothing.
        alike: the caller knows that gradients are as in the last call with this memo, but for values and addresses.

    Returns:
        What does it, with numbers as they are then, in memory as it is now: True, or False with nothing touched where
        memory is out. None where these tensors are not the loops' (device, dtype, inner stride other than 1).

    Raises:
        ValueError: an unknown ``eps_mode``.
    """
    if eps_mode not in _EPS_MODES:
        raise ValueError(f"eps_mode={eps_mode!r} must be one of {', '.join(map(repr, _EPS_MODES))}")
    return _direct(_ROW_NORM, _EPS_MODES[eps_mode], params, grads, buffers, moving, scales, lr, keep, gate, memo, alike)


def prepare_auon_step(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    buffers: Sequence[Tensor],
    moving: Moving,
    *,
    variant: str,
    scales: Sequence[float],
    lr: float | Tensor,
    keep: float | Tensor,
    gate: Tensor | None = None,
    memo: dict[Any, Any] | None = None,
    alike: bool = False,
) -> Step | None:
    """To move each buffer, divide its signal by AuON's bound, and subtract that from the parameter.

    The direction is that of :mod:`orthoopt.rules.auon`; the variant ``"repository"`` is not the loops'. Arguments and
    returns otherwise as those of :func:`prepare_row_norm_step`.

    Args:
        params: see there.
        grads: see there.
        buffers: see there.
        moving: see there.
        variant: ``"spectral_bound"`` or ``"paper"``.
        scales: see there.
        lr: see there.
        keep: see there.
        gate: see there.
        memo: see there.
        alike: see there.
    """
    if variant not in _VARIANTS:
        return None
    return _direct(_AUON, _VARIANTS[variant], params, grads, buffers, moving, scales, lr, keep, gate, memo, alike)


def momentum_into(
    grads: Sequence[Tensor],
    buffers: Sequence[Tensor],
    outs: Sequence[Tensor],
    moving: Moving,
    gate: Tensor | None = None,
) -> None:
    """:func:`orthoopt.kernels.reference_steps.momentum_into`; tensors that the loops do not take go there."""
    loops = library()
    open_gate = gate is None or bool(gate > 0)
    numbers, table, left = array("d", (*moving, 1.0)), array("q"), []
    for triple in zip(outs, grads, buffers, strict=True):
        lines = flat_or_rows(triple, turnable=(0,)) if open_gate and triple[2].dtype == torch.float32 else None
        if loops is None or lines is None:
            left.append(triple)
            continue
        table.extend(lines)
        numbers.extend([0.0] * (len(lines) // LINE))
    if loops is not None:
        _run(loops, _MOMENTUM_INTO, 0, table, numbers)
    if left:
        outs, grads, buffers = zip(*left, strict=True)
        reference_steps.momentum_into(grads, buffers, outs, moving, gate)


def subtract_updates(
    params: Sequence[Tensor],
    updates: Sequence[Tensor],
    scales: Sequence[float],
    lr: float | Tensor,
    keep: float | Tensor,
) -> None:
    """:func:`orthoopt.kernels.reference_steps.subtract_updates`; tensors that the loops do not take go there."""
    loops = library()
    rate, table, left = float(lr), array("q"), []
    numbers = array("d", (0.0, 0.0, 0.0, 0.0, float(keep)))
    for param, update, scale in zip(params, updates, scales, strict=True):
        lines = flat_or_rows((param, update, update), turnable=(1, 2))
        if loops is None or lines is None:
            left.append((param, update, scale))
            continue
        table.extend(lines)
        numbers.extend([rate * float(scale)] * (len(lines) // LINE))
    if loops is not None:
        _run(loops, _SUBTRACT_UPDATES, 0, table, numbers)
        increment_version(params)
    if left:
        params, updates, scales = zip(*left, strict=True)
        reference_steps.subtract_updates(params, updates, scales, lr, keep)


def all_finite(grads: Sequence[Tensor], memo: dict[Any, Any] | None = None, alike: bool = False) -> bool:
    """Whether no tensor holds an infinity or a NaN.

    Args:
        grads: on the CPU, any dtype and strides; float32, bfloat16 and float16 that fill their memory are read at
            its speed, others by torch operations.
        memo: stays with what made these gradients; None to remember nothing.
        alike: the caller knows that they are as in the last call with this memo, but for values and addresses.
    """
    loops = library()
    if loops is None:
        return _none_is_bad(grads)
    if alike and memo is not None and _TABLE in memo:
        table, left = memo[_TABLE], list[Tensor]()
        table[::PART] = array("q", [grad.data_ptr() for grad in grads])
    else:
        table, left = array("q"), []
        for grad in grads:
            line = scan_line(grad)
            if line is None:
                left.append(grad)
            else:
                table.extend(line)
        if memo is not None:
            memo.pop(_TABLE, None)
            if not left:
                memo[_TABLE] = table
    if table and not loops.all_finite(len(table) // PART, table.buffer_info()[0], torch.get_num_threads()):
        return False
    return _none_is_bad(left)


def _none_is_bad(grads: Sequence[Tensor]) -> bool:
    return all(bool(torch.isfinite(grad).all()) for grad in grads)


def _direct(
    rule: int,
    kind: int,
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    buffers: Sequence[Tensor],
    moving: Moving,
    scales: Sequence[float],
    lr: float | Tensor,
    keep: float | Tensor,
    gate: Tensor | None,
    memo: dict[Any, Any] | None,
    alike: bool,
) -> Step | None:
    loops = library()
    if loops is None:
        return None
    table, factors = _with_gradients(memo, grads, alike), scales
    if table is None:
        table, counts = array("q"), []
        for param, grad, buffer in zip(params, grads, buffers, strict=True):
            lines = step_lines((param, grad, buffer)) if buffer.dtype == torch.float32 else None
            if lines is None:
                return None
            table.extend(lines)
            counts.append(len(lines) // LINE)
        if memo is not None:
            memo.pop(_TABLE, None)
            if all(count == 1 for count in counts) and all(map(_as_remembered, grads)):
                memo[_TABLE] = table, [grad.shape for grad in grads]
        factors = [scale for scale, count in zip(scales, counts, strict=True) for _ in range(count)]
    rate = float(lr)
    numbers = array("d", (*moving, float(keep), *(rate * factor for factor in factors)))
    # Buffers are in no graph that could be told of a change which does not come; parameters may be. Both are counted
    # before the loops have run: afterwards all that Python knows of them has left the caches.
    increment_version(buffers)

    def step() -> bool:
        if gate is not None and not float(gate) > 0:
            return True
        increment_version(params)
        return _run(loops, rule, kind, table, numbers)

    return step


def _with_gradients(memo: dict[Any, Any] | None, grads: Sequence[Tensor], alike: bool) -> array[int] | None:
    """The table of the last call with these gradients in it; None where they are not laid out as those were."""
    if memo is None or _TABLE not in memo:
        return None
    table, shapes = memo[_TABLE]
    if not alike and ([grad.shape for grad in grads] != shapes or not all(map(_as_remembered, grads))):
        return None
    table[GRAD::LINE] = array("q", [grad.data_ptr() for grad in grads])
    return table


def _as_remembered(grad: Tensor) -> bool:
    """Whether a gradient lies in memory as the table has it: nearly all do."""
    return type(grad) is Tensor and grad.dtype is torch.float32 and grad.is_contiguous() and is_plain(grad)


def _run(loops: Library, rule: int, kind: int, table: array[int], numbers: array[float]) -> bool:
    """Whether it was done; one thing alone stops the loops before they begin, the want of memory for their sums."""
    addresses = table.buffer_info()[0], numbers.buffer_info()[0]
    lines = len(table) // LINE
    return loops.step(rule, kind, lines, *addresses, torch.get_num_threads()) == 0
