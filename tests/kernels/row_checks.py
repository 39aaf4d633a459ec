"""What holds for the row_norm and AuON steps, on any device: the interpreter's tests and the GPU's call these."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from stored import Stored, assert_rounded, bits, noise
from torch import Tensor

from orthoopt.kernels import triton_rows
from orthoopt.kernels.reference_steps import Moving
from orthoopt.rules.auon import auon_direction
from orthoopt.rules.row_norm import row_norm_direction

EMA = Moving(0.95, 0.05)
NESTEROV = Moving(0.95, 0.05, 0.05, 0.95)
HEAVY_BALL = Moving(0.9, 1.0)

KINDS = ("gaussian", "zero_rows", "zero_matrix", "outlier", "rank_one", "uneven_rows")


class Step(NamedTuple):
    """A step of a rule, and the rule's own direction."""

    run: Callable[..., bool]
    direction: Callable[[Tensor], Tensor]
    option: dict[str, str]


STEPS = {
    **{mode: Step(triton_rows.row_norm_step, row_norm_direction, {"eps_mode": mode}) for mode in triton_rows.EPS_MODES},
    **{name: Step(triton_rows.auon_step, auon_direction, {"variant": name}) for name in triton_rows.VARIANTS},
}


class Case(NamedTuple):
    """Parameters, gradients and buffers of one call: layout and dtype of each, and what is in them."""

    shapes: Sequence[Sequence[int]]
    layouts: tuple[str, str, str]
    param: torch.dtype = torch.float32
    grad: torch.dtype = torch.float32
    kind: str = "gaussian"
    scale: float = 1.0
    seed: int = 0


def matrices(shape: Sequence[int], kind: str, seed: int, scale: float = 1.0) -> Tensor:
    """Float64 ``(..., rows, cols)``."""
    values = noise(shape, seed, scale)
    rows, cols = values.shape[-2:]
    if kind == "zero_rows":
        values[..., ::2, :] = 0
    elif kind == "zero_matrix":
        values[(0,) * (values.ndim - 2)] = 0
    elif kind == "outlier":
        values[..., rows // 2, cols // 2] *= 1e6
    elif kind == "rank_one":
        values = values[..., :1] * values[..., :1, :] / scale
    elif kind == "uneven_rows":
        values *= torch.logspace(0, -6, rows, dtype=torch.float64)[:, None]
    return values.where(values.abs() > 2.0**-126, 0)  # Triton's interpreter misreads subnormal bfloat16


def check_step(
    name: str, case: Case, moving: Moving, keep: float, gate: float | None, numbers: bool, device: str
) -> None:
    """Buffers and parameters entry by entry against the rule's direction in float64; nothing else is written."""
    step, memory = STEPS[name], Stored()
    params, grads, buffers = _tensors(case, memory, device)
    scales = [0.5 * (i + 1) for i in range(len(params))]
    lr = 0.25
    exact = []
    for param, grad, buffer, scale in zip(params, grads, buffers, scales, strict=True):
        p, g, b = param.double(), grad.double(), buffer.double()
        moved = moving.decay * b + moving.weight * g
        size = moving.decay * b.abs() + moving.weight * g.abs()
        signal = moving.from_grad * g + moving.from_buffer * moved
        update = step.direction(signal, **step.option)
        # What a row was divided by: rounding of the signal grows by it.
        divisor = signal.norm(dim=-1, keepdim=True) / update.norm(dim=-1, keepdim=True).clamp(min=1e-300)
        spread = (moving.from_grad * g.abs() + moving.from_buffer * size) / divisor.where(divisor > 0, math.inf)
        magnitude = keep * p.abs() + lr * scale * torch.maximum(spread, update.abs())
        exact.append((moved, size, keep * p - lr * scale * update, magnitude))
    kept = [grad.clone() for grad in grads]
    given = {"scales": scales, "lr": lr, "keep": keep, "gate": None}
    if numbers:
        given |= {"lr": torch.tensor(lr, device=device), "keep": torch.tensor(keep, dtype=torch.float64, device=device)}
    if gate is not None:
        given["gate"] = torch.tensor(gate, device=device)
    assert step.run(params, grads, buffers, moving, **step.option, **given)
    for param, grad, buffer, old, (moved, size, wanted, magnitude) in zip(
        params, grads, buffers, kept, exact, strict=True
    ):
        assert_rounded(buffer, moved, size, 3)
        # Sums go tile by tile in trees: some thirty roundings for lengths, quotients and the signal together.
        assert_rounded(param, wanted, magnitude, 40)
        assert torch.equal(bits(grad), bits(old))
    memory.check()


def check_closed_gate(name: str, case: Case, moving: Moving, device: str) -> None:
    """At gate 0 no bit changes, whatever is in the gradients."""
    step, memory = STEPS[name], Stored()
    params, grads, buffers = _tensors(case, memory, device)
    for index, grad in enumerate(grads):
        grad.fill_(math.inf if index % 2 else math.nan)
    before = [tensor.clone() for tensor in (*params, *grads, *buffers)]
    gate = torch.zeros((), dtype=torch.float64, device=device)
    assert step.run(
        params, grads, buffers, moving, **step.option, scales=[1.0] * len(params), lr=0.1, keep=0.5, gate=gate
    )
    for now, old in zip((*params, *grads, *buffers), before, strict=True):
        assert torch.equal(bits(now), bits(old))
    memory.check()


def direction_by(name: str, momentum: Tensor) -> Tensor:
    """The direction that a step takes, for float32 ``(..., rows, cols)``."""
    step = STEPS[name]
    param = torch.zeros_like(momentum)
    buffer = momentum.clone()
    moving = Moving(1.0, 0.0)
    assert step.run(
        [param], [torch.zeros_like(momentum)], [buffer], moving, **step.option, scales=[1.0], lr=-1.0, keep=0.0
    )
    return param


def _tensors(case: Case, memory: Stored, device: str) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    params, grads, buffers = [], [], []
    for i, shape in enumerate(case.shapes):
        layouts = case.layouts
        params.append(memory.put(noise(shape, case.seed + i), layouts[0], case.param, device))
        grad = matrices(shape, case.kind, case.seed + 100 + i, case.scale)
        grads.append(memory.put(grad, layouts[1], case.grad, device))
        buffer = matrices(shape, case.kind, case.seed + 200 + i, case.scale)
        buffers.append(memory.put(buffer, layouts[2], torch.float32, device))
    return params, grads, buffers
