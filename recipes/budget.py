"""A batch and a run counted in tokens: `--batch_tokens` and `--total_tokens` become Trainer's steps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Set
from typing import Any

from orthoopt.recipes.errors import RecipeError
from orthoopt.recipes.run_arguments import PretrainArguments, RunArguments

_TWO_WAYS = {"batch_tokens": "gradient_accumulation_steps", "total_tokens": "max_steps"}
"""An option in tokens, and the one of Trainer that says the same."""


def superseded(settings: Mapping[str, Any], typed: Set[str]) -> set[str]:
    """The config's keys that the command line says in the other way: `--max_steps` for `total_tokens`, and so on.

    Raises:
        RecipeError: both ways stand in one place.
    """
    dropped = set()
    for pair in (*_TWO_WAYS.items(), ("total_tokens", "num_train_epochs")):
        for where, given in (("the command line", typed), ("the config", set(settings))):
            if given >= set(pair):
                raise RecipeError(f"{where} has both --{pair[0]} and --{pair[1]}: give one of them")
        for one, other in (pair, pair[::-1]):
            if one in typed and other in settings:
                dropped.add(other)
    return dropped


def settle_budget(run: RunArguments, training: PretrainArguments, block_size: int) -> None:
    """Set `gradient_accumulation_steps` from `batch_tokens`, and `max_steps` from `total_tokens`.

    Args:
        run: says how many tokens a step sees, over all processes, and how many the run.
        training: is told the steps.
        block_size: tokens of an example.

    Raises:
        RecipeError: a step of so many tokens would hold a part of a micro-batch; the nearest that fit are named.
    """
    for option in _TWO_WAYS:
        tokens = getattr(run, option)
        if tokens is not None and not (tokens >= 1 and float(tokens).is_integer()):
            raise RecipeError(f"--{option} must be a whole number of tokens, got {tokens:g}")
    micro = block_size * training.train_batch_size * training.world_size
    if run.batch_tokens is not None:
        steps, rest = divmod(int(run.batch_tokens), micro)
        if rest or not steps:
            fitting = [f"{count * micro:,}" for count in (steps, steps + 1) if count]
            processes = f" x {training.world_size} processes" if training.world_size > 1 else ""
            raise RecipeError(
                f"--batch_tokens {int(run.batch_tokens):,} is no multiple of the {micro:,} tokens of block_size "
                f"{block_size} x per_device_train_batch_size {training.train_batch_size}{processes}: "
                f"the nearest {'is' if len(fitting) == 1 else 'are'} {' and '.join(fitting)}"
            )
        training.gradient_accumulation_steps = steps
    if run.total_tokens is not None:
        training.max_steps = math.ceil(int(run.total_tokens) / (micro * training.gradient_accumulation_steps))
