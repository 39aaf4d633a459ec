"""Tensors as the loops of ``native_steps`` get them: lines of numbers, or None where the loops do not take them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn import Parameter

LINE = 13
"""Numbers of a line for a step, see ``orthoopt_step`` in native.c."""
GRAD = 7
"""Where such a line has the address of the gradient."""
PART = 3
"""Numbers that say where a gradient is, to look for bad ones; the first is its address."""

_TYPES = {torch.float32: 0, torch.bfloat16: 1}
_SCANNED = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
_FLAT = 4096
_TURNED = 64  # among a line's types, times two to the operand's index
_STRIDED = torch.strided

Triple: TypeAlias = tuple[Tensor, Tensor, Tensor]


def scan_line(grad: Tensor) -> tuple[int, int, int] | None:
    """Address, count and type of a gradient that fills a stretch of memory."""
    kind = _SCANNED.get(grad.dtype)
    return (grad.data_ptr(), grad.numel(), kind) if kind is not None and is_plain(grad) and _is_dense(grad) else None


def is_plain(tensor: Tensor) -> bool:
    """Whether the numbers are at ``data_ptr()``, as they are meant: no subclass, no sparse layout, no lazy negation."""
    kind = type(tensor)
    return (kind is Tensor or kind is Parameter) and tensor.is_cpu and tensor.layout is _STRIDED and not tensor.is_neg()


def _types(triple: Triple) -> int | None:
    """The dtypes as the table has them; None where the loops do not take these tensors."""
    a, b, c = triple
    first, second, third = _TYPES.get(a.dtype), _TYPES.get(b.dtype), _TYPES.get(c.dtype)
    if first is None or second is None or third is None or not (is_plain(a) and is_plain(b) and is_plain(c)):
        return None
    if not a.shape == b.shape == c.shape:
        raise ValueError(f"tensors of one parameter must have one shape, got {[tuple(x.shape) for x in triple]}")
    return first | second << 2 | third << 4


def step_lines(triple: Triple, turnable: tuple[int, ...] = ()) -> Sequence[int] | None:
    """Lines of the loops' table for three tensors ``(..., rows, cols)``; None where the loops do not take them.

    Those whose index is ``turnable`` may have their columns side by side instead of their rows.
    """
    types = _types(triple)
    if types is None:
        return None
    a, b, c = triple
    *batch, rows, cols = a.shape
    size = rows * cols
    if a.is_contiguous() and b.is_contiguous() and c.is_contiguous():
        count = math.prod(batch)
        if not count * size:
            return ()
        where = (a.data_ptr(), size, cols, b.data_ptr(), size, cols, c.data_ptr(), size, cols)
        return (count, rows, cols, types, *where)
    if not a.numel():
        return ()
    if len(batch) > 1:  # strides of a flattened batch may not exist
        parts = [step_lines(part, turnable) for part in zip(a, b, c, strict=True)]
        return None if None in parts else [number for part in parts for number in part or ()]
    line = [batch[0] if batch else 1, rows, cols, types]
    for index, x in enumerate(triple):
        *_, down, across = x.stride()
        if cols > 1 and across != 1:
            if index not in turnable or (rows > 1 and down != 1) or x.dtype is not torch.float32:
                return None
            line[3] |= _TURNED << index
            down = across
        line += (x.data_ptr(), x.stride(0) if batch else 0, down)
    return line


def flat_or_rows(triple: Triple, turnable: tuple[int, ...]) -> Sequence[int] | None:
    """As :func:`step_lines`, for ops that see no rows: contiguous tensors of any shape are cut where that suits."""
    a, b, c = triple
    if not (a.is_contiguous() and b.is_contiguous() and c.is_contiguous()):
        return step_lines(triple, turnable) if a.ndim >= 2 else None
    types = _types(triple)
    if types is None:
        return None
    rows, rest = divmod(a.numel(), _FLAT)
    lines: list[int] = []
    for start, height, width in ((0, rows, _FLAT), (rows * _FLAT, 1, rest)):
        if height * width:
            lines += (1, height, width, types)
            for x in triple:
                lines += (x.data_ptr() + start * x.element_size(), 0, width)
    return lines


def _is_dense(tensor: Tensor) -> bool:
    """Whether the elements fill a stretch of memory, in whatever order."""
    if tensor.is_contiguous():
        return True
    expected = 1
    for stride, size in sorted((x, n) for x, n in zip(tensor.stride(), tensor.shape, strict=True) if n > 1):
        if stride != expected:
            return False
        expected *= size
    return True
