"""The Triton kernels of a step's elementwise part. Imports Triton: read only once one of them is launched.

A program does one tile of one entry of a table (:mod:`orthoopt.kernels.pointer_table`). Addresses and strides come from
device memory, so the compiler is told where they are multiples of a vector: ALIGNED. Which dimension of a side is
contiguous is known when compiling, so that each side is read and written along its own storage, and tiles are
transposed on chip where two sides differ. Tables are parts of longer tensors, aligned or not, which is no reason to
compile a kernel twice.
"""

# mypy: disable-error-code="no-untyped-def, import-untyped, import-not-found"

import triton
import triton.language as tl

VECTOR = tl.constexpr(8)
ROWS, COLS = tl.constexpr(0), tl.constexpr(1)


@triton.jit
def find_tile(
    records, owners, FIELDS: tl.constexpr, TILE_R: tl.constexpr, TILE_C: tl.constexpr, BACKWARDS: tl.constexpr = False
):
    """This program's entry, its record, and its place: matrix of the batch, tile row, tile column.

    BACKWARDS walks from the last tile to the first: a second pass then begins with what the first has left in cache.
    """
    program = tl.program_id(0)
    if BACKWARDS:
        program = tl.num_programs(0) - 1 - program
    entry = tl.load(owners + program).to(tl.int64)
    record = records + entry * FIELDS
    index = (program - tl.load(record)).to(tl.int32)
    tile_rows = tl.cdiv(tl.load(record + 1), TILE_R).to(tl.int32)
    tile_cols = tl.cdiv(tl.load(record + 2), TILE_C).to(tl.int32)
    matrix = index // tile_cols // tile_rows
    return entry, record, matrix, index // tile_cols % tile_rows, index % tile_cols


@triton.jit
def tile_mask(
    record, tile_row, tile_col, gate,
    ROW_VECTORS: tl.constexpr, COL_VECTORS: tl.constexpr, TILE_R: tl.constexpr, TILE_C: tl.constexpr,
):  # fmt: skip
    """Which elements of a tile exist; none where there is a gate and it is closed."""
    rows = tl.load(record + 1) - tile_row.to(tl.int64) * TILE_R
    cols = tl.load(record + 2) - tile_col.to(tl.int64) * TILE_C
    rows = tl.minimum(rows, TILE_R).to(tl.int32)
    cols = tl.minimum(cols, TILE_C).to(tl.int32)
    if gate is not None:
        rows = tl.where(tl.load(gate) > 0, rows, 0)
    if ROW_VECTORS:
        cols = tl.multiple_of(cols, VECTOR)
    if COL_VECTORS:
        rows = tl.multiple_of(rows, VECTOR)
    return (tl.arange(0, TILE_R) < rows)[:, None] & (tl.arange(0, TILE_C) < cols)[None, :]


@triton.jit
def tile_of(
    pointers, entry, record, matrix, tile_row, tile_col, SIDE: tl.constexpr, SIDES: tl.constexpr,
    TYPE: tl.constexpr, ORDER: tl.constexpr, ALIGNED: tl.constexpr, TILE_R: tl.constexpr, TILE_C: tl.constexpr,
):  # fmt: skip
    """Pointers to a tile of one side."""
    base = tl.load(pointers + entry * SIDES + SIDE).to(tl.pointer_type(TYPE))
    steps = record + 4 + 3 * SIDE
    row_step = tl.load(steps + 1)
    col_step = tl.load(steps + 2)
    # int64: a run may be longer than 2**31 elements.
    row = tile_row.to(tl.int64) * TILE_R
    col = tile_col.to(tl.int64) * TILE_C
    r = tl.arange(0, TILE_R)[:, None]
    c = tl.arange(0, TILE_C)[None, :]
    if ORDER == ROWS:
        base += matrix * tl.load(steps) + row * row_step + col
        if ALIGNED:
            base = tl.multiple_of(base, 16)
            row_step = tl.multiple_of(row_step, VECTOR)
        return base + (r * row_step + c)
    elif ORDER == COLS:
        base += matrix * tl.load(steps) + row + col * col_step
        if ALIGNED:
            base = tl.multiple_of(base, 16)
            col_step = tl.multiple_of(col_step, VECTOR)
        return base + (r + c * col_step)
    else:
        return base + (matrix * tl.load(steps) + row * row_step + col * col_step + r * row_step + c * col_step)


@triton.jit
def number(value, IS_TENSOR: tl.constexpr):
    """A number given by the host, or read from the device."""
    if IS_TENSOR:
        return tl.load(value).to(tl.float32)
    else:
        return value


@triton.jit
def magnitude_bits(x):
    """|x| of float32 as an integer of the same order; NaN is above infinity."""
    return x.to(tl.int32, bitcast=True) & 0x7FFFFFFF


@triton.jit(do_not_specialize_on_alignment=["pointers"])
def momentum_kernel(
    pointers, records, owners, decay, weight, from_grad, from_buffer, gate, peaks,
    HAS_GRAD: tl.constexpr, FIELDS: tl.constexpr, GRAD: tl.constexpr, BUFFER: tl.constexpr, OUT: tl.constexpr,
    GRAD_ORDER: tl.constexpr, BUFFER_ORDER: tl.constexpr, OUT_ORDER: tl.constexpr,
    ALIGNED: tl.constexpr, ROW_VECTORS: tl.constexpr, COL_VECTORS: tl.constexpr,
    TILE_R: tl.constexpr, TILE_C: tl.constexpr,
):  # fmt: skip
    """``buffer ← decay·buffer + weight·grad``; ``out ← from_grad·grad + from_buffer·buffer``; the largest |out|."""
    entry, record, matrix, i, j = find_tile(records, owners, FIELDS, TILE_R, TILE_C)
    exists = tile_mask(record, i, j, None, ROW_VECTORS, COL_VECTORS, TILE_R, TILE_C)
    moves = tile_mask(record, i, j, gate, ROW_VECTORS, COL_VECTORS, TILE_R, TILE_C)
    grad_tile = tile_of(pointers, entry, record, matrix, i, j, 0, 3, GRAD, GRAD_ORDER, ALIGNED, TILE_R, TILE_C)
    buffer_tile = tile_of(pointers, entry, record, matrix, i, j, 1, 3, BUFFER, BUFFER_ORDER, ALIGNED, TILE_R, TILE_C)
    out_tile = tile_of(pointers, entry, record, matrix, i, j, 2, 3, OUT, OUT_ORDER, ALIGNED, TILE_R, TILE_C)
    # A closed gate reads no gradient, so what is in it cannot matter.
    grad = tl.load(grad_tile, mask=moves, other=0).to(tl.float32)
    buffer = tl.load(buffer_tile, mask=exists, other=0)
    buffer = tl.where(moves, decay * buffer + weight * grad, buffer)
    tl.store(buffer_tile, buffer, mask=moves)
    signal = from_buffer * buffer
    if HAS_GRAD:  # 0 times infinity is not 0
        signal += from_grad * grad
    signal = signal.to(OUT)
    tl.store(out_tile, signal, mask=exists)
    if peaks is not None:
        bits = tl.where(exists, magnitude_bits(signal.to(tl.float32)), 0)
        # Of integers, so the order of programs does not show.
        tl.atomic_max(peaks + tl.load(record + 3), tl.max(tl.max(bits, 1), 0))


@triton.jit(do_not_specialize_on_alignment=["pointers"])
def subtract_kernel(
    pointers, records, owners, scales, lr, keep,
    LR_TENSOR: tl.constexpr, KEEP_TENSOR: tl.constexpr,
    FIELDS: tl.constexpr, PARAM: tl.constexpr, UPDATE: tl.constexpr,
    PARAM_ORDER: tl.constexpr, UPDATE_ORDER: tl.constexpr,
    ALIGNED: tl.constexpr, ROW_VECTORS: tl.constexpr, COL_VECTORS: tl.constexpr,
    TILE_R: tl.constexpr, TILE_C: tl.constexpr,
):  # fmt: skip
    """``param ← keep·param − lr·scale·update``."""
    entry, record, matrix, i, j = find_tile(records, owners, FIELDS, TILE_R, TILE_C)
    exists = tile_mask(record, i, j, None, ROW_VECTORS, COL_VECTORS, TILE_R, TILE_C)
    param_tile = tile_of(pointers, entry, record, matrix, i, j, 0, 2, PARAM, PARAM_ORDER, ALIGNED, TILE_R, TILE_C)
    update_tile = tile_of(pointers, entry, record, matrix, i, j, 1, 2, UPDATE, UPDATE_ORDER, ALIGNED, TILE_R, TILE_C)
    param = tl.load(param_tile, mask=exists, other=0).to(tl.float32)
    update = tl.load(update_tile, mask=exists, other=0).to(tl.float32)
    factor = number(lr, LR_TENSOR) * tl.load(scales + tl.load(record + 3))
    tl.store(param_tile, (number(keep, KEEP_TENSOR) * param - factor * update).to(PARAM), mask=exists)


@triton.jit(do_not_specialize_on_alignment=["pointers"])
def finite_kernel(
    pointers, records, owners, gate,
    FIELDS: tl.constexpr, GRAD: tl.constexpr, GRAD_ORDER: tl.constexpr,
    ALIGNED: tl.constexpr, ROW_VECTORS: tl.constexpr, COL_VECTORS: tl.constexpr,
    TILE_R: tl.constexpr, TILE_C: tl.constexpr,
):  # fmt: skip
    """Write 0 to ``gate`` where a gradient holds an infinity or a NaN."""
    entry, record, matrix, i, j = find_tile(records, owners, FIELDS, TILE_R, TILE_C)
    exists = tile_mask(record, i, j, None, ROW_VECTORS, COL_VECTORS, TILE_R, TILE_C)
    tile = tile_of(pointers, entry, record, matrix, i, j, 0, 1, GRAD, GRAD_ORDER, ALIGNED, TILE_R, TILE_C)
    bits = magnitude_bits(tl.load(tile, mask=exists, other=0).to(tl.float32))
    # Every writer writes the same, so their order does not matter.
    tl.store(gate, 0.0, mask=tl.max(tl.max(bits, 1), 0) >= 0x7F800000)
