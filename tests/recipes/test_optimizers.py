"""`--optimizer`: another optimizer in place of a plan, alone, resumed and refused."""

from __future__ import annotations

import json
import shutil
import sys

import pytest
import torch

from orthoopt.bench import peer_optimizers
from orthoopt.recipes import pretrain
from orthoopt.recipes.arguments import parse
from orthoopt.recipes.errors import RecipeError
from orthoopt.recipes.optimizers import NamedOptimizer

PEERS = "orthoopt.bench.peer_optimizers"


def rows_of(output) -> list[dict]:
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


def test_two_optimizers_as_one_train_and_resume_to_the_same_numbers(sandbox, tmp_path, capsys) -> None:
    """torch's Muon with AdamW: both follow the schedule, and a checkpoint holds both."""
    short = ["--optimizer", f"{PEERS}:torch_muon", "--learning_rate", "0.01", "--optimizer_options",
             "embedding_lr_multiplier=10", "--generate_sample", "false", "--save_final", "false"]  # fmt: skip
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert pretrain.main(sandbox.flags(whole, *short)) == 0
    assert f"optimizer  {PEERS}:torch_muon, lr 0.01" in capsys.readouterr().out
    rows = [row for row in rows_of(whole) if "loss" in row]
    assert rows[-1]["loss"] < rows[0]["loss"] - 0.2
    # Two steps of warm-up, then constant, then down; the embedding's rate is ten times the others' throughout.
    rates = [row["lr"] for row in rows]
    assert rates[1]["hidden"] == 0.01 and rates[-1]["hidden"] < 0.005
    assert all(rate["embedding"] == pytest.approx(10 * rate["hidden"]) for rate in rates)
    run = json.loads((whole / "run.json").read_text())
    assert run["optimizer"] == f"{PEERS}:torch_muon" and run["plan"] == "torch_muon" and run["routing"] == []
    shutil.copytree(whole, parts, ignore=shutil.ignore_patterns("checkpoint-12", "results.json"))
    assert pretrain.main(sandbox.flags(parts, *short, "--resume_from_checkpoint", "auto")) == 0
    losses = [[row.get("loss", row.get("eval_loss")) for row in rows_of(folder)] for folder in (whole, parts)]
    assert losses[0] == losses[1]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--optimizer", "torch_muon"], "must be MODULE:FUNCTION"),
        (["--optimizer", "no_such_module:f"], "no_such_module cannot be imported"),
        (["--optimizer", f"{PEERS}:torch_muom"], "did you mean 'torch_muon'"),
        (["--optimizer", f"{PEERS}:torch_muon", "--plan_options", "momentum=0.9"], "--plan_options is for a plan's"),
        (["--optimizer", f"{PEERS}:torch_muon", "--dry_run", "true"], "--dry_run reckons with plans"),
        (["--optimizer", f"{PEERS}:torch_muon", "--optimizer_options", "lrr=1"], "unexpected keyword argument 'lrr'"),
    ],
)
def test_what_is_no_optimizer_is_named(sandbox, tmp_path, flags, message, capsys) -> None:
    assert pretrain.main(sandbox.flags(tmp_path / "run", "--learning_rate", "0.01", *flags)) == 2
    assert message in capsys.readouterr().err


def test_a_module_beside_the_run_is_found(tmp_path, monkeypatch) -> None:
    (tmp_path / "optimizers_of_my_own.py").write_text(
        "import torch\n"
        "def build(model, *, lr, weight_decay):\n"
        "    return torch.optim.SGD(model.parameters(), lr=lr, weight_decay=weight_decay)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry not in ("", str(tmp_path))])
    built = NamedOptimizer()(
        torch.nn.Linear(2, 2), target="optimizers_of_my_own:build", lr=0.5, weight_decay=0.25, options={}
    )
    assert isinstance(built, torch.optim.SGD)
    assert built.defaults["lr"] == 0.5 and built.defaults["weight_decay"] == 0.25


def test_it_needs_a_rate_of_its_own() -> None:
    with pytest.raises(RecipeError, match="give --learning_rate"):
        parse(["--optimizer", f"{PEERS}:torch_adamw"])


def test_a_function_that_gives_something_else_is_named(monkeypatch) -> None:
    monkeypatch.setattr(peer_optimizers, "nothing", lambda model, **rates: {}, raising=False)
    with pytest.raises(RecipeError, match="must return a torch.optim.Optimizer, got a dict"):
        NamedOptimizer()(torch.nn.Linear(2, 2), target=f"{PEERS}:nothing", lr=1.0, weight_decay=0.0, options={})
