"""The command line: what it prints, and how it fails."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from orthoopt.cli import main


def test_without_a_command_it_says_how_it_is_used(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "explain MODEL" in capsys.readouterr().err
    assert main(["--help"]) == 0
    assert "pretrain [CONFIG]" in capsys.readouterr().out
    assert main(["train"]) == 2
    assert "unknown command 'train'" in capsys.readouterr().err
    assert main(["bench"]) == 2
    assert main(["bench", "--help"]) == 0
    assert "step" in capsys.readouterr().out


def test_explain_a_model_class_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    small = ["--set", "num_hidden_layers=2", "--set", "hidden_size=64"]
    assert main(["explain", "Qwen3ForCausalLM", "--lr", "0.5", *small]) == 0
    out = capsys.readouterr().out
    assert "model.layers.{0,1}.self_attn.q_proj.weight" in out
    assert "lm_head" in out and "row_norm" in out and "AdamW's would be" in out and " 0.5 " in out
    assert main(["explain", "gpt2", "--plan", "muon", "--set", "n_layer=1"]) == 0
    assert "transpose split(768,768,768)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["Qwen3ForCausalLN"], "did you mean 'Qwen3"),
        (["gpt2", "--plan", "symetry"], "did you mean 'symmetry'"),
        (["gpt2", "--set", "n_layers=2"], "did you mean 'n_layer'"),
        (["gpt2", "--set", "n_layer"], "is not KEY=VALUE"),
    ],
)
def test_explain_names_what_is_wrong(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", *arguments]) == 1
    captured = capsys.readouterr()
    assert message in captured.err and not captured.out


def test_importing_orthoopt_is_light() -> None:
    """The core rests on torch alone: nothing else of weight may come with it."""
    code = (
        "import sys, torch; before = set(sys.modules); import orthoopt; "
        "new = {name.split('.')[0] for name in set(sys.modules) - before}; "
        "print(sorted(new & {'transformers', 'datasets', 'accelerate', 'matplotlib', 'wandb', 'triton', 'yaml'}))"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


SMALL = ["gpt2", "--set", "n_layer=1", "--set", "n_embd=48", "--set", "vocab_size=96"]


def explained(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["explain", *SMALL, *arguments]) == 0
    return capsys.readouterr().out


def test_explain_as_json_and_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    data = json.loads(explained(capsys, "--json", "--lr", "0.5", "--plan", "muon"))
    assert (data["schema"], data["plan"], data["lr"], len(data["rows"])) == ("orthoopt.explain/1", "muon", 0.5, 16)
    part = json.loads(explained(capsys, "--json", "--only", r"\.mlp\.", "--role", "mlp_out"))
    assert [row["name"] for row in part["rows"]] == ["transformer.h.0.mlp.c_proj.weight"]


def test_explain_as_a_page(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    page = explained(capsys, "--html", "-")
    assert page.startswith("<!DOCTYPE html>") and page.endswith("</html>\n")
    assert main(["explain", *SMALL, "--html", str(tmp_path / "page.html")]) == 0
    captured = capsys.readouterr()
    assert captured.out == "" and "wrote" in captured.err
    assert (tmp_path / "page.html").read_text() == page
    assert main(["explain", *SMALL, "--html", str(tmp_path / "none" / "page.html")]) == 1
    assert "No such file or directory" in capsys.readouterr().err


def test_explain_compares_plans(capsys: pytest.CaptureFixture[str]) -> None:
    text = explained(capsys, "--compare", "muon")
    assert "symmetry -> muon: 1 of 16 tensors differ" in text and "row_norm  ->  adamw" in text
    data = json.loads(explained(capsys, "--compare", "muon", "--json"))
    assert [difference["name"] for difference in data["differences"]] == ["transformer.wte.weight"]
    assert main(["explain", *SMALL, "--compare", "muo"]) == 1
    assert "did you mean 'muon'" in capsys.readouterr().err


def test_explain_fits_a_width_and_is_coloured_on_demand(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    plain = explained(capsys, "--width", "80")
    assert max(map(len, plain.splitlines())) <= 80 and "\x1b" not in plain
    assert "\x1b[" in explained(capsys, "--color", "always")
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert "\x1b[" in explained(capsys)
    assert "\x1b" not in explained(capsys, "--color", "never") + explained(capsys, "--json")
    assert "transformer.h.0.ln_1.bias" in explained(capsys, "--full")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--compare", "muon", "--html", "-"], "--compare is shown as a table or as --json"),
        (["--json", "--html", "-"], "not allowed with argument"),
        (["--width", "wide"], "'wide' is not a number of columns"),
        (["--color", "blue"], "invalid choice: 'blue'"),
        (["--role", "head"], "invalid choice: 'head'"),
    ],
)
def test_explain_refuses_what_does_not_go_together(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["explain", "gpt2", *arguments])
    captured = capsys.readouterr()
    assert message in captured.err and not captured.out


def test_explain_help_shows_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["explain", "--help"])
    out = capsys.readouterr().out
    assert "examples:" in out and "symmetry_paper_hybrid" in out and max(map(len, out.splitlines())) <= 120


def test_a_reader_that_has_read_enough_is_no_error() -> None:
    code = "import sys; from orthoopt.cli import main; sys.exit(main(['explain', 'gpt2', '--full']))"
    with subprocess.Popen([sys.executable, "-P", "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as run:
        assert run.stdout is not None and run.stderr is not None
        run.stdout.close()
        error = run.stderr.read().decode()
    assert run.returncode == 0 and "Broken" not in error, error


ROOT = Path(__file__).parents[1]
QUOTED = re.compile(r"^```\n\$ orthoopt (.*?)\n(.*?)^```", re.M | re.S)


@pytest.mark.parametrize("command", [command for command, _ in QUOTED.findall((ROOT / "docs/explain.md").read_text())])
def test_output_quoted_in_the_documents_is_what_comes_out(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(shlex.split(command)) == 0
    assert capsys.readouterr().out == dict(QUOTED.findall((ROOT / "docs/explain.md").read_text()))[command]


def test_output_quoted_in_the_readme_is_what_comes_out(capsys: pytest.CaptureFixture[str]) -> None:
    part = (ROOT / "README.md").read_text().partition("## See what it does")[2]
    command = re.search(r"`orthoopt (explain .*?)`", part)
    assert command and main([*shlex.split(command[1]), "--width", "160"]) == 0
    lines = capsys.readouterr().out.splitlines()
    quoted = part.split("```\n")[1].splitlines()
    assert len(quoted) > 12 and all(line in lines for line in quoted if line != "...")
