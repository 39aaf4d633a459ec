"""``orthoopt plan``: what it prints is a plan file again, and what is wrong is one line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import models
import pytest

from orthoopt import load_plan, param_groups, plans
from orthoopt.cli import main

SMALL = ["--model", "Qwen3ForCausalLM", "--set", "num_hidden_layers=2", "--set", "hidden_size=64"]
GOOD = "base: symmetry\nroles: {embedding: {lr_multiplier: 5}}\npatterns: [{match: 'lm_head', rule: adamw, lr: 1e-4}]\n"


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_it_lists_every_ready_plan_with_its_rules(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == plans.names()
    (line,) = [line for line in lines if line.startswith("symmetry ")]
    assert "spectral: linear maps; row_norm: embedding, tied_embedding, lm_head, router; adamw: vector, unkn" in line
    for line in lines:  # no rule of a plan is left out
        assert {entry["rule"] for entry in plans.get(line.split()[0]).values()} <= set(line.replace(":", "").split())


@pytest.mark.parametrize("flags", [[], ["--toml"]], ids=["yaml", "toml"])
@pytest.mark.parametrize("name", plans.names())
def test_what_is_printed_is_the_plan_as_a_file(name: str, flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", name, *flags]) == 0
    path = Path("printed.toml" if flags else "printed.yaml")
    path.write_text(capsys.readouterr().out)
    assert load_plan(path).plan == plans.get(name)


@pytest.mark.parametrize("flags", [[], ["--toml"], SMALL], ids=["yaml", "toml", "model"])
def test_a_file_is_found_fine_and_printed_in_full(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    Path("mine.yaml").write_text(GOOD)
    assert main(["plan", "mine.yaml", *flags]) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("# mine.yaml is fine: based on symmetry, 1 pattern; in full:\n")
    if flags == SMALL:
        assert "# tensors of Qwen3ForCausalLM: spectral 14, adamw 10, row_norm 1" in captured.out
        assert "# pattern 1 'lm_head' of mine.yaml decides 1: lm_head.weight" in captured.out
    again = Path("again.toml" if "--toml" in flags else "again.yaml")
    again.write_text(captured.out)
    assert load_plan(again).plan == load_plan("mine.yaml").plan
    assert load_plan(again).overrides == load_plan("mine.yaml").overrides
    assert repr(param_groups(models.qwen3(), again)) == repr(param_groups(models.qwen3(), "mine.yaml"))


def test_a_pattern_that_never_wins_is_said_beside_the_model(capsys: pytest.CaptureFixture[str]) -> None:
    Path("mine.yaml").write_text("base: muon\npatterns: [{match: mlp, ns_steps: 3}, {match: up_proj, ns_steps: 4}]")
    assert main(["plan", "mine.yaml", *SMALL]) == 0
    out = capsys.readouterr().out
    assert "# pattern 1 'mlp' of mine.yaml decides 6: model.layers.0.mlp.gate_proj.weight, " in out
    assert "# pattern 2 'up_proj' of mine.yaml decides nothing" in out
    assert out.count("# warning: pattern 2 'up_proj' of mine.yaml never wins") == 1


@pytest.mark.parametrize(
    ("arguments", "text", "message"),
    [
        (["symetry"], "", "unknown plan 'symetry'; did you mean 'symmetry'"),
        (["mina.yaml"], GOOD, "no plan file mina.yaml; did you mean 'mine.yaml'"),
        (["mine.yaml"], "base: muonn", "'base' of mine.yaml: unknown plan 'muonn'; did you mean 'muon'"),
        (["mine.yaml"], "base: [", "mine.yaml is not YAML"),
        (["mine.yaml"], "base: muon\noptions: {momentun: 1}", "did you mean 'momentum'"),
        (["mine.yaml", *SMALL], GOOD.replace("lm_head", "lm_haed"), "pattern 1 'lm_haed' of mine.yaml matches no para"),
        (
            ["mine.yaml", *SMALL],
            "base: muon\npatterns: [{match: lm_head, ns_steps: 3}]",
            "rule 'adamw' (pattern 1 'lm_head' of mine.yaml) has no option 'ns_steps'",
        ),
        (["mine.yaml", "--model", "Qwen3ForCausalLN"], GOOD, "did you mean 'Qwen3"),
        (
            ["mine.yaml", "--toml"],
            "base: muon\npatterns: [{match: lm_head, rule: hybrid_auon, ns_steps: null}]",
            "ns_steps is None, which TOML cannot say",
        ),
    ],
)
def test_what_is_wrong_is_one_line(
    arguments: list[str], text: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("mine.yaml").write_text(text)
    assert main(["plan", *arguments]) == 1
    captured = capsys.readouterr()
    assert message in captured.err and captured.err.startswith("orthoopt plan: ") and not captured.out
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--toml"], "--model, --set and --toml need a PLAN"),
        (["muon", "--set", "a=1"], "--set changes the config of --model, which is not given"),
        (["muon", "adamw"], "unrecognized arguments: adamw"),
    ],
)
def test_wrong_usage_is_status_2(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["plan", *arguments])
    assert caught.value.code == 2 and message in capsys.readouterr().err


def test_explain_takes_a_file_and_names_its_mistakes(capsys: pytest.CaptureFixture[str]) -> None:
    Path("mine.yaml").write_text(GOOD)
    assert main(["explain", SMALL[1], *SMALL[2:], "--plan", "mine.yaml"]) == 0
    out = capsys.readouterr().out
    assert "plan mine.yaml, lr 0.001" in out and "pattern 1 'lm_head' of mine.yaml" in out
    Path("mine.yaml").write_text("base: muon\nroles: {mlp_in: {ns_step: 3}}")
    assert main(["explain", SMALL[1], *SMALL[2:], "--plan", "mine.yaml"]) == 1
    captured = capsys.readouterr()
    assert "(role 'mlp_in' of mine.yaml) has no option 'ns_step'; did you mean 'ns_steps'" in captured.err
    assert captured.err.count("\n") == 1 and not captured.out


def test_neither_the_list_nor_toml_needs_more_than_torch() -> None:
    Path("mine.toml").write_text('base = "muon"\n')
    code = (
        "import sys; sys.modules.update(yaml=None, transformers=None); from orthoopt.cli import main; "
        "sys.exit(main(['plan']) or main(['plan', 'mine.toml']) or 10 * main(['plan', 'mine.yaml']))"
    )
    Path("mine.yaml").write_text(GOOD)
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 10, done.stderr
    assert "# mine.toml is fine: based on muon, 0 patterns" in done.stdout
    assert done.stderr == (
        "orthoopt plan: plan file mine.yaml: YAML needs PyYAML; pip install pyyaml, or write the plan as TOML\n"
    )
