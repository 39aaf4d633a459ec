"""What holds for the elementwise kernels of a step, on any device: the interpreter's tests and the GPU's call these."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from stored import SMALLEST, Stored, assert_rounded, bits, noise
from torch import Tensor

from orthoopt.kernels import triton_steps
from orthoopt.kernels.reference_steps import Moving, momentum_into, subtract_updates


class Side(NamedTuple):
    layout: str
    dtype: torch.dtype


def check_momentum(
    shapes: Sequence[Sequence[int]], sides: Sequence[Side], moving: Moving, gate: float | None, seed: int, device: str
) -> None:
    """Buffers, outs and peaks against the reference in float64; gradients and all memory around stay as they are."""
    memory = Stored()
    at = [side.layout for side in sides]
    grads = [memory.put(noise(s, seed + i), at[0], sides[0].dtype, device) for i, s in enumerate(shapes)]
    buffers = [memory.put(noise(s, ~seed - i), at[1], torch.float32, device) for i, s in enumerate(shapes)]
    outs = [memory.empty(s, at[2], sides[2].dtype, device) for s in shapes]
    kept = [grad.clone() for grad in grads]
    exact = [buffer.double() for buffer in buffers]
    sizes = [
        moving.decay * b.double().abs() + moving.weight * g.double().abs() for g, b in zip(grads, buffers, strict=True)
    ]
    signals = [torch.empty(tuple(s), dtype=torch.float64, device=device) for s in shapes]
    momentum_into([grad.double() for grad in grads], exact, signals, moving)

    open_gate = (
        None if gate is None else torch.tensor(1.0, dtype=torch.float64 if gate > 1 else torch.float32, device=device)
    )
    peaks = torch.full((len(shapes),), math.nan, device=device)
    triton_steps.momentum_into(grads, buffers, outs, moving, open_gate, peaks)
    for i, out in enumerate(outs):
        assert_rounded(buffers[i], exact[i], sizes[i], 3)
        size = abs(moving.from_grad) * grads[i].double().abs() + abs(moving.from_buffer) * sizes[i]
        assert_rounded(out, signals[i], size, 6)
        assert float(peaks[i]) == (float(out.abs().max()) if out.numel() else 0.0)
        assert torch.equal(bits(grads[i]), bits(kept[i]))
    memory.check()


def check_closed_gate(
    shapes: Sequence[Sequence[int]], sides: Sequence[Side], moving: Moving, seed: int, device: str
) -> None:
    """At gate 0 buffers keep their bits whatever is in the gradients, and outs are of the buffers alone."""
    memory = Stored()
    at = [side.layout for side in sides]
    grads = [memory.empty(s, at[0], sides[0].dtype, device) for s in shapes]
    for index, grad in enumerate(grads):
        if index % 2:
            grad.fill_(math.inf)
    buffers = [memory.put(noise(s, seed + i), at[1], torch.float32, device) for i, s in enumerate(shapes)]
    outs = [memory.empty(s, at[2], sides[2].dtype, device) for s in shapes]
    before = [buffer.clone() for buffer in buffers]
    triton_steps.momentum_into(grads, buffers, outs, moving, torch.zeros((), device=device))
    for buffer, old, out in zip(buffers, before, outs, strict=True):
        assert torch.equal(bits(buffer), bits(old))
        exact = moving.from_buffer * old.double()
        assert_rounded(out, exact, exact.abs(), 1)
    memory.check()


def check_subtract(
    shapes: Sequence[Sequence[int]], sides: Sequence[Side], numbers: tuple[str, str], seed: int, device: str
) -> None:
    """Parameters against the reference in float64; each of lr and keep a number, or a tensor of either float dtype."""
    memory = Stored()
    params = [memory.put(noise(s, seed + i), sides[0].layout, sides[0].dtype, device) for i, s in enumerate(shapes)]
    updates = [memory.put(noise(s, ~seed - i), sides[1].layout, sides[1].dtype, device) for i, s in enumerate(shapes)]
    scales = [0.2 * (i + 1) for i in range(len(shapes))]
    kept = [update.clone() for update in updates]
    exact = [param.double() for param in params]
    sizes = [
        0.9 * p.double().abs() + 0.25 * s * u.double().abs() for p, u, s in zip(params, updates, scales, strict=True)
    ]
    subtract_updates(exact, [update.double() for update in updates], scales, 0.25, 0.9)
    lr, keep = (_number(kind, value, device) for kind, value in zip(numbers, (0.25, 0.9), strict=True))
    triton_steps.subtract_updates(params, updates, scales, lr, keep)
    for i, param in enumerate(params):
        assert_rounded(param, exact[i], sizes[i], 5)  # keep, scale, their products and the difference
        assert torch.equal(bits(updates[i]), bits(kept[i]))
    memory.check()


def _number(kind: str, value: float, device: str) -> float | Tensor:
    if kind == "number":
        return value
    return torch.tensor(value, dtype=torch.float64 if kind == "float64" else torch.float32, device=device)


def check_finite_gate(
    shapes: Sequence[Sequence[int]], side: Side, bad: float | None, place: int, seed: int, device: str
) -> None:
    """1 for finite gradients, however large; 0 for one bad element anywhere."""
    memory = Stored()
    largest = torch.finfo(side.dtype).max
    grads = []
    for i, shape in enumerate(shapes):
        values = torch.where(noise(shape, seed + i) > 0, largest, -SMALLEST[side.dtype])
        grads.append(memory.put(values, side.layout, side.dtype, device))
    filled = [grad for grad in grads if grad.numel()]
    if bad is not None:
        grad = filled[place % len(filled)]
        grad[tuple(place % size for size in grad.shape)] = bad
    gate = triton_steps.finite_gate(grads)
    assert gate.shape == () and gate.dtype == torch.float32 and gate.device.type == device
    assert float(gate) == (1.0 if bad is None else 0.0)
    memory.check()
