"""The Triton kernels of the matrix products. Imports Triton: read only once one of them is launched."""

# mypy: disable-error-code="no-untyped-def"

import triton
import triton.language as tl


@triton.jit
def triangle_row(index):
    """Row of the ``index``-th cell of a lower triangle counted row by row: 0, 1 1, 2 2 2, ..."""
    row = ((tl.sqrt((8 * index + 1).to(tl.float32)) - 1) * 0.5).to(tl.int32)
    # The root is rounded, to one unit on some devices; near a whole number the floor may be off by one.
    row = tl.where(row * (row + 1) // 2 > index, row - 1, row)
    return tl.where((row + 1) * (row + 2) // 2 <= index, row + 1, row)


@triton.jit
def triangle_cell(index, blocks, GROUP: tl.constexpr):
    """``(row, col)``, col <= row, of a lower triangle of ``blocks`` rows, each cell once.

    Cells go group by group of GROUP rows and column-major inside one, so that programs that run at the same time
    read few different rows and columns, which then stay in L2. Before a group of first row f lie f(f+1)/2 cells.
    """
    first = triangle_row(index) // GROUP * GROUP
    height = tl.minimum(GROUP, blocks - first)
    index -= first * (first + 1) // 2
    corner = index - height * first
    # The rectangle left of the group's own triangle, then the triangle.
    triangle = triangle_row(tl.maximum(corner, 0))
    row = tl.where(corner < 0, index % height, triangle)
    col = tl.where(corner < 0, index // height, first + corner - triangle * (triangle + 1) // 2)
    return first + row, col


@triton.jit
def rectangle_cell(index, blocks_m, blocks_n, GROUP: tl.constexpr):
    """``(row, col)`` of a rectangle of blocks, in groups of GROUP rows, column-major inside one."""
    group = index // (GROUP * blocks_n)
    first = group * GROUP
    height = tl.minimum(GROUP, blocks_m - first)
    index -= group * GROUP * blocks_n
    return first + index % height, index // height


@triton.jit
def scalar_of(value, batch, stride, IS_TENSOR: tl.constexpr):
    """A number, or the batch's own from device memory."""
    if IS_TENSOR:
        return tl.load(value + batch * stride)
    else:
        return value


@triton.jit
def tile_product(
    left, right, rows, cols, depth, left_row, left_k, right_col, right_k,
    TILE_M: tl.constexpr, TILE_N: tl.constexpr, TILE_K: tl.constexpr, EVEN_K: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Sum over k of ``left[i, k]·right[k, j]`` in float32; the pointers stand at the tile's first row and column.

    ``rows`` and ``cols`` say how much of the tile exists. Offsets inside a tile are 32-bit, pointers move in 64.
    """
    at_m = tl.arange(0, TILE_M)
    at_n = tl.arange(0, TILE_N)
    at_k = tl.arange(0, TILE_K)
    lefts = left + (at_m[:, None] * left_row + at_k[None, :] * left_k)
    rights = right + (at_k[:, None] * right_k + at_n[None, :] * right_col)
    in_m = at_m[:, None] < rows
    in_n = at_n[None, :] < cols
    # In 64 bits: with a long stride a step may exceed 32.
    left_step = tl.cast(left_k, tl.int64) * TILE_K
    right_step = tl.cast(right_k, tl.int64) * TILE_K
    total = tl.zeros((TILE_M, TILE_N), tl.float32)
    for start in range(0, depth, TILE_K):
        if EVEN_K:
            a = tl.load(lefts, mask=in_m, other=0.0)
            b = tl.load(rights, mask=in_n, other=0.0)
        else:
            a = tl.load(lefts, mask=in_m & (at_k[None, :] < depth - start), other=0.0)
            b = tl.load(rights, mask=in_n & (at_k[:, None] < depth - start), other=0.0)
        if UPCAST:
            a = a.to(tl.float32)
            b = b.to(tl.float32)
        total = tl.dot(a, b, total, input_precision="ieee")
        lefts += left_step
        rights += right_step
    return total


@triton.jit
def symmetric_product_kernel(
    left, right, addend, out, alpha, beta,
    size, depth, blocks,
    left_batch, left_row, left_k, right_batch, right_row, right_k,
    addend_batch, addend_row, addend_col, out_batch, out_row, out_col, alpha_stride, beta_stride,
    ALPHA_TENSOR: tl.constexpr, BETA_TENSOR: tl.constexpr, ADDEND: tl.constexpr, EVEN_K: tl.constexpr,
    UPCAST: tl.constexpr, TILE: tl.constexpr, TILE_K: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """``alpha·L Rᵀ + beta·C``, known to be symmetric: the lower triangle is computed, the upper one mirrored.

    One program a tile of the triangle; the batch is the slowest index.
    """
    cells = blocks * (blocks + 1) // 2
    batch = (tl.program_id(0) // cells).to(tl.int64)
    block_m, block_n = triangle_cell(tl.program_id(0) % cells, blocks, GROUP)
    first_m = (block_m * TILE).to(tl.int64)
    first_n = (block_n * TILE).to(tl.int64)
    rows = size - block_m * TILE
    cols = size - block_n * TILE
    total = tile_product(
        left + batch * left_batch + first_m * left_row,
        right + batch * right_batch + first_n * right_row,
        rows, cols, depth, left_row, left_k, right_row, right_k,
        TILE, TILE, TILE_K, EVEN_K, UPCAST,
    )  # fmt: skip
    total *= scalar_of(alpha, batch, alpha_stride, ALPHA_TENSOR)
    at_m = tl.arange(0, TILE)[:, None]
    at_n = tl.arange(0, TILE)[None, :]
    if ADDEND:
        addend += batch * addend_batch + first_m * addend_row + first_n * addend_col
        tile = tl.load(addend + (at_m * addend_row + at_n * addend_col), mask=(at_m < rows) & (at_n < cols), other=0.0)
        total += scalar_of(beta, batch, beta_stride, BETA_TENSOR) * tile.to(tl.float32)
    result = total.to(out.dtype.element_ty)
    out += batch * out_batch
    if block_m == block_n:
        # Products of two matrices, and of some tensor cores, differ across the diagonal by rounding.
        result = tl.where(at_m >= at_n, result, tl.trans(result))
    else:
        # Transposed in registers, so that both stores run along rows of memory.
        mirror = out + first_n * out_row + first_m * out_col
        tl.store(mirror + (at_m * out_row + at_n * out_col), tl.trans(result), mask=(at_m < cols) & (at_n < rows))
    out += first_m * out_row + first_n * out_col
    tl.store(out + (at_m * out_row + at_n * out_col), result, mask=(at_m < rows) & (at_n < cols))


@triton.jit
def axpy_product_kernel(
    x, b, out, scalar, alpha,
    size, length, blocks_m, blocks_n,
    x_batch, x_row, x_col, b_batch, b_row, b_col, out_batch, out_row, out_col, scalar_stride, alpha_stride,
    SCALAR_TENSOR: tl.constexpr, ALPHA_TENSOR: tl.constexpr, EVEN_K: tl.constexpr, UPCAST: tl.constexpr,
    TILE_M: tl.constexpr, TILE_N: tl.constexpr, TILE_K: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """``scalar·X + alpha·B X``: one program a tile, the batch is the slowest index."""
    cells = blocks_m * blocks_n
    batch = (tl.program_id(0) // cells).to(tl.int64)
    block_m, block_n = rectangle_cell(tl.program_id(0) % cells, blocks_m, blocks_n, GROUP)
    first_m = (block_m * TILE_M).to(tl.int64)
    first_n = (block_n * TILE_N).to(tl.int64)
    rows = size - block_m * TILE_M
    cols = length - block_n * TILE_N
    x += batch * x_batch + first_n * x_col
    total = tile_product(
        b + batch * b_batch + first_m * b_row, x,
        rows, cols, size, b_row, b_col, x_col, x_row,
        TILE_M, TILE_N, TILE_K, EVEN_K, UPCAST,
    )  # fmt: skip
    at_m = tl.arange(0, TILE_M)[:, None]
    at_n = tl.arange(0, TILE_N)[None, :]
    inside = (at_m < rows) & (at_n < cols)
    tile = tl.load(x + first_m * x_row + (at_m * x_row + at_n * x_col), mask=inside, other=0.0).to(tl.float32)
    total *= scalar_of(alpha, batch, alpha_stride, ALPHA_TENSOR)
    total += scalar_of(scalar, batch, scalar_stride, SCALAR_TENSOR) * tile
    out += batch * out_batch + first_m * out_row + first_n * out_col
    tl.store(out + (at_m * out_row + at_n * out_col), total.to(out.dtype.element_ty), mask=inside)
