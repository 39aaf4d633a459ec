"""The Triton steps of row_norm and AuON against their rules in float64, interpreted."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from interpreter import interpreted, needs_triton
from row_checks import (
    EMA,
    HEAVY_BALL,
    KINDS,
    NESTEROV,
    STEPS,
    Case,
    check_closed_gate,
    check_step,
    direction_by,
    matrices,
)
from stored import LAYOUTS, bits

from orthoopt.kernels import triton_rows
from orthoopt.kernels.reference_steps import Moving

pytestmark = [needs_triton, interpreted]

# A step costs the interpreter a quarter of a second; HYPOTHESIS_PROFILE=thorough draws as many times more as elsewhere.
# Making a failure small would take minutes.
few = settings(
    max_examples=settings.default.max_examples // 10,  # type: ignore[attr-defined]  # set at run time
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
)

names = st.sampled_from(list(STEPS))
# Past one tile in each direction, multiples of a vector or not, batches that merge and do not, one row, one column.
shapes = st.sampled_from([(33, 130), (8, 136), (3, 9, 20), (2, 3, 8, 24), (1, 9), (17, 1), (1, 1)])
layouts = st.sampled_from(LAYOUTS)
movings = st.sampled_from([EMA, NESTEROV, HEAVY_BALL])


@st.composite
def cases(draw: st.DrawFn) -> Case:
    param, grad = draw(st.tuples(*[st.sampled_from([torch.float32, torch.bfloat16, torch.float16])] * 2))
    scale = 1.0 if grad == torch.float16 else draw(st.sampled_from([1.0, 1e-30, 1e-9, 1e30]))
    kind = draw(st.sampled_from([kind for kind in KINDS if grad != torch.float16 or kind != "outlier"]))
    return Case(
        draw(st.lists(shapes, min_size=1, max_size=2)), draw(st.tuples(layouts, layouts, layouts)),
        param, grad, kind, scale * (1e-6 if scale == 1e30 and kind == "outlier" else 1), draw(st.integers(0, 2**31)),
    )  # fmt: skip


@pytest.mark.parametrize("name", STEPS)
@few
@given(cases(), movings, st.sampled_from([0.0, 0.9]), st.sampled_from([None, 1.0]), st.booleans())
def test_a_step(name: str, case: Case, moving: Moving, keep: float, gate: float | None, numbers: bool) -> None:
    check_step(name, case, moving, keep, gate, numbers, "cpu")


@few
@given(names, cases(), movings)
def test_a_closed_gate_keeps_bits(name: str, case: Case, moving: Moving) -> None:
    check_closed_gate(name, case, moving, "cpu")


@pytest.mark.parametrize("name", ["relative", "spectral_bound"])
@pytest.mark.parametrize("shape", [(600, 20), (20, 1100)])
def test_lines_past_one_program_and_parts_past_one_load(name: str, shape: tuple[int, int]) -> None:
    check_step(name, Case([shape], ("dense", "dense", "dense"), kind="uneven_rows"), NESTEROV, 0.9, None, False, "cpu")


@pytest.mark.slow
def test_tiles_past_one_program() -> None:
    """The moments of 516 tiles are added up by two programs."""
    check_step("paper", Case([(16500, 3)], ("dense",) * 3, kind="outlier"), EMA, 0.9, None, False, "cpu")


@few
@given(st.tuples(st.integers(1, 40), st.integers(1, 140)), st.sampled_from(KINDS), st.integers(0, 2**31))
def test_what_spectral_bound_certifies(shape: tuple[int, int], kind: str, seed: int) -> None:
    """‖U‖₂ ≤ 1 ≤ ‖U‖_F, to some roundings in float32."""
    update = direction_by("spectral_bound", matrices(shape, kind, seed).float()).double()
    if kind == "zero_matrix":
        assert not update.any()
    elif update.any():
        assert torch.linalg.matrix_norm(update, 2) < 1 + 3e-6 and update.norm() > 1 - 3e-6


def test_the_published_factor_of_one_entry() -> None:
    """The largest argument that its series meets: r² = 1 + sinh²(1)/N where all the length is in one entry."""
    for shape in ((1, 1), (3, 5)):
        momentum = torch.zeros(shape)
        momentum[0, 0] = -2.0
        update = direction_by("paper", momentum)
        factor = math.sqrt(1 + math.sinh(1) ** 2 / momentum.numel())
        assert float(update[0, 0]) == pytest.approx(-1 / factor, rel=3e-7)  # some roundings, and the seventh term


def test_a_step_has_the_same_bits_whatever_stands_beside() -> None:
    case = [matrices((5, 24), "gaussian", seed).float() for seed in range(3)]
    for name, step in STEPS.items():
        alone, beside = [torch.zeros(5, 24) for _ in case], [torch.zeros(5, 24) for _ in case]
        for params, groups in ((alone, [[0], [1], [2]]), (beside, [[2, 0, 1]])):
            for group in groups:
                chosen = [params[i] for i in group]
                buffers = [torch.zeros(5, 24) for _ in group]
                assert step.run(
                    chosen, [case[i] for i in group], buffers, NESTEROV, **step.option, scales=[1.0] * len(group),
                    lr=0.1, keep=1.0,
                ), name  # fmt: skip
        assert all(torch.equal(bits(a), bits(b)) for a, b in zip(alone, beside, strict=True)), name


@pytest.mark.parametrize("name", ["relative", "paper"])
def test_what_is_not_taken_is_left_alone(name: str) -> None:
    step = STEPS[name]
    x = torch.randn(4, 6)
    wide, narrow, shared = x.double(), x.bfloat16(), x[:1].expand(4, 6)
    for param, grad, buffer in ((wide, wide, wide), (x, x, narrow), (x, wide, x), (shared, x, x), (x[0], x[0], x[0])):
        tensors = [tensor if tensor is shared else tensor.clone() for tensor in (param, grad, buffer)]
        before = [tensor.clone() for tensor in tensors]
        for _ in range(2):  # the second answer is remembered
            given = {"scales": [1.0], "lr": 0.1, "keep": 0.9, **step.option}
            assert not step.run([tensors[0]], [tensors[1]], [tensors[2]], EMA, **given)
        assert all(map(torch.equal, tensors, before))


def test_empty_matrices_are_done() -> None:
    empty = [torch.zeros(2, 0, 5) for _ in range(3)]
    for step in STEPS.values():
        assert step.run(*([tensor] for tensor in empty), EMA, **step.option, scales=[1.0], lr=0.1, keep=0.9)
        assert step.run([], [], [], EMA, **step.option, scales=[], lr=0.1, keep=0.9)


def test_mistakes_are_named() -> None:
    x = torch.randn(4, 6)
    given = {"scales": [1.0], "lr": 0.1, "keep": 0.9}
    with pytest.raises(ValueError, match="eps_mode='relativ' must be one of 'relative', 'add', 'clamp'"):
        triton_rows.row_norm_step([x], [x.clone()], [x.clone()], EMA, eps_mode="relativ", **given)
    with pytest.raises(ValueError, match="variant='repository' must be one of 'spectral_bound', 'paper'"):
        triton_rows.auon_step([x], [x.clone()], [x.clone()], EMA, variant="repository", **given)
    with pytest.raises(
        ValueError, match=r"tensors 0 differ in shape: grads \(6, 4\), buffers \(4, 6\), params \(4, 6\)"
    ):
        triton_rows.auon_step([x], [x.mT], [x.clone()], EMA, variant="paper", **given)
    with pytest.raises(ValueError, match="scales must be a number a parameter, got 1 for 2"):
        triton_rows.row_norm_step([x, x], [x, x], [x, x], EMA, eps_mode="add", **given)
