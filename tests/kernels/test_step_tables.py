"""Blocks and tables by which kernels walk many tensors, walked here on the host."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from stored import LAYOUTS, Stored, noise
from torch import Tensor

from orthoopt.kernels import pointer_table
from orthoopt.kernels.blocks import COLS, NEITHER, ROWS, VECTOR, Block, elementwise_blocks, matrix_blocks
from orthoopt.kernels.device_cache import Cache, constants
from orthoopt.kernels.pointer_table import LINES_A_PROGRAM, launches

DTYPES = st.sampled_from([torch.float32, torch.bfloat16, torch.float16])
sizes = st.sampled_from([1, 1, 2, 3, 8, 16])
shapes = st.lists(st.sampled_from([1, 1, 2, 3, 4]), min_size=0, max_size=5).map(tuple)


def places(block: Block, side: int) -> list[int]:
    """Offsets of a block's elements, by batch, row and column."""
    steps = block.strides[side]
    ranges = itertools.product(*(range(size) for size in block.shape))
    return [block.offsets[side] + sum(i * step for i, step in zip(place, steps, strict=True)) for place in ranges]


def offsets(tensor: Tensor) -> list[int]:
    ranges = itertools.product(*(range(size) for size in tensor.shape))
    return [sum(i * step for i, step in zip(place, tensor.stride(), strict=True)) for place in ranges]


@given(shapes, st.lists(st.sampled_from(LAYOUTS), min_size=1, max_size=3), st.integers(0, 2))
def test_blocks_pair_every_element_of_all_sides_once(shape: tuple[int, ...], layouts: list[str], primary: int) -> None:
    memory = Stored()
    sides = [memory.put(noise(shape, 0), layout, torch.float32) for layout in layouts]
    expected = sorted(zip(*map(offsets, sides), strict=True))
    strides = [side.stride() for side in sides]
    blocks = elementwise_blocks(shape, strides, primary % len(sides))
    assert (
        sorted(pair for block in blocks for pair in zip(*(places(block, s) for s in range(len(sides))), strict=True))
        == expected
    )
    if len(shape) > 1:
        rows_first = matrix_blocks(shape, strides)
        found = [
            pair for block in rows_first for pair in zip(*(places(block, s) for s in range(len(sides))), strict=True)
        ]
        assert sorted(found) == expected
        assert all(block.shape[1:] == shape[-2:] for block in rows_first)


@given(st.tuples(sizes, sizes, sizes), st.lists(st.sampled_from(LAYOUTS), min_size=1, max_size=2), DTYPES)
def test_aligned_runs_start_and_end_at_vectors(shape: tuple[int, ...], layouts: list[str], dtype: torch.dtype) -> None:
    """What kernels are told of addresses holds for every run; extents across runs may be anything."""
    memory = Stored()
    sides = [memory.put(noise(shape, 0), layout, dtype) for layout in layouts]
    size = sides[0].element_size()
    for block in elementwise_blocks(shape, [side.stride() for side in sides], 0):
        starts = [side.data_ptr() % 16 for side in sides]
        aligned = block.aligned(starts, [size] * len(sides))
        along = [order != NEITHER and block.shape[2 if order == ROWS else 1] % VECTOR == 0 for order in block.orders]
        runs_fit = all(along)
        for side, order in enumerate(block.orders):
            batch, rows, cols = block.shape
            across = rows if order == ROWS else cols
            steps = block.strides[side]
            for b, i in itertools.product(range(batch), range(across)):
                start = block.offsets[side] + b * steps[0] + i * steps[1 if order == ROWS else 2]
                runs_fit &= (starts[side] + start * size) % 16 == 0
            if order in (ROWS, COLS):
                assert block.strides[side][2 if order == ROWS else 1] in (0, 1)
        assert runs_fit or not aligned  # it may miss a chance, never claim one


def test_dense_tensors_are_one_run_whatever_their_order() -> None:
    for shape in ((6, 4, 5), (7, 9)):
        x = torch.empty(shape)
        for view in (x, x.mT, x.permute(*range(x.ndim - 1, -1, -1))):
            (block,) = elementwise_blocks(view.shape, [view.stride()] * 2, 0)
            assert block.shape == (1, 1, x.numel()) and block.orders == (ROWS, ROWS) and block.tile == (1, 4096)
    (block,) = elementwise_blocks((7, 9), [(9, 1), (1, 7)], 0)
    assert block.orders == (ROWS, COLS) and block.tile == (64, 64)
    (block,) = matrix_blocks((7, 9), [(1, 7)])
    assert block.orders == (COLS,) and block.tile == (128, 32)


@given(st.lists(st.tuples(sizes, st.integers(1, 700), st.integers(1, 300)), min_size=1, max_size=4))
def test_programs_meet_every_tile_and_line_once(shapes: list[tuple[int, int, int]]) -> None:
    tensors = [torch.empty(shape) for shape in shapes]
    for launch in launches({"grads": tensors}, lines="both"):
        assert launch.sets is not None and launch.owners.shape == (launch.programs,)
        tile_rows, tile_cols = launch.tile
        records, met = launch.records.tolist(), Counter(launch.owners.tolist())
        for program, owner in enumerate(launch.owners.tolist()):
            first, rows, cols, item = records[owner][:4]
            tiles = math.prod(shapes[item][:-2]) * -(-rows // tile_rows) * -(-cols // tile_cols)
            assert (rows, cols) == shapes[item][-2:] and 0 <= program - first < tiles == met[owner]
        lines, parts = set(), set()
        for first, count, partial_count, line, partial, row_program, rows in launch.sets.records.tolist():
            programs = [
                i for i, owner in enumerate(launch.sets.owners.tolist()) if launch.sets.records[owner, 0] == first
            ]
            blocks = -(-count // LINES_A_PROGRAM)
            assert programs[0] == first and len(programs) % blocks == 0 and row_program <= first and rows > 0
            batch = len(programs) // blocks
            new_lines = set(range(line, line + batch * count))
            new_parts = set(range(partial, partial + batch * count * partial_count))
            assert not new_lines & lines and not new_parts & parts
            lines |= new_lines
            parts |= new_parts
        assert lines == set(range(launch.sets.lines)) and parts == set(range(launch.sets.partials))


def test_tables_are_made_once_and_plans_outlive_moved_gradients() -> None:
    params, grads = ([torch.randn(4, 6) for _ in range(3)] for _ in range(2))
    (first,) = launches({"params": params, "updates": grads})
    (again,) = launches({"params": params, "updates": grads})
    assert again is first
    assert first.pointers.tolist() == [t.data_ptr() for pair in zip(params, grads, strict=True) for t in pair]
    moved = [grad.clone() for grad in grads]
    (other,) = launches({"params": params, "updates": moved})
    assert other.records is first.records and other.owners is first.owners
    assert other.pointers.tolist() == [t.data_ptr() for pair in zip(params, moved, strict=True) for t in pair]


def test_a_cache_forgets_the_oldest() -> None:
    cache, made = Cache(32), []

    def get(key: int) -> int:
        return cache.get(key, torch.device("cpu"), lambda: (made.append(key) or key, []))

    for key in range(40):
        assert get(key) == key
    assert get(39) == 39 and len(made) == 40
    assert get(0) == 0 and len(made) == 41


def test_constants_are_cached_by_value() -> None:
    cpu = torch.device("cpu")
    assert constants([1.0, 0.1], cpu) is constants((1.0, 0.1), cpu)
    assert constants([1.0, 0.1], cpu).tolist() == [1.0, torch.tensor(0.1).item()]


def test_subclasses_are_not_taken() -> None:
    class Odd(Tensor):
        pass

    with pytest.raises(TypeError, match="kernels take dense torch.Tensor alone, got Odd"):
        pointer_table.launches({"grads": [torch.empty(2).as_subclass(Odd)]})
