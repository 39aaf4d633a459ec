"""Schedules: vectors may have their own, and the published recipe has it."""

from __future__ import annotations

import json
import math
import shlex

import pytest
import torch
from torch.optim.lr_scheduler import ReduceLROnPlateau
from transformers import get_scheduler

from orthoopt.recipes import pretrain
from orthoopt.recipes.errors import RecipeError
from orthoopt.recipes.schedules import VECTOR_SCHEDULES, describe_schedule, with_minimum, with_vector_schedule


def optimizer() -> torch.optim.Optimizer:
    groups = [
        {"params": [torch.zeros(2)], "lr": rate, "role": role} for rate, role in ((0.5, "hidden"), (2.0, "vector"))
    ]
    return torch.optim.SGD(groups)


def factors(scheduler: torch.optim.lr_scheduler.LRScheduler, steps: int) -> list[list[float]]:
    """The learning rate of each group over its first one, at every step."""
    rows = []
    for _ in range(steps):
        groups = scheduler.optimizer.param_groups
        rows.append([group["lr"] / group["initial_lr"] for group in groups])
        scheduler.optimizer.step()
        scheduler.step()
    return [list(column) for column in zip(*rows, strict=True)]


def wsd(of: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
    kind = {"num_decay_steps": 4, "decay_type": "linear"}
    return get_scheduler("warmup_stable_decay", of, 0, 10, scheduler_specific_kwargs=kind)


def test_vectors_follow_their_own_schedule_from_the_first_step_and_others_the_runs() -> None:
    hidden, vector = factors(with_vector_schedule(wsd(optimizer()), "cosine", warmup_steps=2, total_steps=10), 10)
    assert hidden == factors(wsd(optimizer()), 10)[0] == pytest.approx([1.0] * 7 + [0.75, 0.5, 0.25])
    cosine = [0.5 * (1 + math.cos(math.pi * step / 8)) for step in range(8)]
    assert vector == pytest.approx([0.0, 0.5, *cosine])


@pytest.mark.parametrize("name", VECTOR_SCHEDULES)
def test_every_schedule_that_is_offered_is_transformers_own(name: str) -> None:
    own = factors(get_scheduler(name, optimizer(), num_warmup_steps=3, num_training_steps=10), 10)[1]
    assert factors(with_vector_schedule(wsd(optimizer()), name, warmup_steps=3, total_steps=10), 10)[1] == own


@pytest.mark.parametrize("name", ["cosine", "linear"])
def test_a_minimum_squeezes_what_comes_after_the_warm_up(name: str) -> None:
    plain = factors(get_scheduler(name, optimizer(), num_warmup_steps=3, num_training_steps=10), 10)[0]
    run = get_scheduler(name, optimizer(), num_warmup_steps=3, num_training_steps=10)
    found = factors(with_minimum(run, 0.1, warmup_steps=3), 10)
    assert found[0] == found[1] == pytest.approx(plain[:3] + [0.1 + 0.9 * factor for factor in plain[3:]])
    if name == "cosine":  # transformers has that one under another name
        given = {"min_lr_rate": 0.1}
        own = get_scheduler("cosine_with_min_lr", optimizer(), 3, 10, scheduler_specific_kwargs=given)
        assert found[0] == pytest.approx(factors(own, 10)[0])


def test_a_stable_phase_stays_at_the_peak_and_ends_at_the_minimum() -> None:
    found = factors(with_minimum(wsd(optimizer()), 0.2, warmup_steps=0), 11)[0]
    assert found == pytest.approx([1.0] * 7 + [0.8, 0.6, 0.4, 0.2])


@pytest.mark.parametrize(
    ("name", "steps", "warmup", "said"),
    [
        (
            "warmup_stable_decay",
            300,
            20,
            "warm-up of 20 steps, constant, down to 0.1 of the peak in the last 150 steps",
        ),
        ("warmup_stable_decay", 10, 0.8, "warm-up of 8 steps, constant, down to 0.1 of the peak in the last 2 steps"),
        ("cosine", None, 0.05, "warm-up of 0.05 of the steps, cosine to 0.1 of the peak"),
        ("cosine", 4, 20, "warm-up of 20 steps, which the run's 4 do not leave"),
        ("constant_with_warmup", 300, 5, "warm-up of 5 steps, constant_with_warmup"),
    ],
)
def test_schedules_in_words(name, steps, warmup, said) -> None:
    assert describe_schedule(name, steps, warmup, decay_fraction=0.5, min_lr_ratio=0.1) == said


def test_a_schedule_continues_from_its_state() -> None:
    straight = with_vector_schedule(wsd(optimizer()), "cosine", warmup_steps=2, total_steps=10)
    whole = factors(straight, 10)
    first = with_vector_schedule(wsd(optimizer()), "cosine", warmup_steps=2, total_steps=10)
    factors(first, 4)
    again = with_vector_schedule(wsd(optimizer()), "cosine", warmup_steps=2, total_steps=10)
    again.load_state_dict(first.state_dict())
    again.optimizer.load_state_dict(first.optimizer.state_dict())
    assert factors(again, 6) == [column[4:] for column in whole]


def test_a_schedule_that_waits_for_the_loss_is_refused() -> None:
    with pytest.raises(RecipeError, match="function of the step, not ReduceLROnPlateau"):
        with_vector_schedule(ReduceLROnPlateau(optimizer()), "cosine", warmup_steps=0, total_steps=10)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--vector_schedule cosin", "'cosin' is not one of ['constant_with_warmup', 'cosine', 'linear']; did you mean"),
        ("--vector_warmup_steps 3", "--vector_warmup_steps goes with --vector_schedule"),
        ("--vector_schedule cosine --vector_warmup_steps -1", "--vector_warmup_steps must be at least 0, got -1"),
    ],
)
def test_wrong_schedules_are_named(sandbox, tmp_path, capsys, flags: str, message: str) -> None:
    assert pretrain.main(sandbox.flags(tmp_path, *shlex.split(flags))) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("plan", ["symmetry_paper", "symmetry_paper_hybrid"])
def test_the_published_recipe_runs_with_its_rates_and_schedules(sandbox, tmp_path, plan: str) -> None:
    """On the sandbox's model and data; two steps of warm-up for vectors instead of a hundred."""
    flags = sandbox.flags(
        tmp_path, *shlex.split("--max_steps 10 --logging_steps 1 --save_strategy no --save_final false")
    )
    own = f"--plan {plan} --warmup_steps 0 --vector_warmup_steps 2 --generate_sample false"
    assert pretrain.main(["symmetry_paper", *flags, *shlex.split(own)]) == 0
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    rates = [row["lr"] for row in rows if "loss" in row]
    constant_then_down = [1.0] * 7 + [0.75, 0.5, 0.25]
    peaks = {"attention": 2e-2, "mlp_in": 2e-2, "mlp_out": 2e-2, "embedding": 0.5, "lm_head": 5e-3}
    for role, peak in peaks.items():
        assert [rate[role] for rate in rates] == pytest.approx([peak * factor for factor in constant_then_down])
    cosine = [0.0, 0.5, *(0.5 * (1 + math.cos(math.pi * step / 8)) for step in range(8))]
    assert [rate["vector"] for rate in rates] == pytest.approx([5e-2 * factor for factor in cosine])
    run = json.loads((tmp_path / "run.json").read_text())
    rules = {item["role"]: (item["rule"], item["view"]) for item in run["routing"]}
    assert rules["attention"][1] == "heads_in(2)"  # the last attention parameter is o_proj
    assert rules["mlp_out"][0] == ("spectral" if plan == "symmetry_paper" else "hybrid")
    assert all(row["loss"] < 20 for row in rows if "loss" in row)
