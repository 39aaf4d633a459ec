"""Schedules of the learning rate: vectors may have one of their own beside the run's."""

from __future__ import annotations

import torch
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from transformers import get_scheduler

from orthoopt.recipes.errors import RecipeError

VECTOR_SCHEDULES = ("constant_with_warmup", "cosine", "linear")
"""Transformers' names of the schedules that vectors may have: warm-up, then constant, or falling to 0 at the end."""


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
