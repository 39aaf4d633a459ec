"""`orthoopt pretrain --plan NAME` for every plan: the loss falls, nothing warns, and resuming changes nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from orthoopt import plans
from orthoopt.recipes import pretrain
from orthoopt.recipes.arguments import parse


def losses_of(output: Path) -> list[float]:
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if "loss" in row]


@pytest.mark.parametrize("plan", plans.names())
def test_every_plan_trains_and_resumes(plan: str, sandbox, tmp_path, capfd) -> None:
    """Warnings are errors here; the learning rate is the one that the default config has for the plan."""
    short = ("--plan", plan, "--generate_sample", "false", "--save_final", "false", "--eval_strategy", "no")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert pretrain.main(sandbox.flags(whole, *short)) == 0
    losses = losses_of(whole)
    # 300 tokens: about ln 300 = 5.7 at first. Noise between batches is near 0.05.
    assert losses[0] > 5.0 and losses[-1] < losses[0] - 0.2, losses
    captured = capfd.readouterr()
    assert "warn" not in (captured.out + captured.err).lower()
    # The whole run's checkpoint at step 8, taken up by another run of the same settings.
    checkpoint = whole / "checkpoint-8"
    assert checkpoint.is_dir()
    assert pretrain.main(sandbox.flags(parts, *short, "--resume_from_checkpoint", str(checkpoint))) == 0
    ends = [json.loads((folder / "results.json").read_text())["eval_loss"] for folder in (whole, parts)]
    assert ends[0] == ends[1]


def test_every_plan_has_a_learning_rate_in_the_default_config() -> None:
    for plan in plans.names():
        assert parse(["--plan", plan]).learning_rate > 0


def test_options_of_a_plan_reach_its_rules(sandbox, tmp_path) -> None:
    flags = sandbox.flags(
        tmp_path / "run", "--plan", "muon", "--plan_options", "second_moment=rows,ns_steps=3",
        "--generate_sample", "false", "--save_final", "false", "--eval_strategy", "no", "--save_strategy", "no",
    )  # fmt: skip
    assert pretrain.main(flags) == 0
    routing = json.loads((tmp_path / "run" / "run.json").read_text())["routing"]
    spectral = [item for item in routing if item["rule"] == "spectral"]
    assert spectral and all(item["second_moment"] == "rows" and item["ns_steps"] == 3 for item in spectral)


def test_an_option_that_no_rule_of_the_plan_has_is_named(sandbox, tmp_path, capsys) -> None:
    assert pretrain.main(sandbox.flags(tmp_path / "run", "--plan", "muon", "--plan_options", "ns_step=3")) == 2
    assert "did you mean 'ns_steps'" in capsys.readouterr().err
