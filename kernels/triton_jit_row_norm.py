"""The Triton kernels of a row_norm step. Imports Triton: read only once one of them is launched."""

# mypy: disable-error-code="no-untyped-def, import-untyped, import-not-found"

import triton
import triton.language as tl

from orthoopt.kernels.triton_jit_lines import (
    FIELDS,
    LINES,
    PARTS,
    ROW_LINE,
    ROW_PART,
    ROW_PROGRAM,
    SET_LINE,
    SET_LINES,
    SET_PART,
    SET_PARTS,
    find_lines,
    line_places,
    move,
    one_for_zero,
    part_places,
    signal_of,
    subtract,
    total,
)
from orthoopt.kernels.triton_jit_steps import find_tile, tile_mask

DAMPING, FLOOR = tl.constexpr(1e-5), tl.constexpr(1e-8)


@triton.jit(do_not_specialize_on_alignment=["pointers"])
def row_moments_kernel(
    pointers, records, owners, decay, weight, from_grad, from_buffer, gate, peaks, squares,
    HAS_GRAD: tl.constexpr, GRAD: tl.constexpr, GRAD_ORDER: tl.constexpr, BUFFER_ORDER: tl.constexpr,
    ALIGNED: tl.constexpr, ROW_VECTORS: tl.constexpr, COL_VECTORS: tl.constexpr,
    TILE_R: tl.constexpr, TILE_C: tl.constexpr,
):  # fmt: skip
    """Momentum moves. Of each row's part in a tile: its largest magnitude, and the sum of squares divided by that."""
    entry, record, matrix, i, j = find_tile(records, owners, FIELDS, TILE_R, TILE_C)
    exists = tile_mask(record, i, j, gate, ROW_VECTORS, COL_VECTORS, TILE_R, TILE_C)
    signal = move(
        pointers, entry, record, matrix, i, j, exists, decay, weight, from_grad, from_buffer,
        HAS_GRAD, GRAD, GRAD_ORDER, BUFFER_ORDER, ALIGNED, TILE_R, TILE_C,
    )  # fmt: skip
    peak = tl.max(tl.abs(signal), 1)
    scaled = signal / one_for_zero(peak)[:, None]
    place = tl.load(record + ROW_PART) + part_places(record, matrix, i, j, TILE_R, TILE_C, 1)
    _, in_rows = line_places(record, matrix, i, TILE_R, 1)
    tl.store(peaks + place, peak, mask=in_rows)
    tl.store(squares + place, tl.sum(scaled * scaled, 1), mask=in_rows)


@triton.jit
def row_lengths_kernel(sets, owners, peaks, squares, lengths, sums):
    """Row lengths out of their parts, and of each block of rows the sum of squared lengths.

    That sum is in float64, where the squares of all float32 have room.
    """
    record, matrix, line = find_lines(sets, owners)
    lines = tl.load(record + SET_LINES)
    parts = tl.load(record + SET_PARTS)
    first = tl.load(record + SET_PART) + matrix * parts * lines
    i = line + tl.arange(0, LINES)
    peak = tl.zeros((PARTS, LINES), tl.float32)
    for start in range(0, parts, PARTS):
        part = start + tl.arange(0, PARTS)
        mask = (part < parts)[:, None] & (i < lines)[None, :]
        peak = tl.maximum(peak, tl.load(peaks + first + part[:, None] * lines + i[None, :], mask=mask, other=0))
    top = tl.max(peak, 0)
    unit = one_for_zero(top)[None, :]
    squared = tl.zeros((PARTS, LINES), tl.float32)
    for start in range(0, parts, PARTS):
        part = start + tl.arange(0, PARTS)
        mask = (part < parts)[:, None] & (i < lines)[None, :]
        place = first + part[:, None] * lines + i[None, :]
        ratio = tl.load(peaks + place, mask=mask, other=0) / unit
        squared += tl.load(squares + place, mask=mask, other=0) * ratio * ratio
    length = top * tl.sqrt_rn(tl.sum(squared, 0))
    tl.store(lengths + tl.load(record + SET_LINE) + matrix * lines + i, length, mask=i < lines)
    wide = length.to(tl.float64)
    tl.store(sums + tl.program_id(0), tl.sum(wide * wide, 0))


@triton.jit(do_not_specialize_on_alignment=["pointers"])
def row_norm_kernel(
    pointers, records, owners, from_grad, from_buffer, gate, lengths, sums, scales, lr, keep,
    LR_TENSOR: tl.constexpr, KEEP_TENSOR: tl.constexpr, EPS_MODE: tl.constexpr, HAS_GRAD: tl.constexpr,
    GRAD: tl.constexpr, PARAM: tl.constexpr,
    GRAD_ORDER: tl.constexpr, BUFFER_ORDER: tl.constexpr, PARAM_ORDER: tl.constexpr,
    ALIGNED: tl.constexpr, ROW_VECTORS: tl.constexpr, COL_VECTORS: tl.constexpr,
    TILE_R: tl.constexpr, TILE_C: tl.constexpr,
):  # fmt: skip
    """``param ← keep·param − lr·scale·row/damped(‖row‖)``."""
    entry, record, matrix, i, j = find_tile(records, owners, FIELDS, TILE_R, TILE_C, True)
    exists = tile_mask(record, i, j, gate, ROW_VECTORS, COL_VECTORS, TILE_R, TILE_C)
    signal = signal_of(
        pointers, entry, record, matrix, i, j, exists, from_grad, from_buffer,
        HAS_GRAD, GRAD, GRAD_ORDER, BUFFER_ORDER, ALIGNED, TILE_R, TILE_C,
    )  # fmt: skip
    line, in_rows = line_places(record, matrix, i, TILE_R, 1)
    length = tl.load(lengths + tl.load(record + ROW_LINE) + line, mask=in_rows, other=0)
    if EPS_MODE == "relative":
        rows = tl.load(record + 1)
        blocks = tl.cdiv(rows, LINES)
        squares = total(sums, tl.load(record + ROW_PROGRAM) + matrix * blocks, blocks)
        damped = length + DAMPING * tl.sqrt(squares / rows).to(tl.float32)
    elif EPS_MODE == "add":
        damped = length + FLOOR
    else:
        damped = tl.where(length < FLOOR, FLOOR, length)
    subtract(
        pointers, entry, record, matrix, i, j, exists, signal / one_for_zero(damped)[:, None], scales, lr, keep,
        LR_TENSOR, KEEP_TENSOR, PARAM, PARAM_ORDER, ALIGNED, TILE_R, TILE_C,
    )  # fmt: skip
