"""`orthoopt fit-coefficients` on the checkpoint of a real run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from orthoopt.cli import main
from orthoopt.recipes import pretrain


@pytest.mark.parametrize("plan", ["root", pytest.param("symmetry", marks=pytest.mark.slow)])
def test_a_checkpoint_of_the_recipe_can_be_fitted_to(
    plan: str, sandbox, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        pretrain.main(sandbox.flags(tmp_path, "--plan", plan, "--learning_rate", "0.006", "--generate_sample", "false"))
        == 0
    )
    checkpoint = tmp_path / "checkpoint-12"
    capsys.readouterr()
    assert main(["fit-coefficients", "32", "64", "--momentum-from", str(checkpoint), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    # Two layers of gate, up and down: 64x32, 64x32, 32x64.
    assert result["momenta"]["found"] == 6 and result["momenta"]["held_out"] == 1
    assert "model.layers.0.mlp.down_proj.weight" in result["momenta"]["parameters"]
    assert result["largest_singular_value"]["fitted"] <= 1.2
    assert main(["fit-coefficients", "5", "7", "--momentum-from", str(checkpoint)]) == 1
    assert "6 of 32x64" in capsys.readouterr().err
