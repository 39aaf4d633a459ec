"""Views: taking apart and merging are inverse, pieces share memory, and what does not fit says so."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from orthoopt.views import parse_view

DTYPES = [torch.float32, torch.int64, torch.float64]
Case = tuple[str, tuple[int, ...]]


def numbered(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
    """A tensor whose entries all differ, so that a misplaced one cannot hide."""
    return torch.arange(math.prod(shape)).reshape(shape).to(dtype)


@st.composite
def fitting_views(draw: st.DrawFn) -> Case:
    """A random chain of steps and a shape that it fits, grown backwards from the shape of a piece."""
    shape = [*draw(st.lists(st.integers(1, 2), max_size=1)), draw(st.integers(1, 3)), draw(st.integers(1, 3))]
    words: list[str] = []
    for _ in range(draw(st.integers(1, 3))):
        step = draw(st.sampled_from(["transpose", "split", "interleave", "heads", "heads_in", "head_size"]))
        if step == "transpose":
            words.append("transpose")
            shape[-2:] = [shape[-1], shape[-2]]
        elif step == "split":
            blocks = draw(st.integers(1, 3))
            words.append(f"split({','.join([str(shape[-2])] * blocks)})")
            shape[-2] *= blocks
        elif step == "interleave":
            count = draw(st.integers(1, 3))
            words.append(f"interleave({count})")
            shape[-2] *= count
        elif len(shape) > 2:
            words.append(f"{step}({shape[-2 if step == 'head_size' else -3]})")
            heads = shape.pop(-3)
            shape[-1 if step == "heads_in" else -2] *= heads
    if len(shape) == 2 and draw(st.booleans()):
        inputs = draw(st.sampled_from([n for n in range(1, shape[1] + 1) if shape[1] % n == 0]))
        words.append("flatten")
        shape = [shape[0], inputs, shape[1] // inputs, *draw(st.sampled_from([(), (1,), (1, 1)]))]
    return " ".join(reversed(words)) or "matrix", tuple(shape)


@given(fitting_views(), st.sampled_from(DTYPES))
@settings(max_examples=200, deadline=None)
def test_merging_the_pieces_gives_the_tensor_back(case: Case, dtype: torch.dtype) -> None:
    spec, shape = case
    tensor = numbered(shape, dtype)
    view = parse_view(spec)
    pieces = view.pieces(tensor)
    assert [tuple(piece.shape) for piece in pieces] == view.piece_shapes(shape)
    assert sum(piece.numel() for piece in pieces) == tensor.numel()
    merged = view.merge([piece.clone() for piece in pieces], shape)
    assert merged.shape == tensor.shape and merged.dtype == dtype
    assert torch.equal(merged, tensor)


@given(fitting_views(), st.booleans())
@settings(max_examples=200, deadline=None)
def test_writing_to_the_pieces_writes_the_tensor(case: Case, strided: bool) -> None:
    spec, shape = case
    tensor = numbered(shape)
    if strided and "flatten" not in spec:
        tensor = tensor.mT.contiguous().mT
    view = parse_view(spec)
    assert view.shares_memory(tensor)
    for piece in view.pieces(tensor):
        piece.neg_()
    assert torch.equal(tensor, -numbered(shape))  # every entry exactly once: twice would undo the sign


@pytest.mark.parametrize(
    ("spec", "shape", "expected"),
    [
        ("matrix", (2, 2), [[[0, 1], [2, 3]]]),
        ("transpose", (2, 2), [[[0, 2], [1, 3]]]),
        ("split(1,2)", (3, 2), [[[0, 1]], [[2, 3], [4, 5]]]),
        ("interleave(2)", (4, 1), [[[0], [2]], [[1], [3]]]),
        ("transpose split(1,1)", (2, 2), [[[0, 2]], [[1, 3]]]),
        ("transpose interleave(2)", (1, 2, 4), [[[[0, 4], [2, 6]]], [[[1, 5], [3, 7]]]]),
        ("heads(2)", (4, 1), [[[[0], [1]], [[2], [3]]]]),
        ("heads_in(2)", (2, 4), [[[[0, 1], [4, 5]], [[2, 3], [6, 7]]]]),
        ("heads(2) split(1,1)", (4, 1), [[[[0]], [[2]]], [[[1]], [[3]]]]),
        ("head_size(2)", (4, 1), [[[[0], [1]], [[2], [3]]]]),
        ("split(4,2) head_size(2)", (6, 1), [[[[0], [1]], [[2], [3]]], [[[4], [5]]]]),
        ("flatten", (2, 1, 2), [[[0, 1], [2, 3]]]),
    ],
)
def test_pieces_by_hand(spec: str, shape: tuple[int, ...], expected: list[list[list[float]]]) -> None:
    assert [piece.tolist() for piece in parse_view(spec).pieces(numbered(shape))] == expected


def test_gpt2_and_gpt_oss_are_seen_as_their_forward_pass_uses_them() -> None:
    d, x = 4, torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    c_attn = torch.randn(d, 3 * d, generator=torch.Generator().manual_seed(1))
    for piece, used in zip(
        parse_view("transpose split(4,4,4)").pieces(c_attn), (x @ c_attn).split(d, dim=-1), strict=True
    ):
        torch.testing.assert_close(x @ piece.mT, used, rtol=1e-5, atol=1e-6)  # only the summation order
    gate_up = torch.randn(2, d, 6, generator=torch.Generator().manual_seed(2))
    gate, up = parse_view("transpose interleave(2)").pieces(gate_up)
    torch.testing.assert_close(x @ gate.mT, (x @ gate_up)[..., ::2], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(x @ up.mT, (x @ gate_up)[..., 1::2], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(4, 3, 2), (4, 3, 2, 5), (4, 3, 2, 2, 3)])
def test_a_kernel_is_seen_as_its_convolution_uses_it(shape: tuple[int, ...]) -> None:
    weight = numbered(shape)
    (piece,) = parse_view("flatten").pieces(weight)
    patch = numbered((1, *shape[1:])) / 7
    convolution = (functional.conv1d, functional.conv2d, functional.conv3d)[len(shape) - 3]
    used = convolution(patch, weight).flatten()
    torch.testing.assert_close(used, piece @ patch.flatten(), rtol=1e-5, atol=1e-5)  # summation order


def test_channels_last_keeps_the_order_of_the_columns() -> None:
    contiguous = numbered((4, 3, 2, 2))
    channels_last = contiguous.to(memory_format=torch.channels_last)
    view = parse_view("flatten")
    assert not view.shares_memory(channels_last) and view.shares_memory(contiguous)
    assert torch.equal(view.pieces(channels_last)[0], view.pieces(contiguous)[0])
    assert torch.equal(view.merge(view.pieces(channels_last), (4, 3, 2, 2)), contiguous)
    assert not parse_view("flatten transpose").shares_memory(channels_last)
    assert view.shares_memory(torch.empty(4, 3, 2, 2, device="meta"))


@pytest.mark.parametrize(
    ("spec", "shape", "because"),
    [
        ("split(2,3)", (4, 4), "5 rows together, the matrix has 4"),
        ("interleave(2)", (3, 4), "3 rows cannot be dealt out to 2"),
        ("heads(3)", (4, 4), "4 rows cannot be cut into 3 heads"),
        ("heads_in(3)", (4, 4), "4 columns cannot be cut into 3 heads"),
        ("head_size(3)", (4, 4), "4 rows cannot be cut into heads of 3"),
        ("flatten", (4, 4), "at least 3 dimensions, not 2"),
        ("matrix", (4,), "at least 2 dimensions, not 1"),
        ("transpose", (4,), "at least 2 dimensions, not 1"),
        ("vector", (4,), "elementwise"),
    ],
)
def test_what_does_not_fit_names_view_and_shape(spec: str, shape: tuple[int, ...], because: str) -> None:
    view = parse_view(spec)
    for attempt in (lambda: view.pieces(torch.zeros(shape)), lambda: view.piece_shapes(shape)):
        with pytest.raises(ValueError, match=because) as error:
            attempt()
        assert repr(spec) in str(error.value) and str(shape) in str(error.value)


def test_merging_other_shapes_names_both() -> None:
    with pytest.raises(ValueError, match=r"\(2, 4\).*got \[\(3, 4\)\]"):
        parse_view("matrix").merge([torch.zeros(3, 4)], (2, 4))
    with pytest.raises(ValueError, match="pieces of shapes"):
        parse_view("split(1,1)").merge([torch.zeros(1, 4)], (2, 4))


@pytest.mark.parametrize(
    ("spec", "because"),
    [
        ("transposed", r"did you mean 'transpose'\?"),
        ("head(4)", r"did you mean 'heads\(h\)'\?"),
        ("split", r"unknown step 'split'.*split\(a,b,\.\.\.\)"),
        ("split(2,0)", "positive"),
        ("split(2, 2)", "unknown step"),
        ("heads(2,2)", "unknown step"),
        ("transpose(2)", "unknown step"),
        ("transpose  flatten", "unknown step ''"),
        ("", "unknown step ''"),
        ("matrix split(1,1)", "'matrix' stands alone"),
        ("transpose vector", "'vector' stands alone"),
    ],
)
def test_bad_views_name_the_step_and_the_known_ones(spec: str, because: str) -> None:
    with pytest.raises(ValueError, match=because) as error:
        parse_view(spec)
    assert repr(spec) in str(error.value)


def test_parsing_is_cached_and_describes_itself() -> None:
    assert parse_view("transpose split(1,2)") is parse_view("transpose split(1,2)")
    assert parse_view("transpose split(768,768,768)").describe() == "transposed, 3 fused matrices (768+768+768 rows)"
    assert parse_view("matrix").describe() == "matrix" and parse_view("matrix").is_matrix
    assert parse_view("vector").describe() == "vector" and not parse_view("vector").is_matrix
    assert not parse_view("vector").shares_memory(torch.zeros(2))
