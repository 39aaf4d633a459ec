"""Views of any chain, shape, stride and dtype; and a step on a fused parameter is a step on each of its parts."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import generator, is_matrix, options_of, relative_error, rules_where
from torch import Tensor, nn

from orthoopt import OrthoOpt, rules
from orthoopt.views import View, parse_view

Shape = tuple[int, ...]
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
LAYOUTS = ("contiguous", "reversed", "strided", "channels_last")


class Case(NamedTuple):
    view: View
    tensor: Tensor
    """All entries differ."""


def laid_out(values: Tensor, layout: str) -> Tensor:
    """The same tensor at other strides."""
    if layout == "reversed":
        back = tuple(reversed(range(values.ndim)))
        return values.permute(back).contiguous().permute(back)
    if layout == "strided":
        wide = torch.zeros(tuple(2 * size for size in values.shape), dtype=values.dtype)
        return wide[tuple(slice(None, None, 2) for _ in values.shape)].copy_(values)
    if layout == "channels_last" and values.ndim == 4:
        return values.to(memory_format=torch.channels_last)
    return values


@st.composite
def specs(draw: st.DrawFn, shape: Shape) -> str:
    """A random chain of steps that this shape fits, grown step by step."""
    words: list[str] = []
    steps = draw(st.integers(0, 4), label="steps")
    while len(words) < steps:
        shapes = parse_view(" ".join(words) or "matrix").piece_shapes(shape) if words or len(shape) > 1 else [shape]
        first = shapes[0]
        choices = []
        if len(first) == 1:
            choices = ["column"]
        elif len(first) > 2 and not words:
            choices = ["flatten"]
        if len(first) > 1:
            rows, cols = (math.gcd(*(piece[side] for piece in shapes)) for side in (-2, -1))
            choices += ["transpose", f"interleave({draw(divisors(rows))})", f"heads({draw(divisors(rows))})"]
            choices += [f"head_size({draw(divisors(rows))})", f"heads_in({draw(divisors(cols))})"]
            if all(piece[-2] == first[-2] for piece in shapes):
                choices.append(f"split({','.join(map(str, draw(compositions(first[-2]))))})")
            if len(first) > 2:
                choices.append("join")
        words.append(draw(st.sampled_from(choices), label="step"))
        if words[-1] == "join":
            break
    return " ".join(words) or "matrix"


def divisors(number: int) -> st.SearchStrategy[int]:
    return st.sampled_from([n for n in range(1, number + 1) if number % n == 0])


@st.composite
def compositions(draw: st.DrawFn, number: int) -> list[int]:
    """Positive sizes, unequal ones too, that add up to a number."""
    cuts = draw(st.sets(st.integers(1, number - 1), max_size=3)) if number > 1 else set()
    edges = [0, *sorted(cuts), number]
    return [b - a for a, b in zip(edges, edges[1:], strict=False)]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    shape = tuple(draw(st.lists(st.sampled_from([1, 2, 3, 4, 6]), min_size=1, max_size=4), label="shape"))
    spec = draw(specs(shape) if len(shape) > 1 else specs(shape).filter(lambda spec: spec != "matrix"))
    dtype = draw(st.sampled_from(DTYPES), label="dtype")
    layout = draw(st.sampled_from(LAYOUTS), label="layout")
    # Whole numbers up to 2048 are exact in float16; bfloat16 has them up to 256 and is scaled by bits instead.
    numbers = torch.arange(math.prod(shape), dtype=torch.int16).reshape(shape)
    values = numbers.view(dtype) if dtype is torch.bfloat16 else numbers.to(dtype)
    return Case(parse_view(spec), laid_out(values, layout))


def bits(tensor: Tensor) -> Tensor:
    """As whole numbers, for comparisons to the bit."""
    return tensor.contiguous().view({2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.dtype.itemsize])


@given(cases())
@settings(max_examples=300)
def test_pieces_hold_each_element_once_and_merge_to_the_tensor(case: Case) -> None:
    view, tensor = case
    shape, pieces = tuple(tensor.shape), view.pieces(tensor)
    assert [tuple(piece.shape) for piece in pieces] == view.piece_shapes(shape)
    found = torch.cat([bits(piece).flatten() for piece in pieces]).sort().values
    assert torch.equal(found, bits(tensor).flatten().sort().values)
    merged = view.merge(pieces, shape)
    assert merged.shape == tensor.shape and merged.dtype == tensor.dtype
    assert torch.equal(bits(merged), bits(tensor))


@given(cases())
@settings(max_examples=300)
def test_pieces_are_torch_views_and_writing_targets_writes_the_tensor(case: Case) -> None:
    view, tensor = case
    words = view.spec.split()
    pieces, targets = view.pieces(tensor), view.targets(tensor)
    for piece, target in zip(pieces, targets, strict=True):
        assert torch.equal(bits(target.reshape(piece.shape)), bits(piece))
        if "join" not in words:
            assert piece.shape == target.shape and piece.stride() == target.stride()
    if "flatten" not in words or tensor.is_contiguous():
        assert view.shares_memory(tensor)
    if view.shares_memory(tensor):
        for number, target in enumerate(targets):
            target.fill_(number + 1)
        expected = [torch.full_like(piece, number + 1) for number, piece in enumerate(pieces)]
        assert torch.equal(tensor, view.merge(expected, tuple(tensor.shape)))


def test_join_comes_last() -> None:
    with pytest.raises(ValueError, match="'join' is the last step"):
        parse_view("heads(2) join transpose")
    with pytest.raises(ValueError, match="no heads to join in 2 dimensions"):
        parse_view("join").pieces(torch.zeros(2, 2))
    with pytest.raises(ValueError, match="a column needs at least 1 dimension"):
        parse_view("column").pieces(torch.zeros(()))


FUSED: dict[str, tuple[str, Shape]] = {
    "q, k, v of Llama": ("split(12,4,4)", (20, 8)),
    "q, k, v of GPT-2": ("transpose split(9,9,9)", (9, 27)),
    "q, k, v of NeoX and Bloom": ("heads(3) split(4,4,4) join", (36, 7)),
    "q, k, v of Falcon": ("heads(2) split(8,4,4) join", (32, 6)),
    "heads of Falcon": ("heads(2) split(8,4,4) head_size(4)", (32, 6)),
    "gate and up": ("split(10,10)", (20, 6)),
    "experts of OLMoE": ("split(5,5)", (3, 10, 7)),
    "experts of gpt-oss": ("transpose interleave(2)", (3, 8, 10)),
    "heads of o": ("heads_in(3)", (8, 15)),
    "groups of a convolution": ("flatten heads(2)", (12, 3, 2, 2)),
    "a strided kernel": ("flatten", (6, 3, 2, 2)),
}
MODES = ("decoupled", "independent", "cautious")


def single_matrices(view: View, tensor: Tensor) -> list[Tensor]:
    """Every matrix of a tensor, (rows, cols)."""
    return [matrix for piece in view.pieces(tensor) for matrix in piece.reshape(-1, *piece.shape[-2:])]


def optimizer_of(param: nn.Parameter, view: str, rule: str, settings: dict[str, Any]) -> OrthoOpt:
    return OrthoOpt([{"params": [param], "rule": rule, "view": view, **settings}])


def steps_apart(rule: str, settings: dict[str, Any], which: str, dtype: torch.dtype, layout: str, seed: int) -> float:
    """Four steps of a fused parameter against four of its matrices, each alone: how far they end apart."""
    spec, shape = FUSED[which]
    view, source = parse_view(spec), generator(seed)
    start = torch.randn(shape, generator=source).to(dtype)
    fused = nn.Parameter(laid_out(start.clone(), layout))
    parts = [nn.Parameter(part.contiguous()) for part in single_matrices(view, start.clone())]
    one = optimizer_of(fused, spec, rule, settings)
    others = [optimizer_of(part, "matrix", rule, settings) for part in parts]
    for _ in range(4):
        fused.grad = torch.randn(shape, generator=source).to(dtype)
        one.step()
        for part, grad, other in zip(parts, single_matrices(view, fused.grad), others, strict=True):
            part.grad = grad.contiguous()
            other.step()
    assert not torch.equal(fused, start)
    ends = zip(single_matrices(view, fused.detach()), parts, strict=True)
    return max(relative_error(matrix, part.detach()) for matrix, part in ends)


@pytest.mark.parametrize("rule", rules_where(is_matrix))
@given(data=st.data(), which=st.sampled_from(sorted(FUSED)), seed=st.integers(0, 2**31))
@settings(max_examples=20)
def test_a_step_on_a_fused_matrix_is_a_step_on_its_parts(rule: str, data: st.DataObject, which: str, seed: int) -> None:
    settings = data.draw(options_of(rules.get(rule), is_matrix), label="options")
    mode = data.draw(st.sampled_from(MODES), label="mode")
    settings |= {"weight_decay_mode": mode, "weight_decay": 0.1, "lr": 0.01}
    layout = data.draw(st.sampled_from(LAYOUTS), label="layout")
    # Sums over other strides may end in another last bit, which iterations magnify by the slope of their polynomials.
    assert steps_apart(rule, settings, which, torch.float64, layout, seed) < 1e-11


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rule", rules_where(is_matrix))
def test_so_it_is_in_low_precision(rule: str, dtype: torch.dtype) -> None:
    for which in FUSED:
        # As above, in float32 arithmetic; a bfloat16 parameter may round to a neighbour, 2^-8 in some entries.
        assert steps_apart(rule, {"lr": 0.01}, which, dtype, "contiguous", seed=3) < (
            1e-5 if dtype is torch.float32 else 2e-3
        ), which
