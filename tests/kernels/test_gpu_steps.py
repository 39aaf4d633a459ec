"""The Triton kernels of a step on a real GPU: what the interpreter's tests check, larger, and what only a GPU shows."""

from __future__ import annotations

import math

import pytest
import torch
from interpreter import needs_triton
from row_checks import EMA, NESTEROV, STEPS, Case, check_closed_gate, check_step
from step_checks import Side, check_finite_gate, check_momentum, check_subtract
from step_checks import check_closed_gate as check_closed_momentum
from stored import LAYOUTS, bits
from torch import Tensor

from orthoopt.kernels import pointer_table, triton_rows, triton_steps
from orthoopt.kernels.reference_steps import Moving

pytestmark = [
    pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION is unset"),  # Triton 3.9; either choice is right here
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device; run with `make gpu`"),
    needs_triton,
]

SHAPES = ((768, 3072), (513, 1031), (12, 64, 768), (2, 3, 8, 24), (50257,), (33, 1), (), (0, 5))
MATRICES = ((768, 3072), (513, 1031), (12, 64, 768), (1100, 20), (1, 9), (17, 1))
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_elementwise_ops(layout: str, dtype: torch.dtype) -> None:
    plain = Side("dense", torch.float32)
    for sides in (
        (Side(layout, dtype), plain, Side("dense", dtype)),
        (plain, Side(layout, dtype), Side(layout, dtype)),
    ):
        check_momentum(SHAPES, sides, NESTEROV, 1.0, 0, "cuda")
        check_momentum(SHAPES, sides, Moving(0.9, 1.0), None, 1, "cuda")
        check_closed_momentum(SHAPES, sides, NESTEROV, 2, "cuda")
        check_subtract(SHAPES, (sides[0], sides[2]), ("float32", "number"), 3, "cuda")
        check_subtract(SHAPES, (sides[2], sides[0]), ("number", "float64"), 4, "cuda")
    for bad in (None, math.nan, -math.inf):
        check_finite_gate(SHAPES, Side(layout, dtype), bad, 12345, 5, "cuda")


@pytest.mark.parametrize("name", STEPS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_steps(layout: str, name: str) -> None:
    layouts = (layout, layout, layout)
    for kind in ("gaussian", "zero_rows", "outlier", "uneven_rows"):
        check_step(name, Case(MATRICES, layouts, kind=kind), NESTEROV, 0.9, 1.0, True, "cuda")
    for dtype in DTYPES[1:]:
        check_step(name, Case(MATRICES, ("dense", layout, "dense"), dtype, dtype), EMA, 0.0, None, False, "cuda")
    for scale in (1e-30, 1e30):
        check_step(name, Case(MATRICES, layouts, scale=scale), EMA, 0.0, None, False, "cuda")
    check_closed_gate(name, Case(MATRICES, layouts), EMA, "cuda")


def _problem(dtype: torch.dtype = torch.float32) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    torch.manual_seed(0)
    shapes = ((768, 768), (768, 3072), (50257, 64))
    params = [torch.randn(shape, device="cuda", dtype=dtype) for shape in shapes]
    return (
        params,
        [torch.randn_like(param) for param in params],
        [torch.zeros_like(p, dtype=torch.float32) for p in params],
    )


def _whole_step(
    params: list[Tensor], grads: list[Tensor], buffers: list[Tensor], outs: list[Tensor], lr: Tensor
) -> None:
    gate = triton_steps.finite_gate(grads)
    peaks = torch.empty(len(params), device="cuda")
    triton_steps.momentum_into(grads, buffers, outs, NESTEROV, gate, peaks)
    triton_steps.subtract_updates(params, outs, [1.0] * len(params), lr, 1.0)
    for name, step in STEPS.items():
        given = {"scales": [1.0] * len(params), "lr": lr, "keep": 0.99, "gate": gate}
        assert step.run(params, grads, buffers, NESTEROV, **step.option, **given), name


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_same_bits_every_time(dtype: torch.dtype) -> None:
    results = []
    for _ in range(3):
        params, grads, buffers = _problem(dtype)
        outs = [torch.empty_like(grad) for grad in grads]
        _whole_step(params, grads, buffers, outs, torch.tensor(0.1, device="cuda"))
        results.append([bits(tensor) for tensor in (*params, *buffers, *outs)])
    for other in results[1:]:
        assert all(map(torch.equal, results[0], other))


def test_no_step_waits_for_the_device() -> None:
    params, grads, buffers = _problem()
    outs, lr = [torch.empty_like(grad) for grad in grads], torch.tensor(0.1, device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        _whole_step(params, grads, buffers, outs, lr)  # the tables are made here
        _whole_step(params, [grad.clone() for grad in grads], buffers, outs, lr)  # gradients have moved
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_captured_step_replays_with_another_learning_rate() -> None:
    params, grads, buffers = _problem()
    outs, lr = [torch.empty_like(grad) for grad in grads], torch.tensor(0.1, device="cuda")
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        _whole_step(params, grads, buffers, outs, lr)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        _whole_step(params, grads, buffers, outs, lr)
    twins = [[tensor.clone() for tensor in tensors] for tensors in (params, grads, buffers, outs)]
    lr.fill_(0.3)
    graph.replay()
    _whole_step(*twins, lr)
    for one, other in zip((*params, *buffers), (*twins[0], *twins[2]), strict=True):
        assert torch.equal(bits(one), bits(other))


def test_a_capture_over_unseen_tensors_says_what_to_do() -> None:
    params, grads, buffers = _problem()
    with pytest.raises(RuntimeError, match="make a step with the same"), torch.cuda.graph(torch.cuda.CUDAGraph()):
        triton_rows.row_norm_step(params, grads, buffers, EMA, eps_mode="add", scales=[1.0] * 3, lr=0.1, keep=1.0)


def test_tables_copied_on_one_stream_serve_another() -> None:
    _, grads, buffers = _problem()
    outs = [torch.empty_like(grad) for grad in grads]
    wanted = [tensor.clone() for tensor in buffers]
    triton_steps.momentum_into(grads, wanted, outs, EMA)
    torch.cuda.synchronize()
    busy, other = torch.cuda.Stream(), torch.cuda.Stream()
    with torch.cuda.stream(busy):
        torch.cuda._sleep(20_000_000)
        pointer_table.launches({"grads": grads, "buffers": buffers, "outs": outs}, primary=1)  # copied after the sleep
    with torch.cuda.stream(other):
        triton_steps.momentum_into(grads, buffers, outs, EMA)
    torch.cuda.synchronize()
    assert all(map(torch.equal, buffers, wanted))
