"""What the Triton kernels of row_norm and AuON steps share. Imports Triton: read only once one of them is launched.

The sides are gradient, momentum buffer and parameter. Rows and columns are *lines*; a tile leaves a partial result of
each line that it meets, in a place of its own, and a second kernel adds those up in a fixed order, so that results
have the same bits every time. Partial results of a matrix are (parts, lines), lines contiguous.
"""

# mypy: disable-error-code="no-untyped-def, import-untyped, import-not-found"

import triton
import triton.language as tl

from orthoopt.kernels.triton_jit_steps import number, tile_of

# Of a Launch's record, after the strides of the three sides.
FIELDS, SIDES = tl.constexpr(18), tl.constexpr(3)
ROW_LINE, COL_LINE, ROW_PART, COL_PART, ROW_PROGRAM = (
    tl.constexpr(13), tl.constexpr(14), tl.constexpr(15), tl.constexpr(16), tl.constexpr(17)
)  # fmt: skip
# Of a record of LineSets.
SET_FIELDS = tl.constexpr(7)
SET_LINES, SET_PARTS, SET_LINE, SET_PART, SET_ROW_PROGRAM, SET_ROWS = (
    tl.constexpr(1), tl.constexpr(2), tl.constexpr(3), tl.constexpr(4), tl.constexpr(5), tl.constexpr(6)
)  # fmt: skip
LINES = tl.constexpr(512)
PARTS = tl.constexpr(8)
STEP = tl.constexpr(512)


@triton.jit
def move(
    pointers, entry, record, matrix, i, j, exists, decay, weight, from_grad, from_buffer,
    HAS_GRAD: tl.constexpr, GRAD: tl.constexpr, GRAD_ORDER: tl.constexpr, BUFFER_ORDER: tl.constexpr,
    ALIGNED: tl.constexpr, TILE_R: tl.constexpr, TILE_C: tl.constexpr,
):  # fmt: skip
    """Move a tile of momentum; returns the signal, 0 outside."""
    grads = tile_of(pointers, entry, record, matrix, i, j, 0, SIDES, GRAD, GRAD_ORDER, ALIGNED, TILE_R, TILE_C)
    buffers = tile_of(
        pointers, entry, record, matrix, i, j, 1, SIDES, tl.float32, BUFFER_ORDER, ALIGNED, TILE_R, TILE_C
    )
    grad = tl.load(grads, mask=exists, other=0).to(tl.float32)
    buffer = decay * tl.load(buffers, mask=exists, other=0) + weight * grad
    tl.store(buffers, buffer, mask=exists)
    signal = from_buffer * buffer
    if HAS_GRAD:  # 0 times infinity is not 0
        signal += from_grad * grad
    return signal


@triton.jit
def signal_of(
    pointers, entry, record, matrix, i, j, exists, from_grad, from_buffer,
    HAS_GRAD: tl.constexpr, GRAD: tl.constexpr, GRAD_ORDER: tl.constexpr, BUFFER_ORDER: tl.constexpr,
    ALIGNED: tl.constexpr, TILE_R: tl.constexpr, TILE_C: tl.constexpr,
):  # fmt: skip
    """The signal of a momentum that has moved, 0 outside."""
    buffers = tile_of(
        pointers, entry, record, matrix, i, j, 1, SIDES, tl.float32, BUFFER_ORDER, ALIGNED, TILE_R, TILE_C
    )
    signal = from_buffer * tl.load(buffers, mask=exists, other=0)
    if HAS_GRAD:
        grads = tile_of(pointers, entry, record, matrix, i, j, 0, SIDES, GRAD, GRAD_ORDER, ALIGNED, TILE_R, TILE_C)
        signal += from_grad * tl.load(grads, mask=exists, other=0).to(tl.float32)
    return signal


@triton.jit
def subtract(
    pointers, entry, record, matrix, i, j, exists, direction, scales, lr, keep,
    LR_TENSOR: tl.constexpr, KEEP_TENSOR: tl.constexpr, PARAM: tl.constexpr, PARAM_ORDER: tl.constexpr,
    ALIGNED: tl.constexpr, TILE_R: tl.constexpr, TILE_C: tl.constexpr,
):  # fmt: skip
    """``param ← keep·param − lr·scale·direction`` in a tile."""
    params = tile_of(pointers, entry, record, matrix, i, j, 2, SIDES, PARAM, PARAM_ORDER, ALIGNED, TILE_R, TILE_C)
    param = tl.load(params, mask=exists, other=0).to(tl.float32)
    factor = number(lr, LR_TENSOR) * tl.load(scales + tl.load(record + 3))
    tl.store(params, (number(keep, KEEP_TENSOR) * param - factor * direction).to(PARAM), mask=exists)


@triton.jit
def one_for_zero(x):
    """What may be divided by: 1 where x is 0."""
    return tl.where(x == 0, 1.0, x)


@triton.jit
def line_places(record, matrix, i, TILE: tl.constexpr, SIZE: tl.constexpr):
    """A tile's rows (SIZE 1) or columns (SIZE 2): their places among the lines of the entry, and which exist."""
    lines = tl.load(record + SIZE)
    line = i.to(tl.int64) * TILE + tl.arange(0, TILE)
    return matrix * lines + line, line < lines


@triton.jit
def part_places(record, matrix, i, j, TILE: tl.constexpr, OTHER: tl.constexpr, SIZE: tl.constexpr):
    """Where the partial results of a tile's lines are among those of the entry; i along the lines, j across."""
    lines = tl.load(record + SIZE)
    parts = tl.cdiv(tl.load(record + (3 - SIZE)), OTHER)
    return (matrix * parts + j) * lines + i.to(tl.int64) * TILE + tl.arange(0, TILE)


@triton.jit
def find_lines(sets, owners):
    """This program's set of lines, its matrix, and its first line."""
    record = sets + tl.load(owners + tl.program_id(0)).to(tl.int64) * SET_FIELDS
    index = tl.program_id(0) - tl.load(record)
    blocks = tl.cdiv(tl.load(record + SET_LINES), LINES)
    return record, index // blocks, index % blocks * LINES


@triton.jit
def greatest(values, first, count):
    """The largest of ``values[first : first + count]``, none below 0."""
    best = tl.zeros((STEP,), tl.float32)
    for start in range(0, count, STEP):
        i = start + tl.arange(0, STEP)
        best = tl.maximum(best, tl.load(values + first + i, mask=i < count, other=0))
    return tl.max(best, 0)


@triton.jit
def total(values, first, count):
    """The sum of ``values[first : first + count]``, in their dtype."""
    sums = tl.zeros((STEP,), values.dtype.element_ty)
    for start in range(0, count, STEP):
        i = start + tl.arange(0, STEP)
        sums += tl.load(values + first + i, mask=i < count, other=0)
    return tl.sum(sums, 0)


@triton.jit
def total_over_parts(partials, record, matrix, line):
    """Of LINES lines from ``line`` on, the sum of their partial results."""
    lines = tl.load(record + SET_LINES)
    parts = tl.load(record + SET_PARTS)
    first = partials + tl.load(record + SET_PART) + matrix * parts * lines
    i = line + tl.arange(0, LINES)
    sums = tl.zeros((PARTS, LINES), tl.float32)
    for start in range(0, parts, PARTS):
        part = start + tl.arange(0, PARTS)
        mask = (part < parts)[:, None] & (i < lines)[None, :]
        sums += tl.load(first + part[:, None] * lines + i[None, :], mask=mask, other=0)
    return tl.sum(sums, 0)
