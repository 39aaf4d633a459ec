"""The Triton kernels of AuON's published factor. Imports Triton: read only once one of them is launched.

r² = mean cosh²z = 1 + mean sinh²z, z = X/‖X‖_F, and sinh²z = Σₖ 2^(2k−1)/(2k)!·z^2k: one pass that sums even powers of
X gives the norm and the factor. Moments of a tile are its largest magnitude and those sums of the tile over it.
"""

# mypy: disable-error-code="no-untyped-def, import-untyped, import-not-found"

import triton
import triton.language as tl

from orthoopt.kernels.triton_jit_lines import (
    FIELDS,
    LINES,
    SET_LINES,
    SET_PART,
    STEP,
    find_lines,
    greatest,
    move,
    one_for_zero,
)
from orthoopt.kernels.triton_jit_steps import find_tile, tile_mask

# Terms of sinh²; the seventh is 9.4e-8 of z¹⁴, and |z| is at most one.
POWERS = tl.constexpr(6)
SET_ELEMENTS = tl.constexpr(6)


@triton.jit(do_not_specialize=["stride"], do_not_specialize_on_alignment=["pointers"])
def powers_kernel(
    pointers, records, owners, decay, weight, from_grad, from_buffer, gate, moments, stride,
    HAS_GRAD: tl.constexpr, GRAD: tl.constexpr, GRAD_ORDER: tl.constexpr, BUFFER_ORDER: tl.constexpr,
    ALIGNED: tl.constexpr, ROW_VECTORS: tl.constexpr, COL_VECTORS: tl.constexpr,
    TILE_R: tl.constexpr, TILE_C: tl.constexpr,
):  # fmt: skip
    """Momentum moves; the moments of each tile, ``(1 + POWERS, tiles)``."""
    entry, record, matrix, i, j = find_tile(records, owners, FIELDS, TILE_R, TILE_C)
    exists = tile_mask(record, i, j, gate, ROW_VECTORS, COL_VECTORS, TILE_R, TILE_C)
    signal = move(
        pointers, entry, record, matrix, i, j, exists, decay, weight, from_grad, from_buffer,
        HAS_GRAD, GRAD, GRAD_ORDER, BUFFER_ORDER, ALIGNED, TILE_R, TILE_C,
    )  # fmt: skip
    peak = tl.max(tl.max(tl.abs(signal), 1), 0)
    scaled = signal / one_for_zero(peak)
    square = scaled * scaled
    power = square
    place = moments + tl.program_id(0)
    tl.store(place, peak)
    for k in tl.static_range(1, POWERS + 1):
        tl.store(place + k * stride, tl.sum(tl.sum(power, 1), 0))
        power *= square


@triton.jit
def total_moment(moments, stride, first, count, unit, K: tl.constexpr):
    """The sum of 2K-th powers over ``unit``, of ``count`` moments from ``first`` on."""
    sums = tl.zeros((STEP,), tl.float32)
    for start in range(0, count, STEP):
        i = start + tl.arange(0, STEP)
        ratio = tl.load(moments + first + i, mask=i < count, other=0) / unit
        term = tl.load(moments + K * stride + first + i, mask=i < count, other=0)
        for _ in tl.static_range(2 * K):
            term *= ratio
        sums += term
    return tl.sum(sums, 0)


@triton.jit(do_not_specialize=["stride", "added_stride"])
def add_powers_kernel(sets, owners, moments, stride, added, added_stride):
    """Moments of tiles added up, block by block of tiles of one matrix."""
    record, matrix, line = find_lines(sets, owners)
    tiles = tl.load(record + SET_LINES)
    first = tl.load(record + SET_PART) + matrix * tiles + line
    count = tl.minimum(tiles - line, LINES)
    peak = greatest(moments, first, count)
    tl.store(added + tl.program_id(0), peak)
    for k in tl.static_range(1, POWERS + 1):
        place = added + tl.program_id(0) + k * added_stride
        tl.store(place, total_moment(moments, stride, first, count, one_for_zero(peak), k))


@triton.jit(do_not_specialize=["stride"])
def paper_divisor_kernel(sets, owners, added, stride, divisors):
    """‖X‖_F·r of each matrix, at the place of its first block of tiles."""
    record, matrix, line = find_lines(sets, owners)
    if line == 0:
        first = tl.program_id(0)
        count = tl.cdiv(tl.load(record + SET_LINES), LINES)
        peak = greatest(added, first, count)
        unit = one_for_zero(peak)
        square = total_moment(added, stride, first, count, unit, 1)
        shrink = 1.0 / one_for_zero(square)
        # Where a power of 1/‖X‖² underflows, its term does not count.
        power = shrink
        sinh2 = square * power
        power *= shrink
        sinh2 += total_moment(added, stride, first, count, unit, 2) * power * (1.0 / 3)
        power *= shrink
        sinh2 += total_moment(added, stride, first, count, unit, 3) * power * (2.0 / 45)
        power *= shrink
        sinh2 += total_moment(added, stride, first, count, unit, 4) * power * (1.0 / 315)
        power *= shrink
        sinh2 += total_moment(added, stride, first, count, unit, 5) * power * (2.0 / 14175)
        power *= shrink
        sinh2 += total_moment(added, stride, first, count, unit, 6) * power * (2.0 / 467775)
        factor = tl.sqrt_rn(1 + sinh2 / tl.load(record + SET_ELEMENTS).to(tl.float32))
        tl.store(divisors + first, peak * tl.sqrt_rn(square) * factor)
