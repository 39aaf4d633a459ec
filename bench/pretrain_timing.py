"""What a training step costs under each arm: all on one model, in turns, whatever the machine does meanwhile."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.optim import Optimizer
from transformers import PreTrainedModel

from orthoopt.bench.allocations import forget_workspaces, peak_extra_bytes
from orthoopt.bench.timing import Runner, Stopwatch, repeats_within, summarize, time_interleaved
from orthoopt.recipes.arguments import Arguments
from orthoopt.recipes.data import PretrainData
from orthoopt.recipes.trainer import optimizer_factory

_WARM_UP, _MOST_REPEATS = 3, 60


def time_arms(
    arms: Mapping[str, Arguments], model: PreTrainedModel, data: PretrainData, *, seconds: float
) -> dict[str, dict[str, Any]]:
    """Time forward and backward of one micro-batch, and the optimizer's step of every arm.

    Args:
        arms: name -> the recipe's arguments at the arm's best setting.
        model: with random weights; they are moved.
        data: whose first blocks are the batch.
        seconds: spent on each arm, about.

    Returns:
        arm -> ``optimizer_ms`` and ``step_ms`` (forward and backward as often as a step accumulates, and the
        optimizer), each with median, p20 and p80; ``peak_extra_bytes`` of the optimizer's step above what it keeps, and
        ``state_bytes``.
    """
    training = next(iter(arms.values())).training
    device = torch.device(training.device)
    model.to(device).train()
    blocks = [data.train[i] for i in range(training.per_device_train_batch_size)]
    batch = {name: tensor.to(device) for name, tensor in data.collate(blocks).items()}
    stopwatch = Stopwatch(device)

    def forward_backward() -> None:
        model.zero_grad()
        with torch.autocast(device.type, torch.bfloat16, enabled=training.bf16):
            loss = model(**batch).loss
        loss.backward()

    forward_backward()
    optimizers = {name: _build(arguments, model) for name, arguments in arms.items()}
    peaks, estimates = {}, {}
    for name, optimizer in optimizers.items():
        for _ in range(_WARM_UP):
            estimates[name], _ = stopwatch(optimizer.step)
        forget_workspaces()
        peaks[name] = peak_extra_bytes(optimizer.step, device)
    estimate, _ = stopwatch(forward_backward)
    calls: list[Callable[[], object]] = [forward_backward, *(optimizer.step for optimizer in optimizers.values())]
    counts = [repeats_within(seconds, each, _MOST_REPEATS) for each in (estimate, *estimates.values())]
    samples = time_interleaved([Runner(call) for call in calls], counts, stopwatch)
    forward, *steps = [summarize([wall for wall, _ in found]) for found in samples]
    passes = training.gradient_accumulation_steps
    return {
        name: {
            "optimizer_ms": _milliseconds(step),
            "step_ms": {key: passes * _milliseconds(forward)[key] + _milliseconds(step)[key] for key in _QUANTILES},
            "peak_extra_bytes": peaks[name],
            "state_bytes": _state_bytes(optimizers[name]),
        }
        for name, step in zip(optimizers, steps, strict=True)
    }


_QUANTILES = ("median", "p20", "p80")


def to_reach(
    targets: Sequence[float],
    curves: Sequence[Sequence[tuple[int, float]]],
    steps: int,
    tokens: int,
    step_ms: float | None,
) -> dict[str, float] | None:
    """What an arm needs to come down to another's final loss, on average over seeds; None if a seed never does.

    Validation losses are joined by straight lines.

    Args:
        targets: the loss of every seed.
        curves: of every seed, ``(step, validation loss)``.
        steps: of a whole run.
        tokens: of a whole run.
        step_ms: of one step, if it was timed.

    Returns:
        ``steps``, ``tokens``, ``share`` of the run and ``seconds``.
    """
    found = [_crossing(target, curve) for target, curve in zip(targets, curves, strict=True)]
    reached = [step for step in found if step is not None]
    if not found or len(reached) < len(found):
        return None
    mean = sum(reached) / len(reached)
    return {
        "steps": mean,
        "tokens": mean * tokens / steps,
        "share": mean / steps,
        **({} if step_ms is None else {"seconds": mean * step_ms / 1e3}),
    }


def _crossing(target: float, curve: Sequence[tuple[int, float]]) -> float | None:
    """The first step at which the curve is at the target or below."""
    before: tuple[int, float] | None = None
    for step, loss in curve:
        if loss <= target:
            if before is None or before[1] <= loss:
                return float(step)
            return before[0] + (step - before[0]) * (before[1] - target) / (before[1] - loss)
        before = (step, loss) if math.isfinite(loss) else None
    return None


def _build(arguments: Arguments, model: PreTrainedModel) -> Optimizer:
    factory, options = optimizer_factory(arguments)
    return factory()(model, **options)


def _milliseconds(summary: Mapping[str, Any]) -> dict[str, float]:
    return {key: 1e3 * summary[key] for key in _QUANTILES}


def _state_bytes(optimizer: Optimizer) -> int:
    """Of all tensors in the state, its parts' where it has parts."""
    parts = getattr(optimizer, "parts", (optimizer,))
    seen = {
        id(tensor): tensor.numel() * tensor.element_size()
        for part in parts
        for state in part.state.values()
        for tensor in state.values()
        if isinstance(tensor, torch.Tensor)
    }
    return sum(seen.values())
