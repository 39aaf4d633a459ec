"""The elementwise Triton kernels against the reference in float64, interpreted: shapes, strides, dtypes, gates."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from interpreter import interpreted, needs_triton
from step_checks import Side, check_closed_gate, check_finite_gate, check_momentum, check_subtract
from stored import LAYOUTS

from orthoopt.kernels import pointer_table, triton_steps
from orthoopt.kernels.reference_steps import Moving

pytestmark = [needs_triton, interpreted]

# A launch costs the interpreter a tenth of a second; HYPOTHESIS_PROFILE=thorough draws as many times more as elsewhere.
# Making a failure small would take minutes.
few = settings(
    max_examples=settings.default.max_examples // 5,  # type: ignore[attr-defined]  # set at run time
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
)

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Past one tile in each direction, multiples of a vector or not, more dimensions than a tile has, one element, none.
SHAPES = ((33, 130), (40, 136), (3, 9, 70), (2, 3, 8, 24), (2, 2, 3, 4, 5), (4100,), (33, 1), (1, 9), (), (0, 5))
MOVINGS = (
    Moving(0.95, 0.05),
    Moving(0.9, 1.0),
    Moving(0.95, 0.05, 0.05, 0.95),
    Moving(0.0, 1.0, 1.0, 0.5),
    Moving(1, 0, 1, 0),
)

shapes = st.lists(st.sampled_from(SHAPES), min_size=1, max_size=2)
sides = st.builds(Side, st.sampled_from(LAYOUTS), st.sampled_from(DTYPES))
movings = st.sampled_from(MOVINGS)
seeds = st.integers(0, 2**31)


@few
@given(shapes, st.tuples(sides, sides, sides), movings, st.sampled_from([None, 1.0, 2.0]), seeds)
def test_momentum(
    shapes: list[tuple[int, ...]], sides: tuple[Side, Side, Side], moving: Moving, gate: float | None, seed: int
) -> None:
    check_momentum(shapes, sides, moving, gate, seed, "cpu")


@few
@given(shapes, st.tuples(sides, sides, sides), movings, seeds)
def test_a_closed_gate_keeps_bits(
    shapes: list[tuple[int, ...]], sides: tuple[Side, Side, Side], moving: Moving, seed: int
) -> None:
    check_closed_gate(shapes, sides, moving, seed, "cpu")


numbers = st.sampled_from(["number", "float32", "float64"])


@few
@given(shapes, st.tuples(sides, sides), st.tuples(numbers, numbers), seeds)
def test_subtract(shapes: list[tuple[int, ...]], sides: tuple[Side, Side], numbers: tuple[str, str], seed: int) -> None:
    check_subtract(shapes, sides, numbers, seed, "cpu")


bad_values = st.sampled_from([None, math.nan, math.inf, -math.inf])


@few
@given(shapes, sides, bad_values, st.integers(0, 2**20), seeds)
def test_finite_gate(shapes: list[tuple[int, ...]], side: Side, bad: float | None, place: int, seed: int) -> None:
    check_finite_gate([*shapes, (5, 7)], side, bad, place, seed, "cpu")


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # the interpreter's own
def test_peaks_show_what_is_not_finite() -> None:
    grads = [torch.tensor([1.0, value, -3.0]) for value in (2.0, math.nan, -math.inf)]
    buffers, outs = [torch.zeros(3) for _ in grads], [torch.empty(3) for _ in grads]
    peaks = torch.empty(3)
    triton_steps.momentum_into(grads, buffers, outs, Moving(0.5, 1.0), None, peaks)
    assert peaks[0] == 3 and peaks[1].isnan() and peaks[2] == math.inf


def test_tensors_alike_share_a_launch() -> None:
    """Slots of a bucket, gradients in their own memory: one launch; another dtype is another."""
    bucket = torch.empty(3, 40, 24)
    grads, buffers = ([torch.randn(24, 40) for _ in range(3)] for _ in range(2))
    sides = {"grads": grads, "buffers": buffers, "outs": [slot.mT for slot in bucket]}
    assert len(pointer_table.launches(sides, primary=1)) == 1
    sides["grads"] = [grads[0].bfloat16(), *grads[1:]]
    assert len(pointer_table.launches(sides, primary=1)) == 2


def test_what_is_not_taken_says_so() -> None:
    x, wide = torch.randn(4, 4), torch.randn(4, 4, dtype=torch.float64)
    moving = Moving(0.9, 0.1)
    with pytest.raises(
        TypeError, match=r"grads\[1\] must be torch.float32 or torch.bfloat16 or torch.float16, got torch.float64"
    ):
        triton_steps.momentum_into([x, wide], [x.clone(), x.clone()], [x.clone(), x.clone()], moving)
    with pytest.raises(TypeError, match=r"buffers\[0\] must be torch.float32, got torch.bfloat16"):
        triton_steps.momentum_into([x], [x.bfloat16()], [x.clone()], moving)
    with pytest.raises(TypeError, match=r"outs\[0\] is written, but its elements share memory: strides \(0, 1\)"):
        triton_steps.momentum_into([x], [x.clone()], [x[:1].expand(4, 4)], moving)
    with pytest.raises(ValueError, match=r"tensors 0 differ in shape: params \(4, 4\), updates \(4,\)"):
        triton_steps.subtract_updates([x], [x[0]], [1.0], 0.1, 1.0)
    with pytest.raises(ValueError, match="scales must be a number a parameter, got 2 for 1"):
        triton_steps.subtract_updates([x], [x.clone()], [1.0, 2.0], 0.1, 1.0)
    with pytest.raises(ValueError, match="got 1 grads, 2 buffers, 1 outs"):
        triton_steps.momentum_into([x], [x.clone(), x.clone()], [x.clone()], moving)
    for peaks in (torch.zeros(2), torch.zeros(1, dtype=torch.float64), torch.zeros(2)[::2]):
        if peaks.shape == (1,) and peaks.dtype == torch.float32:
            continue  # one element is contiguous whatever its stride
        with pytest.raises(ValueError, match="peaks must be float32 of 1 elements, contiguous"):
            triton_steps.momentum_into([x], [x.clone()], [x.clone()], moving, None, peaks)


def test_expanded_gradients_are_read() -> None:
    grad, buffer, out = torch.tensor(2.0).expand(5, 7), torch.ones(5, 7), torch.empty(5, 7)
    triton_steps.momentum_into([grad], [buffer], [out], Moving(0.5, 0.25))
    assert torch.equal(buffer, torch.ones(5, 7)) and torch.equal(out, buffer)
