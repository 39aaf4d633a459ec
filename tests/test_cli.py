"""The command line: what it prints, and how it fails."""

from __future__ import annotations

import subprocess
import sys

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
