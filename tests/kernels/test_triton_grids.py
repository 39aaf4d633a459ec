"""The order of programs: every tile once, in groups, at sizes where a rounded root is off by one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from interpreter import interpreted, needs_triton

pytestmark = [needs_triton, interpreted]

if interpreted.args[0] is False:
    import triton
    import triton.language as tl

    from orthoopt.kernels.triton_jit_products import rectangle_cell, triangle_cell, triangle_row

    @triton.jit
    def _triangle(out, blocks, cells, GROUP: tl.constexpr, SIZE: tl.constexpr):
        index = tl.arange(0, SIZE)
        row, col = triangle_cell(tl.minimum(index, cells - 1), blocks, GROUP)
        tl.store(out + index, row, mask=index < cells)
        tl.store(out + cells + index, col, mask=index < cells)

    @triton.jit
    def _rectangle(out, blocks_m, blocks_n, GROUP: tl.constexpr, SIZE: tl.constexpr):
        index = tl.arange(0, SIZE)
        cells = blocks_m * blocks_n
        row, col = rectangle_cell(tl.minimum(index, cells - 1), blocks_m, blocks_n, GROUP)
        tl.store(out + index, row, mask=index < cells)
        tl.store(out + cells + index, col, mask=index < cells)

    @triton.jit
    def _rows(out, first, SIZE: tl.constexpr):
        index = tl.arange(0, SIZE)
        tl.store(out + index, triangle_row(first + index))


def power_of_two(count: int) -> int:
    return 1 << (count - 1).bit_length()


@pytest.mark.parametrize("group", [1, 3, 8])
def test_every_cell_of_a_triangle_once_and_no_other(group: int) -> None:
    for blocks in (1, 2, 3, 7, 8, 9, 24, 33):
        cells = blocks * (blocks + 1) // 2
        out = torch.full((2, cells), -1, dtype=torch.int32)
        _triangle[(1,)](out, blocks, cells, group, power_of_two(cells))
        found = list(zip(*out.tolist(), strict=True))
        assert set(found) == {(row, col) for row in range(blocks) for col in range(row + 1)}
        # Groups follow each other, so that the rows in flight are few.
        assert [row // group for row, _ in found] == sorted(row // group for row, _ in found)


@pytest.mark.parametrize("group", [1, 3, 8])
def test_every_cell_of_a_rectangle_once_and_no_other(group: int) -> None:
    for blocks_m, blocks_n in ((1, 1), (2, 5), (8, 3), (9, 4), (17, 2), (1, 30)):
        out = torch.full((2, blocks_m * blocks_n), -1, dtype=torch.int32)
        _rectangle[(1,)](out, blocks_m, blocks_n, group, power_of_two(blocks_m * blocks_n))
        found = list(zip(*out.tolist(), strict=True))
        assert set(found) == {(row, col) for row in range(blocks_m) for col in range(blocks_n)}
        assert [row // group for row, _ in found] == sorted(row // group for row, _ in found)


@pytest.mark.parametrize("row", [1, 2, 181, 2895, 4096, 8191, 12345, 16000])
def test_rows_change_where_they_should(row: int) -> None:
    """At row 16000 8p is above 2³⁰, where float32 holds every 64th whole number."""
    first = row * (row + 1) // 2 - 1
    out = torch.zeros(4, dtype=torch.int32)
    _rows[(1,)](out, first, 4)
    expected = [row - 1, row, row, row + (1 if row == 1 else 0)]
    assert out.tolist() == expected


@pytest.mark.parametrize("off", [-1, 1])
def test_a_root_off_by_one_is_corrected(off: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a device whose square root is rounded otherwise would have it."""
    true = np.sqrt
    monkeypatch.setattr("triton.runtime.interpreter.np.sqrt", lambda x: true(x) + np.float32(2 * off) * (x > 9))
    index = torch.zeros(16, dtype=torch.int32)
    _rows[(1,)](index, 3, 16)
    assert index.tolist() == [row for row in range(2, 6) for _ in range(row + 1)][:16]
