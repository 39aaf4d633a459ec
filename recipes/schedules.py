"""Schedules of the learning rate, factors of its peak by step.

=======================  ===========================================================================================
warmup_stable_decay      rises linearly over the warm-up, stays, and falls over the last `decay_fraction` of the
                         steps: linearly, or as `lr_scheduler_kwargs: {decay_type: ...}` says, `cosine` or `1-sqrt`
cosine                   rises over the warm-up and follows half a cosine to the end
linear                   rises over the warm-up and falls linearly to the end
constant_with_warmup     rises over the warm-up and stays
=======================  ===========================================================================================

Those that fall end at `min_lr_ratio` of the peak. transformers' other schedules are known by their names too. Vectors
may have one of their own beside the run's.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from transformers import get_scheduler

from orthoopt.recipes.errors import RecipeError

FALLING = ("warmup_stable_decay", "cosine", "linear")
"""Schedules that fall to the end, and may end above 0."""

VECTOR_SCHEDULES = ("constant_with_warmup", "cosine", "linear")
"""Transformers' names of the schedules that vectors may have: warm-up, then constant, or falling to 0 at the end."""


def check_schedule(name: str, decay_fraction: float, min_lr_ratio: float) -> None:
    """Raise `RecipeError` for a share outside of its range, and for a minimum of a schedule that has none."""
    if not 0.0 < decay_fraction < 1.0:
        raise RecipeError(f"--decay_fraction must lie between 0 and 1, got {decay_fraction}")
    if not 0.0 <= min_lr_ratio < 1.0:
        raise RecipeError(f"--min_lr_ratio must be at least 0 and below 1, got {min_lr_ratio}")
    if min_lr_ratio and name not in FALLING:
        raise RecipeError(f"--min_lr_ratio goes with --lr_scheduler_type {', '.join(FALLING)}, not with {name!s}")


def decay_steps(total_steps: int, warmup_steps: int, decay_fraction: float) -> int:
    """The steps in which warmup_stable_decay falls: their share of all, and none of the warm-up."""
    return min(round(decay_fraction * total_steps), max(total_steps - warmup_steps, 0))


def describe_schedule(
    name: str, total_steps: int | None, warmup: float, *, decay_fraction: float, min_lr_ratio: float
) -> str:
    """A schedule in words; `warmup` is in steps, or below 1 a share of them, and `total_steps` None where unknown."""
    if total_steps is None:
        steps = f"{warmup:g} of the" if 0 < warmup < 1 else f"{warmup:g}"
    else:
        warmup = math.ceil(total_steps * warmup) if warmup < 1 else int(warmup)
        steps = str(warmup)
    begins = [f"warm-up of {steps} steps"] if warmup else []
    end = f"to {min_lr_ratio:g} of the peak" if min_lr_ratio else "to 0"
    if name == "warmup_stable_decay":
        fall = f"{decay_fraction:g} of the" if total_steps is None else str(
            decay_steps(total_steps, int(warmup), decay_fraction))  # fmt: skip
        return ", ".join([*begins, "constant", f"down {end} in the last {fall} steps"])
    if name in ("cosine", "linear"):
        return ", ".join([*begins, f"{name} {end}"])
    return ", ".join([*begins, name])


def with_minimum(scheduler: LRScheduler, ratio: float, *, warmup_steps: int) -> LambdaLR:
    """The schedule squeezed into the range from `ratio` to 1 after its warm-up, which begins at 0 as ever.

    Args:
        scheduler: the run's, before its first step, a function of the step alone that falls to 0.
        ratio: the factor at which it ends, of the peak.
        warmup_steps: the steps that stay as they are.
    """
    assert isinstance(scheduler, LambdaLR)

    def squeezed(factor: Callable[[int], float]) -> Callable[[int], float]:
        return lambda step: factor(step) if step < warmup_steps else ratio + (1.0 - ratio) * factor(step)

    return LambdaLR(scheduler.optimizer, [squeezed(factor) for factor in scheduler.lr_lambdas])


def with_vector_schedule(scheduler: LRScheduler, name: str, *, warmup_steps: int, total_steps: int) -> LambdaLR:
    """The schedule with another factor of the learning rate for groups whose role is ``vector``.

    Args:
        scheduler: the run's, before its first step.
        name: one of :data:`VECTOR_SCHEDULES`.
        warmup_steps: in which the factor rises linearly from 0 to 1.
        total_steps: of the run.

    Raises:
        RecipeError: the run's schedule is no function of the step alone.
    """
    if not isinstance(scheduler, LambdaLR):
        raise RecipeError(
            f"--vector_schedule goes beside a schedule that is a function of the step, not {type(scheduler).__name__}"
        )
    nothing = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    (own,) = get_scheduler(name, nothing, num_warmup_steps=warmup_steps, num_training_steps=total_steps).lr_lambdas
    groups = zip(scheduler.optimizer.param_groups, scheduler.lr_lambdas, strict=True)
    # A new one, for the rates of step 0 are set where a schedule is made.
    return LambdaLR(scheduler.optimizer, [own if group.get("role") == "vector" else run for group, run in groups])
