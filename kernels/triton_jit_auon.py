"""The Triton kernels of an AuON step, "spectral_bound" and what both variants share; imports Triton."""

# mypy: disable-error-code="no-untyped-def, import-untyped, import-not-found"

import triton
import triton.language as tl

from orthoopt.kernels.triton_jit_lines import (
    COL_LINE,
    COL_PART,
    FIELDS,
    LINES,
    ROW_LINE,
    ROW_PART,
    ROW_PROGRAM,
    SET_LINE,
    SET_LINES,
    SET_ROW_PROGRAM,
    SET_ROWS,
    find_lines,
    greatest,
    line_places,
    move,
    one_for_zero,
    part_places,
    signal_of,
    subtract,
    total,
    total_over_parts,
)
from orthoopt.kernels.triton_jit_steps import find_tile, tile_mask


@triton.jit
def store_sums(record, matrix, i, j, partials, for_rows, for_cols, TILE_R: tl.constexpr, TILE_C: tl.constexpr):
    """Partial results of a tile: sums of ``for_rows`` along rows, of ``for_cols`` along columns."""
    of_rows = partials + tl.load(record + ROW_PART) + part_places(record, matrix, i, j, TILE_R, TILE_C, 1)
    of_cols = partials + tl.load(record + COL_PART) + part_places(record, matrix, j, i, TILE_C, TILE_R, 2)
    _, in_rows = line_places(record, matrix, i, TILE_R, 1)
    _, in_cols = line_places(record, matrix, j, TILE_C, 2)
    tl.store(of_rows, tl.sum(for_rows, 1), mask=in_rows)
    tl.store(of_cols, tl.sum(for_cols, 0), mask=in_cols)


@triton.jit(do_not_specialize_on_alignment=["pointers"])
def sums_kernel(
    pointers, records, owners, decay, weight, from_grad, from_buffer, gate, partials,
    HAS_GRAD: tl.constexpr, GRAD: tl.constexpr, GRAD_ORDER: tl.constexpr, BUFFER_ORDER: tl.constexpr,
    ALIGNED: tl.constexpr, ROW_VECTORS: tl.constexpr, COL_VECTORS: tl.constexpr,
    TILE_R: tl.constexpr, TILE_C: tl.constexpr,
):  # fmt: skip
    """Momentum moves; sums of magnitudes of a tile's rows and columns."""
    entry, record, matrix, i, j = find_tile(records, owners, FIELDS, TILE_R, TILE_C)
    exists = tile_mask(record, i, j, gate, ROW_VECTORS, COL_VECTORS, TILE_R, TILE_C)
    signal = move(
        pointers, entry, record, matrix, i, j, exists, decay, weight, from_grad, from_buffer,
        HAS_GRAD, GRAD, GRAD_ORDER, BUFFER_ORDER, ALIGNED, TILE_R, TILE_C,
    )  # fmt: skip
    magnitudes = tl.abs(signal)
    store_sums(record, matrix, i, j, partials, magnitudes, magnitudes, TILE_R, TILE_C)


@triton.jit
def add_sums_kernel(sets, owners, partials, lines, tops):
    """Line sums out of their parts, and of each block of lines the largest."""
    record, matrix, line = find_lines(sets, owners)
    i = line + tl.arange(0, LINES)
    count = tl.load(record + SET_LINES)
    sums = total_over_parts(partials, record, matrix, line)
    tl.store(lines + tl.load(record + SET_LINE) + matrix * count + i, sums, mask=i < count)
    tl.store(tops + tl.program_id(0), tl.max(sums, 0))


@triton.jit(do_not_specialize_on_alignment=["pointers"])
def schur_kernel(
    pointers, records, owners, from_grad, from_buffer, gate, lines, tops, partials, squares, HAS_GRAD: tl.constexpr,
    GRAD: tl.constexpr, GRAD_ORDER: tl.constexpr, BUFFER_ORDER: tl.constexpr,
    ALIGNED: tl.constexpr, ROW_VECTORS: tl.constexpr, COL_VECTORS: tl.constexpr,
    TILE_R: tl.constexpr, TILE_C: tl.constexpr,
):  # fmt: skip
    """|X| times its column sums, along rows, and times its row sums, along columns; squares along rows.

    X is divided by its largest row sum, so that products of three entries have room in float32.
    """
    entry, record, matrix, i, j = find_tile(records, owners, FIELDS, TILE_R, TILE_C, True)
    exists = tile_mask(record, i, j, gate, ROW_VECTORS, COL_VECTORS, TILE_R, TILE_C)
    signal = signal_of(
        pointers, entry, record, matrix, i, j, exists, from_grad, from_buffer,
        HAS_GRAD, GRAD, GRAD_ORDER, BUFFER_ORDER, ALIGNED, TILE_R, TILE_C,
    )  # fmt: skip
    blocks = tl.cdiv(tl.load(record + 1), LINES)
    unit = one_for_zero(greatest(tops, tl.load(record + ROW_PROGRAM) + matrix * blocks, blocks))
    row, in_rows = line_places(record, matrix, i, TILE_R, 1)
    col, in_cols = line_places(record, matrix, j, TILE_C, 2)
    row_sums = tl.load(lines + tl.load(record + ROW_LINE) + row, mask=in_rows, other=0) / unit
    col_sums = tl.load(lines + tl.load(record + COL_LINE) + col, mask=in_cols, other=0) / unit
    scaled = tl.abs(signal) / unit
    by_cols, by_rows = scaled * col_sums[None, :], scaled * row_sums[:, None]
    store_sums(record, matrix, i, j, partials, by_cols, by_rows, TILE_R, TILE_C)
    place = tl.load(record + ROW_PART) + part_places(record, matrix, i, j, TILE_R, TILE_C, 1)
    tl.store(squares + place, tl.sum(scaled * scaled, 1), mask=in_rows)


@triton.jit
def add_quotients_kernel(sets, owners, partials, squares, lines, tops, ratios, sums):
    """Of each block of lines the largest quotient of Schur's test, and of rows the sum of squares."""
    record, matrix, line = find_lines(sets, owners)
    i = line + tl.arange(0, LINES)
    count = tl.load(record + SET_LINES)
    row_blocks = tl.cdiv(tl.load(record + SET_ROWS), LINES)
    unit = one_for_zero(greatest(tops, tl.load(record + SET_ROW_PROGRAM) + matrix * row_blocks, row_blocks))
    length = tl.load(lines + tl.load(record + SET_LINE) + matrix * count + i, mask=i < count, other=0) / unit
    quotient = total_over_parts(partials, record, matrix, line) / one_for_zero(length)
    tl.store(ratios + tl.program_id(0), tl.max(quotient, 0))
    if tl.load(record + SET_ROW_PROGRAM) == tl.load(record):  # rows: columns have no squares beside their parts
        tl.store(sums + tl.program_id(0), tl.sum(total_over_parts(squares, record, matrix, line), 0))


@triton.jit
def spectral_divisor_kernel(sets, owners, tops, ratios, sums, divisors):
    """min(b(X), ‖X‖_F) of each matrix, b of :mod:`orthoopt.schur_bound`, at the place of its first block of rows."""
    record, matrix, line = find_lines(sets, owners)
    row_program = tl.load(record + SET_ROW_PROGRAM)
    if (line == 0) & (row_program != tl.load(record)):  # the first columns of a matrix; all others have no more to do
        row_blocks = tl.cdiv(tl.load(record + SET_ROWS), LINES)
        col_blocks = tl.cdiv(tl.load(record + SET_LINES), LINES)
        first = row_program + matrix * row_blocks
        alpha = greatest(ratios, first, row_blocks)
        beta = greatest(ratios, tl.program_id(0), col_blocks)
        bound = tl.minimum(tl.sqrt_rn(alpha * beta), tl.sqrt_rn(total(sums, first, row_blocks)))
        tl.store(divisors + first, greatest(tops, first, row_blocks) * bound)


@triton.jit(do_not_specialize_on_alignment=["pointers"])
def auon_kernel(
    pointers, records, owners, from_grad, from_buffer, gate, divisors, scales, lr, keep,
    LR_TENSOR: tl.constexpr, KEEP_TENSOR: tl.constexpr, TILES: tl.constexpr, HAS_GRAD: tl.constexpr,
    GRAD: tl.constexpr, PARAM: tl.constexpr,
    GRAD_ORDER: tl.constexpr, BUFFER_ORDER: tl.constexpr, PARAM_ORDER: tl.constexpr,
    ALIGNED: tl.constexpr, ROW_VECTORS: tl.constexpr, COL_VECTORS: tl.constexpr,
    TILE_R: tl.constexpr, TILE_C: tl.constexpr,
):  # fmt: skip
    """``param ← keep·param − lr·scale·X/divisor``.

    TILES: divisors are blocks of tiles apart, not of rows, and this is the second pass, not the third.
    """
    entry, record, matrix, i, j = find_tile(records, owners, FIELDS, TILE_R, TILE_C, TILES)
    exists = tile_mask(record, i, j, gate, ROW_VECTORS, COL_VECTORS, TILE_R, TILE_C)
    signal = signal_of(
        pointers, entry, record, matrix, i, j, exists, from_grad, from_buffer,
        HAS_GRAD, GRAD, GRAD_ORDER, BUFFER_ORDER, ALIGNED, TILE_R, TILE_C,
    )  # fmt: skip
    lines = tl.load(record + 1)
    if TILES:
        lines = tl.cdiv(lines, TILE_R) * tl.cdiv(tl.load(record + 2), TILE_C)
    divisor = tl.load(divisors + tl.load(record + ROW_PROGRAM) + matrix * tl.cdiv(lines, LINES))
    subtract(
        pointers, entry, record, matrix, i, j, exists, signal / one_for_zero(divisor), scales, lr, keep,
        LR_TENSOR, KEEP_TENSOR, PARAM, PARAM_ORDER, ALIGNED, TILE_R, TILE_C,
    )  # fmt: skip
