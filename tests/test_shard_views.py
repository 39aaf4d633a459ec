"""What a shard is of a parameter's matrices, against the pieces of a tensor of indices cut by hand."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_views_properties import specs
from torch import Tensor

from orthoopt.distributed.shard_views import Box, cut_of, pieces_of_shard
from orthoopt.views import parse_view

Shape = tuple[int, ...]


def indices(shape: Shape) -> Tensor:
    return torch.arange(math.prod(shape)).reshape(shape)


def at(ranges: tuple[tuple[int, int], ...]) -> tuple[slice, ...]:
    return tuple(slice(begin, end) for begin, end in ranges)


def local(tensor: Tensor, box: Box) -> Tensor:
    return tensor[at(tuple((offset, offset + size) for offset, size in zip(*box, strict=True)))]


@st.composite
def grids(draw: st.DrawFn, shape: Shape) -> list[Box]:
    """Boxes that a tensor is cut into: a few cuts along some dimensions, uneven, empty ones too."""
    sides = []
    for size in shape:
        cuts = draw(st.lists(st.integers(0, size), max_size=2)) if draw(st.booleans(), label="cut") else []
        edges = [0, *sorted(cuts), size]
        sides.append([(a, b - a) for a, b in itertools.pairwise(edges)])
    return [(tuple(o for o, _ in spans), tuple(s for _, s in spans)) for spans in itertools.product(*sides)]


def chunks(shape: Shape, count: int, dim: int = 0) -> list[Box]:
    """As torch cuts one dimension: ranks beyond the last row have nothing."""
    step = -(-shape[dim] // count)
    edges = [min(i * step, shape[dim]) for i in range(count + 1)]
    offsets = [tuple(a if d == dim else 0 for d in range(len(shape))) for a in edges[:-1]]
    sizes = [tuple(b - a if d == dim else s for d, s in enumerate(shape)) for a, b in itertools.pairwise(edges)]
    return list(zip(offsets, sizes, strict=True))


@given(st.data())
def test_a_part_is_a_box_of_its_piece(data: st.DataObject) -> None:
    """Drawn views and boxes: ``part.of(local)`` is the piece's own range, all boxes together are all of every piece."""
    shape = tuple(data.draw(st.lists(st.integers(1, 6), min_size=1, max_size=4), label="shape"))
    spec = data.draw(specs(shape), label="view")
    if len(shape) == 1 and not spec.startswith("column"):
        return
    view, whole = parse_view(spec), indices(shape)
    pieces, boxes = view.pieces(whole), data.draw(grids(shape), label="boxes")
    seen: list[list[Tensor]] = [[] for _ in pieces]
    for box in boxes:
        parts = pieces_of_shard(view, shape, box)
        if parts is None:
            assert any(word.startswith(("head", "join", "flatten")) for word in spec.split(" "))
            return
        assert [part.piece for part in parts] == list(range(len(pieces)))
        for part in parts:
            mine, piece = part.of(local(whole, box)), pieces[part.piece]
            assert mine.shape == part.shape
            assert torch.equal(mine, piece[at(part.ranges)])
            assert part.shard[:2] == tuple(piece.shape[-2:])
            if mine.numel():
                assert part.shard[2:4] == (part.ranges[-2][0], part.ranges[-1][0])
            seen[part.piece].append(mine.flatten())
    for found, piece in zip(seen, pieces, strict=True):
        assert torch.equal(torch.cat(found).sort().values, piece.flatten().sort().values)


@given(st.data())
def test_a_cut_says_what_all_ranks_have(data: st.DataObject) -> None:
    """Apart: every rank has whole matrices. Else all have parts of all matrices, and the flags say along what."""
    shape = tuple(data.draw(st.lists(st.integers(1, 6), min_size=2, max_size=4), label="shape"))
    view = parse_view(data.draw(specs(shape), label="view"))
    boxes = data.draw(grids(shape), label="boxes")
    cut = cut_of(view, shape, boxes)
    if cut is None:
        return
    for index, whole in enumerate(view.piece_shapes(shape)):
        parts = [rank[index] for rank in cut.parts]
        flags = {part.shard[4:] for part in parts}
        assert flags == {tuple(any(part.shape[dim] < whole[dim] for part in parts) for dim in (-2, -1))}
        for part in parts:
            if cut.apart:
                assert part.shape[-2:] == whole[-2:] or math.prod(part.shape[:-2]) == 0
            else:
                assert part.shape[:-2] == whole[:-2]


@pytest.mark.parametrize("layout", ["contiguous", "strided"])
def test_writing_a_part_writes_the_shard(layout: str) -> None:
    """What is subtracted from a part must reach the parameter."""
    view, shape = parse_view("transpose split(4,2,2)"), (6, 8)
    stored = torch.zeros(12, 16)[::2, ::2] if layout == "strided" else torch.zeros(6, 8)
    cut = cut_of(view, shape, chunks(shape, 4))
    assert cut is not None and not cut.apart
    for rank, box in zip(cut.parts, chunks(shape, 4), strict=True):
        for part in rank:
            part.of(local(stored, box)).add_(part.piece + 1)
    assert torch.equal(stored, torch.tensor([1.0] * 4 + [2.0] * 2 + [3.0] * 2).expand(6, 8))


@pytest.mark.parametrize(
    ("spec", "shape", "dim", "count", "apart"),
    [
        ("matrix", (7, 3), 0, 4, False),
        ("matrix", (8, 5, 3), 0, 4, True),
        ("matrix", (2, 5, 3), 0, 4, True),  # fewer experts than ranks
        ("matrix", (8, 5, 3), 1, 4, False),
        ("matrix", (8, 5, 3), 2, 4, False),
        ("transpose interleave(2)", (4, 6, 10), 2, 3, False),
        ("transpose split(8,2,2)", (6, 12), 0, 4, False),
        ("split(8,2,2)", (12, 6), 0, 3, False),
        ("interleave(2)", (10, 6), 0, 4, False),
        ("heads(4)", (12, 6), 0, 2, True),
        ("heads(4)", (12, 6), 1, 2, False),
        ("heads_in(2)", (6, 8), 1, 2, True),
        ("heads_in(2)", (6, 8), 0, 4, False),
        ("heads(1)", (12, 6), 0, 5, False),
        ("heads(4) split(2,2,2) join", (24, 5), 0, 2, False),
        ("flatten", (8, 3, 2, 2), 0, 3, False),
        ("flatten", (8, 3, 2, 2), 1, 3, False),
        ("column", (9,), 0, 4, False),
    ],
)
def test_usual_layouts_are_boxes(spec: str, shape: Shape, dim: int, count: int, apart: bool) -> None:
    cut = cut_of(parse_view(spec), shape, chunks(shape, count, dim))
    assert cut is not None and cut.apart == apart


@pytest.mark.parametrize(
    ("spec", "shape", "dim", "count"),
    [
        ("heads(4)", (12, 6), 0, 3),  # 4 rows are one head and a third
        ("heads(2)", (12, 6), 0, 4),  # boxes, but of half the matrices
        ("flatten", (8, 3, 2, 2), 2, 2),  # every other pair of columns
    ],
)
def test_what_is_no_box_is_needed_whole(spec: str, shape: Shape, dim: int, count: int) -> None:
    assert cut_of(parse_view(spec), shape, chunks(shape, count, dim)) is None


@pytest.mark.parametrize("box", [((0, 0), (3, 5)), ((2, 0), (2, 4)), ((0,), (3,))])
def test_a_box_outside_is_refused(box: Box) -> None:
    with pytest.raises(ValueError, match=r"offsets .* does not lie in a tensor of shape \(3, 4\)"):
        pieces_of_shard(parse_view("matrix"), (3, 4), box)
