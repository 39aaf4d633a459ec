"""The elementwise ops of a step, each by the fastest implementation that takes its tensors.

On CPUs compiled loops, on GPUs Triton kernels; elsewhere, and for whatever those do not take, the reference.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from orthoopt.kernels import native_steps, reference_steps, triton_rows, triton_steps
from orthoopt.kernels.native_steps import Step
from orthoopt.kernels.reference_steps import Moving
from orthoopt.kernels.triton_support import INTERPRETED, available

_TRITON_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_PLAIN = (Tensor, torch.nn.Parameter)


def momentum_into(
    grads: Sequence[Tensor],
    buffers: Sequence[Tensor],
    outs: Sequence[Tensor] | None,
    moving: Moving,
    gate: Tensor | None = None,
) -> None:
    """Move every buffer by its gradient, and write every signal where it is wanted.

    As :func:`orthoopt.kernels.reference_steps.momentum_into`, up to rounding.
    """
    if outs is None:
        # By the implementation that would write a signal, whose rounding is its own: of ranks with the same momenta
        # some need the signal and some do not.
        outs, moving = buffers, moving._replace(from_grad=0.0, from_buffer=1.0)
    if _takes_triton(grads, buffers, outs) and _are(torch.float32, buffers):
        triton_steps.momentum_into(grads, buffers, outs, moving, gate)
    elif _takes_native(buffers):
        native_steps.momentum_into(grads, buffers, outs, moving, gate)
    else:
        reference_steps.momentum_into(grads, buffers, outs, moving, gate)


def subtract_updates(
    params: Sequence[Tensor],
    updates: Sequence[Tensor],
    scales: Sequence[float],
    lr: float | Tensor,
    keep: float | Tensor = 1.0,
) -> None:
    """``param ← keep·param − lr·scale·update``.

    As :func:`orthoopt.kernels.reference_steps.subtract_updates`, up to rounding.
    """
    if _takes_triton(params, updates):
        triton_steps.subtract_updates(params, updates, scales, lr, keep)
    elif _takes_native(params):
        native_steps.subtract_updates(params, updates, scales, lr, keep)
    else:
        reference_steps.subtract_updates(params, updates, scales, lr, keep)


def prepare_row_norm_step(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    buffers: Sequence[Tensor],
    moving: Moving,
    memo: dict[Any, Any] | None = None,
    alike: bool = False,
    **terms: Any,
) -> Step | None:
    """Momentum, direction of the row_norm rule, decay and update of many parameters in one or two passes.

    Arguments as for :func:`orthoopt.kernels.triton_rows.row_norm_step`. ``memo`` is a dict that stays with these params
    and buffers, for what is worth keeping between calls; ``alike`` says that the gradients are as in the last call with
    it, but for values and addresses. Returns what does the step, and then True, or False with nothing touched; None
    where there is none.
    """
    if _takes_triton(params, grads, buffers):
        return functools.partial(triton_rows.row_norm_step, params, grads, buffers, moving, **terms)
    if not _takes_native(params):
        return None
    return native_steps.prepare_row_norm_step(params, grads, buffers, moving, memo=memo, alike=alike, **terms)


def prepare_auon_step(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    buffers: Sequence[Tensor],
    moving: Moving,
    memo: dict[Any, Any] | None = None,
    alike: bool = False,
    **terms: Any,
) -> Step | None:
    """The same for the auon rule; see :func:`orthoopt.kernels.triton_rows.auon_step`."""
    if _takes_triton(params, grads, buffers):
        return functools.partial(triton_rows.auon_step, params, grads, buffers, moving, **terms)
    if not _takes_native(params):
        return None
    return native_steps.prepare_auon_step(params, grads, buffers, moving, memo=memo, alike=alike, **terms)


def all_finite(grads: Sequence[Tensor], memo: dict[Any, Any] | None = None, alike: bool = False) -> bool:
    """Whether no tensor holds an infinity or a NaN; the host waits for it.

    Args:
        grads: any floating dtype and device.
        memo: see :func:`orthoopt.kernels.native_steps.all_finite`.
        alike: see there.
    """
    return native_steps.all_finite(grads, memo, alike)


def finite_gate(grads: Sequence[Tensor]) -> Tensor:
    """1.0 if every value of every tensor is finite, else 0.0: a 0-d tensor on their device, nothing is waited for.

    Args:
        grads: any floating dtype, at least one, all on one device.
    """
    if _takes_triton(grads):
        return triton_steps.finite_gate(grads)
    peaks = torch._foreach_norm(list(grads), torch.inf)
    return torch.stack([torch.isfinite(peak) for peak in peaks]).all().to(torch.float32)


def _takes_triton(*lists: Sequence[Tensor]) -> bool:
    """Whether the Triton kernels take all of these tensors; under a compiler the operations that it can fuse do."""
    first = lists[0][0]
    if first.device.type == "cpu" and not INTERPRETED:
        return False
    return available(first.device) and all(
        type(tensor) in _PLAIN and tensor.dtype in _TRITON_DTYPES and tensor.device == first.device
        for tensor in chain(*lists)
    )


def _takes_native(tensors: Sequence[Tensor]) -> bool:
    return tensors[0].device.type == "cpu" and type(tensors[0]) in _PLAIN and native_steps.available()


def _are(dtype: torch.dtype, tensors: Sequence[Tensor]) -> bool:
    return all(tensor.dtype == dtype for tensor in tensors)
