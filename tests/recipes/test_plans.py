"""`orthoopt pretrain --plan NAME` for every plan: the loss falls, nothing warns, and resuming changes nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from orthoopt import load_plan, plans
from orthoopt.recipes import pretrain
from orthoopt.recipes.arguments import parse


def losses_of(output: Path) -> list[float]:
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if "loss" in row]


# Each has a kind of state of its own; the others differ from one of these in a rule, which has tests of its own.
_QUICK = ("adamw", "dct_adamw", "muon", "scion", "symmetry", "trion")


@pytest.mark.parametrize(
    "plan", [pytest.param(name, marks=() if name in _QUICK else pytest.mark.slow) for name in plans.names()]
)
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


PLAN = "base: symmetry\nroles: {router: {rule: adamw}}\npatterns: [{match: lm_head|embed, rule: adamw, lr: 1e-3}]\n"


def test_a_plan_file_trains_and_is_kept_with_the_run(sandbox, tmp_path, capsys, monkeypatch) -> None:
    """Its content is recorded; a run goes on with the same content from anywhere, and with another one not at all."""
    monkeypatch.chdir(tmp_path)
    path = Path("mine.yaml")
    path.write_text(PLAN)
    short = ("--generate_sample", "false", "--save_final", "false", "--eval_strategy", "no")
    flags = sandbox.flags(tmp_path / "run", *short)
    assert pretrain.main([*flags, "--plan", "mine.yaml"]) == 0
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    assert run["plan"] == "mine.yaml" and run["plan_file"]["text"] == PLAN
    assert run["plan_file"]["patterns"] == [{"match": "lm_head|embed", "rule": "adamw", "lr": 1e-3}]
    routing = {item["name"]: item for item in run["routing"]}
    assert routing["model.embed_tokens.weight"]["rule"] == "adamw"
    assert routing["model.embed_tokens.weight"]["lr"] == 1e-3
    assert routing["model.layers.0.mlp.up_proj.weight"]["rule"] == "spectral"
    kept = tmp_path / "run" / "resolved_plan.yaml"
    assert load_plan(kept).plan == load_plan(path).plan and load_plan(kept).overrides == load_plan(path).overrides
    ends = json.loads((tmp_path / "run" / "results.json").read_text())["eval_loss"]
    # The kept file does what the file did, in another folder and under another name.
    again = sandbox.flags(tmp_path / "again", *short, "--resume_from_checkpoint", str(tmp_path / "run/checkpoint-8"))
    assert pretrain.main([*again, "--plan", str(kept), "--learning_rate", str(run["learning_rate"])]) == 0
    assert json.loads((tmp_path / "again" / "results.json").read_text())["eval_loss"] == ends
    capsys.readouterr()
    changes = {
        PLAN.replace("1e-3", "2e-3"): "mine.yaml has other patterns than when",
        PLAN.replace("{rule: adamw}}", "{momentum: 0.5}}"): "mine.yaml has other roles than when",
    }
    before = (tmp_path / "run" / "run.json").read_bytes(), kept.read_bytes()
    for text, message in changes.items():
        path.write_text(text)
        assert pretrain.main([*flags, "--plan", "mine.yaml", "--resume_from_checkpoint", "auto"]) == 2
        error = capsys.readouterr().err
        assert (
            message in error
            and f"The plan of then: --plan {kept} --learning_rate 0.006" in error
            and error.count("\n") == 1
        )
    assert pretrain.main([*flags, "--plan", "symmetry", "--resume_from_checkpoint", "auto"]) == 2
    assert "plan 'mine.yaml', this run has 'symmetry'" in capsys.readouterr().err
    assert before == ((tmp_path / "run" / "run.json").read_bytes(), kept.read_bytes())


def test_a_plan_file_that_does_not_fit_the_model_is_named(sandbox, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text("base: muon\npatterns: [{match: lm_haed, rule: adamw}]")
    assert pretrain.main(sandbox.flags(tmp_path / "run", "--plan", "mine.yaml")) == 2
    error = capsys.readouterr().err
    assert "pattern 1 'lm_haed' of mine.yaml matches no parameter" in error and error.count("\n") == 1


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
