"""Batches and runs counted in tokens."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest

from orthoopt.recipes.arguments import parse
from orthoopt.recipes.budget import settle_budget
from orthoopt.recipes.errors import RecipeError


def settled(processes: int, micro: int, block: int, batch: float | None, total: float | None) -> SimpleNamespace:
    training = SimpleNamespace(
        train_batch_size=micro, world_size=processes, gradient_accumulation_steps=1, max_steps=-1
    )
    settle_budget(SimpleNamespace(batch_tokens=batch, total_tokens=total), training, block)
    return training


@pytest.mark.parametrize(("processes", "micro", "block"), [(1, 16, 128), (8, 4, 2048), (3, 5, 7)])
@pytest.mark.parametrize("steps", [1, 2, 9])
def test_a_step_sees_the_tokens_that_were_asked_for(processes, micro, block, steps) -> None:
    batch = processes * micro * block * steps
    found = settled(processes, micro, block, batch, 10e6)
    assert found.gradient_accumulation_steps * processes * micro * block == batch
    # As many whole steps as it takes, and no more.
    assert (found.max_steps - 1) * batch < 10e6 <= found.max_steps * batch


def test_a_half_million_tokens_on_eight_gpus() -> None:
    found = settled(8, 4, 2048, 524288, 10e9)
    assert found.gradient_accumulation_steps == 8 and found.max_steps == math.ceil(10e9 / 524288) == 19074


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (500_000, r"500,000 is no multiple of the 65,536 tokens of block_size 2048 x per_device_train_batch_size 4 x 8 "
                  r"processes: the nearest are 458,752 and 524,288$"),
        (1000, "the nearest is 65,536$"),
        (0.5, "--batch_tokens must be a whole number of tokens, got 0.5"),
        (-65536, "got -65536"),
        (math.inf, "got inf"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_with_the_nearest_that_does(batch, message) -> None:
    with pytest.raises(RecipeError, match=message):
        settled(8, 4, 2048, batch, None)


def test_the_command_line_wins_over_a_config_that_says_it_in_the_other_way(tmp_path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("plan: adamw\nlearning_rate: 1e-3\nmax_steps: 30\ngradient_accumulation_steps: 2\n")
    tokens = parse([str(path), "--total_tokens", "1e5", "--batch-tokens=8192", "--per_device_train_batch_size", "16"])
    assert tokens.training.gradient_accumulation_steps == 4 and tokens.training.max_steps == 13
    assert "max_steps" not in tokens.given and tokens.given["total_tokens"] == 1e5
    path.write_text("plan: adamw\nlearning_rate: 1e-3\ntotal_tokens: 1e5\nblock_size: 100\n")
    steps = parse([str(path), "--max_steps", "7"])
    assert steps.training.max_steps == 7 and steps.run.total_tokens is None


@pytest.mark.parametrize(
    ("config", "flags", "where"),
    [
        ("max_steps: 3\ntotal_tokens: 1e5", [], "the config has both --total_tokens and --max_steps"),
        ("", ["--batch_tokens", "2048", "--gradient_accumulation_steps", "1"], "the command line has both"),
        ("", ["--total_tokens", "2048", "--num_train_epochs=1"], "--total_tokens and --num_train_epochs"),
    ],
)
def test_both_ways_in_one_place_are_refused(tmp_path, config, flags, where) -> None:
    (tmp_path / "mine.yaml").write_text(f"plan: adamw\nlearning_rate: 1e-3\n{config}\n")
    with pytest.raises(RecipeError, match=where):
        parse([str(tmp_path / "mine.yaml"), *flags])
