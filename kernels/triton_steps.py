"""The elementwise ops of a step in one Triton launch over many tensors.

Launches are one for each combination of dtypes, storage orders and alignment, of which a model has one or two. What
they compute is defined in :mod:`orthoopt.kernels.reference_steps`.

===================  ======================================================================================
op                   bytes an element, of which none is moved twice (float32, and with 16-bit gradients,
                     outs, parameters and updates)
===================  ======================================================================================
momentum_into        16 and 12: gradient and buffer read, buffer and out written
subtract_updates     12 and 6: parameter and update read, parameter written
finite_gate          4 and 2: gradient read
===================  ======================================================================================
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from orthoopt.kernels.blocks import COLS, ROWS
from orthoopt.kernels.device_cache import constants
from orthoopt.kernels.pointer_table import Launch, launches
from orthoopt.kernels.reference_steps import Moving


def momentum_into(
    grads: Sequence[Tensor],
    buffers: Sequence[Tensor],
    outs: Sequence[Tensor],
    moving: Moving,
    gate: Tensor | None = None,
    peaks: Tensor | None = None,
) -> None:
    """Move every buffer by its gradient, and write every signal where it is wanted.

    Args:
        grads: float32, bfloat16 or float16; never written.
        buffers: each shaped as its gradient, float32; moved in place.
        outs: each shaped as its gradient, float32, bfloat16 or float16; all of it is written.
        moving: the momentum.
        gate: 0-d, 1 or 0. At 0 no buffer changes, and gradients, which may be non-finite, count as zeros.
        peaks: float32, one number a tensor, contiguous; gets the largest |out|, as stored, of each.

    Strides are free, and differ among the three. Results have the same bits every time.

    Raises:
        ValueError: lists that differ in length or shape, or ``peaks`` that is not as said.
        TypeError: a tensor that is not taken (dtype, device, written elements that share memory), by name.
        RuntimeError: unseen tensors during the capture of a CUDA graph.
    """
    if not grads:
        return
    if peaks is not None:
        if peaks.dtype != torch.float32 or peaks.shape != (len(grads),) or not peaks.is_contiguous():
            raise ValueError(f"peaks must be float32 of {len(grads)} elements, contiguous, got {_spell(peaks)}")
        peaks = peaks.zero_().view(torch.int32)
    from orthoopt.kernels.triton_jit_steps import momentum_kernel

    sides = {"grads": grads, "buffers": buffers, "outs": outs}
    with on_device(grads[0]):
        for launch in launches(sides, written=("buffers", "outs"), primary=1):
            grad, buffer, out = map(triton_dtype, launch.dtypes)
            momentum_kernel[(launch.programs,)](
                launch.pointers, launch.records, launch.owners, *map(float, moving), gate, peaks,
                HAS_GRAD=moving.from_grad != 0, GRAD=grad, BUFFER=buffer, OUT=out,
                GRAD_ORDER=launch.orders[0], BUFFER_ORDER=launch.orders[1], OUT_ORDER=launch.orders[2],
                **tiling(launch),
            )  # fmt: skip


def subtract_updates(
    params: Sequence[Tensor],
    updates: Sequence[Tensor],
    scales: Sequence[float],
    lr: float | Tensor,
    keep: float | Tensor,
) -> None:
    """``param ← keep·param − lr·scale·update``, in float32 whatever the parameter's dtype.

    Args:
        params: float32, bfloat16 or float16; written in place.
        updates: each shaped as its parameter, float32, bfloat16 or float16.
        scales: a number a parameter.
        lr: a number, or a 0-d tensor where the parameters are.
        keep: what weight decay leaves, likewise.

    Raises:
        ValueError: lists that differ in length or shape.
        TypeError: a tensor that is not taken (dtype, device, written elements that share memory), by name.
        RuntimeError: unseen tensors during the capture of a CUDA graph.
    """
    if not params:
        return
    if len(scales) != len(params):
        raise ValueError(f"scales must be a number a parameter, got {len(scales)} for {len(params)}")
    from orthoopt.kernels.triton_jit_steps import subtract_kernel

    device_scales = constants(scales, params[0].device)
    with on_device(params[0]):
        for launch in launches({"params": params, "updates": updates}, written=("params",)):
            param, update = map(triton_dtype, launch.dtypes)
            subtract_kernel[(launch.programs,)](
                launch.pointers, launch.records, launch.owners, device_scales, **numbers(lr, keep),
                PARAM=param, UPDATE=update, PARAM_ORDER=launch.orders[0], UPDATE_ORDER=launch.orders[1],
                **tiling(launch),
            )  # fmt: skip


def finite_gate(grads: Sequence[Tensor]) -> Tensor:
    """1.0 if every value of every tensor is finite, else 0.0: a 0-d float32 tensor on their device, nothing waited for.

    Args:
        grads: float32, bfloat16 or float16, at least one, all on one device.

    Raises:
        TypeError: a tensor that is not taken (dtype, device, written elements that share memory), by name.
        RuntimeError: unseen tensors during the capture of a CUDA graph.
    """
    from orthoopt.kernels.triton_jit_steps import finite_kernel

    gate = torch.ones((), dtype=torch.float32, device=grads[0].device)
    with on_device(grads[0]):
        for launch in launches({"grads": grads}):
            (grad,) = map(triton_dtype, launch.dtypes)
            finite_kernel[(launch.programs,)](
                launch.pointers, launch.records, launch.owners, gate,
                GRAD=grad, GRAD_ORDER=launch.orders[0], **tiling(launch),
            )  # fmt: skip
    return gate


def tiling(launch: Launch) -> dict[str, Any]:
    """The arguments by constants that every kernel of a launch takes."""
    return {
        "FIELDS": launch.records.shape[1],
        "ALIGNED": launch.aligned,
        "ROW_VECTORS": launch.aligned and ROWS in launch.orders,
        "COL_VECTORS": launch.aligned and COLS in launch.orders,
        "TILE_R": launch.tile[0],
        "TILE_C": launch.tile[1],
        # Scalar accesses hold an address an element: half of the elements a thread, so that registers last.
        "num_warps": 4 if launch.aligned else 8,
    }


def numbers(lr: float | Tensor, keep: float | Tensor) -> dict[str, Any]:
    """The arguments by which kernels take numbers of the host or of the device."""
    return {
        "lr": lr if isinstance(lr, Tensor) else float(lr),  # an integer would be compiled in
        "keep": keep if isinstance(keep, Tensor) else float(keep),
        "LR_TENSOR": isinstance(lr, Tensor),
        "KEEP_TENSOR": isinstance(keep, Tensor),
    }


def triton_dtype(dtype: torch.dtype) -> Any:
    """Triton's name for a dtype of torch."""
    import triton.language as tl  # type: ignore[import-untyped, import-not-found, unused-ignore]  # optional

    return {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}[dtype]


def on_device(tensor: Tensor) -> contextlib.AbstractContextManager[Any]:
    """Launches go to the current device: make it the tensor's."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()


def _spell(tensor: Tensor) -> str:
    return f"{tensor.dtype} of shape {tuple(tensor.shape)} and strides {tensor.stride()}"
