"""What only a GPU can show: low-precision iterations, no host synchronisation, the same results as on the CPU."""

from __future__ import annotations

import math

import pytest
import torch
from comparison import relative_error
from optimizers import ALL_RULES, equal, optimizer_of, parameters, run, set_gradients, snapshot
from torch import nn

from orthoopt import OrthoOpt, coefficients, orthogonalize
from orthoopt.polar import METHODS, Method

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device; run with `make gpu`"),
]


def on_gpu(dtype: torch.dtype = torch.float32) -> dict[str, nn.Parameter]:
    return {name: nn.Parameter(param.detach().cuda()) for name, param in parameters(dtype).items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ALL_RULES)
def test_updates_agree_with_the_cpu(name: str, dtype: torch.dtype) -> None:
    gpu, cpu = on_gpu(dtype), parameters(dtype)
    start = parameters(dtype)
    for params in (gpu, cpu):
        run(optimizer_of(name, params), params, 0, 3)
    for key in cpu:
        moved = (cpu[key] - start[key]).float()
        # The GPU iterates in bfloat16, rounding directions by some percent; small sides average little out.
        assert relative_error((gpu[key].cpu() - start[key]).float(), moved) < 0.15, key


@pytest.mark.parametrize("name", ALL_RULES)
def test_a_step_never_waits_for_the_host_and_bad_ones_change_nothing(name: str) -> None:
    params = on_gpu()
    optimizer = optimizer_of(name, params)
    run(optimizer, params, 0, 2)
    before = snapshot(optimizer)
    set_gradients(params, 2)
    params["stack"].grad[0, 0, 0] = math.nan
    torch.cuda.set_sync_debug_mode("error")
    try:
        optimizer.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert equal(before, snapshot(optimizer)) and optimizer.skipped_steps == 1


@pytest.mark.parametrize("table", [n for n in coefficients.names() if n != "root_2048x2048"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-3), (torch.bfloat16, 6e-2)])
def test_the_iteration_against_float64(table: str, dtype: torch.dtype, tolerance: float) -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 64, 200)
    exact = orthogonalize(x.double(), 5, table)
    assert relative_error(orthogonalize(x.cuda(), 5, table, dtype=dtype).cpu(), exact) < tolerance


@pytest.mark.parametrize("method", METHODS)
def test_polar_methods_against_float64_on_the_cpu(method: Method) -> None:
    """Iterations against their own polynomial, in bfloat16 or float16 here; exact methods against the SVD."""
    torch.manual_seed(0)
    x = torch.randn(3, 64, 200)
    exact = method in ("qdwh", "svd")
    expected = orthogonalize(x.double(), method="svd" if exact else "newton_schulz")
    tolerance = 1e-4 if exact else 6e-2
    assert relative_error(orthogonalize(x.cuda(), method=method).cpu(), expected) < tolerance


def test_a_bad_gradient_on_the_gpu_stops_parameters_on_the_cpu_too() -> None:
    here, there = nn.Parameter(torch.randn(4, 4)), nn.Parameter(torch.randn(4, 4, device="cuda"))
    optimizer = OrthoOpt([{"params": [("here", here), ("there", there)], "rule": "spectral"}])
    for bad in (False, True, False):
        here.grad, there.grad = torch.randn(4, 4), torch.randn(4, 4, device="cuda")
        if bad:
            there.grad[1, 2] = math.inf
        before = snapshot(optimizer)
        optimizer.step()
        assert equal(before, snapshot(optimizer)) is bad
    assert optimizer.skipped_steps == 1


def test_state_and_checkpoint_stay_on_the_device() -> None:
    param = nn.Parameter(torch.randn(8, 8, device="cuda", dtype=torch.bfloat16))
    optimizer = OrthoOpt([{"params": [("w", param)], "rule": "adamw"}])
    param.grad = torch.randn_like(param)
    optimizer.step()
    optimizer.load_state_dict(optimizer.state_dict())
    param.grad = torch.randn_like(param)
    optimizer.step()
    state = optimizer.state[param]
    assert state["exp_avg"].dtype == torch.float32 and state["exp_avg"].is_cuda


@pytest.mark.parametrize("name", ALL_RULES)
def test_a_captured_step_replays_as_it_is_taken(name: str) -> None:
    """The learning rate moves between replays, and a bad gradient in one of them changes nothing."""
    replayed, taken = on_gpu(), on_gpu()
    rates = [torch.tensor(0.01, device="cuda") for _ in range(2)]
    recorded, eager = (
        OrthoOpt([{"params": list(params.items()), "rule": name}], lr=rate)
        for params, rate in zip((replayed, taken), rates, strict=True)
    )
    for params in (replayed, taken):
        for param in params.values():
            param.grad = torch.zeros_like(param)

    def give(step: int) -> None:
        source = on_gpu()
        set_gradients(source, step)
        if step == 3:
            source["wide"].grad[0, 0] = math.nan
        for params in (replayed, taken):
            for key, param in params.items():
                param.grad.copy_(source[key].grad)

    for step in range(2):  # state and tables exist before the recording
        give(step)
        recorded.step()
        eager.step()
    torch.cuda.synchronize()
    before = snapshot(recorded)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        recorded.step()
    assert equal(before, snapshot(recorded))  # recording is not doing
    for step in range(2, 5):
        give(step)
        for rate in rates:
            rate.fill_(0.01 / step)
        graph.replay()
        eager.step()
    for key, param in taken.items():
        torch.testing.assert_close(replayed[key], param, atol=1e-6, rtol=1e-5)  # the same kernels in the same order
    assert recorded.skipped_steps == eager.skipped_steps == 1
