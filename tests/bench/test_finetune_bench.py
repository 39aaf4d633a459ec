"""The fine-tuning bench: a run and its row, and what is made of rows."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from orthoopt.bench import finetune, intervals
from orthoopt.bench.finetune_tables import page

TINY = "hidden_size=32,intermediate_size=64,num_hidden_layers=1,num_attention_heads=2,num_key_value_heads=1,head_dim=16"


def test_a_run_is_made_once_and_its_row_is_that_of_its_folder(tmp_path, capsys) -> None:
    text = tmp_path / "text.txt"
    text.write_text("".join(f"def value_{n}(index): return {n % 9} + index\n" for n in range(300)))
    shared = (
        f"--data text:{text} --model_overrides {TINY} --vocab_size 300 --block_size 32 --cache_dir {tmp_path / 'c'}"
    )
    given = [
        "--pretrain_steps",
        "3",
        "--max_steps",
        "2",
        "--eval_blocks",
        "8",
        "--arms",
        "adamw,lora:muon",
        "--rank",
        "2",
    ]
    options = finetune._parse([*given, *shared.split()])
    runs = tmp_path / "runs"
    base = finetune.pretrained("adamw", runs, 3, options.flags)
    rows = [finetune.one_run(base, options.arms[1], rate, 0, options, runs) for rate in (1e-2, 2e-2, 1e-2)]
    assert rows[0] == rows[2] != rows[1] and len(list((runs / "kept").iterdir())) == 2
    assert rows[0]["before"]["old_loss"] == pytest.approx(base["pretraining"]["eval_loss"], rel=1e-2)  # fewer blocks
    assert rows[0]["forgotten"] == rows[0]["old_loss"] - rows[0]["before"]["old_loss"]
    assert (rows[0]["steps"], rows[0]["trainable"]) == (2, 2 * (2 * 64 + 2 * 48 + 3 * 96))
    assert finetune.pretrained("adamw", runs, 3, options.flags) == base
    assert "pretraining with adamw" in capsys.readouterr().out


def row(rate: float, best: float, seed: int, forgetting: float) -> dict:
    new = 4.0 + math.log2(rate / best) ** 2 + 0.01 * seed
    return {
        "new_loss": new, "new_bits_per_byte": new / 2, "old_loss": 3.0 + forgetting + 0.001 * seed,
        "forgotten": forgetting, "seconds": 1.0, "before": {"new_loss": 5.0, "old_loss": 3.0}, "trainable": 10,
        "corpus": {"name": "builtin:manual"}, "scored": {"blocks": 8}, "steps": 2, "tokens": 64,
    }  # fmt: skip


def test_each_arm_is_compared_at_its_own_best_rate(tmp_path, monkeypatch) -> None:
    """Two arms whose best rates are known, the second's beyond the first grid; it forgets less, and learns alike."""
    best = {"adamw": 2e-3, "muon": 6.4e-2}

    def made(base, tuning, rate, seed, options, runs):
        return row(rate, best[tuning.name], seed, {"adamw": 0.5, "muon": 0.2}[tuning.name])

    monkeypatch.setattr(finetune, "one_run", made)
    options = finetune._parse(["--arms", "adamw,muon", "--starts", "muon=8e-3"])
    base = {"weights_sha256": "0", "pretraining": {"plan": "adamw", "steps": 1, "tokens": 1, "corpus": {"name": "c"}}}
    result = finetune.compare(base, options, tmp_path)
    assert {name: arm["best_learning_rate"] for name, arm in result["arms"].items()} == best
    assert [len(arm["grid"]) for arm in result["arms"].values()] == [3, 6]  # 4, 8, 16 and then 32, 64, 128 e-3
    (new,), (old,) = result["differences"]["new_loss"], result["differences"]["old_loss"]
    assert new["difference"]["mean"] == pytest.approx(0.0, abs=1e-12)
    assert old["winner"] == "muon" and old["difference"]["mean"] == pytest.approx(-0.3)
    text = page({"machine": machine(), "settings": {"seeds": 3}, "bases": {"adamw": result}})
    assert "| muon | 10 | 0.064 | 4.010 | +0.000" in text and "0.128: 5.000 / +0.200" in text


def machine() -> dict:
    return {"versions": {"torch": "2", "python": "3"}, "gpu": None, "cpu": "CPU", "torch_threads": 1, "git": None,
            "time": "now", "load_average": 0.0}  # fmt: skip


def test_wrong_arms_are_named(capsys) -> None:
    for given in (["--arms", "lora:muonn"], ["--starts", "muon=fast"]):
        with pytest.raises(SystemExit):
            finetune._parse(given)
    assert "muonn" in capsys.readouterr().err


def test_the_figures_of_the_documents_are_those_of_the_file() -> None:
    root = Path(__file__).parents[2]
    result = json.loads((root / "bench" / "results" / "finetune_cpu.json").read_text())
    text, document = page(result), " ".join((root / "docs" / "finetuning.md").read_text().split())
    assert (root / "bench" / "results" / "finetune_cpu.md").read_text() == text
    rows = [line for line in text.splitlines() if line.startswith("| ") and line.count("|") == 9]
    assert len(rows) == 2 * 7 and all(" ".join(line.split()) in document for line in rows)
    adapters = []
    for base in result["bases"].values():
        for name, arm in base["arms"].items():
            rates = [row["learning_rate"] for row in arm["grid"]]
            assert min(rates) < arm["best_learning_rate"] < max(rates), name
            assert len(arm["seeds"]) >= 3, name
        seeds = {name: {row["seed"]: row["new_loss"] for row in arm["seeds"]} for name, arm in base["arms"].items()}
        adapters.append(intervals.compare("lora:adamw", "lora:muon", seeds))
        for figure in base["before"].values():
            assert f"{figure:.3f}" in document
    assert all(row["winner"] == "lora:muon" for row in adapters)
    assert "it was {:.3f} and {:.3f} lower".format(*(row["difference"]["mean"] for row in adapters)) in document
    (theirs, ours) = (
        {name: {row["learning_rate"]: row for row in arm["grid"]} for name, arm in base["arms"].items()}
        for base in (result["bases"]["adamw"], result["bases"]["symmetry"])
    )
    for name in ("muon", "symmetry"):  # on the model of AdamW, each of their rates is beaten on both texts
        for point in theirs[name].values():
            better = [row for row in theirs["adamw"].values()
                      if row["new_loss"] < point["new_loss"] and row["forgotten"] < point["forgotten"]]  # fmt: skip
            assert better, (name, point)
    muon, adamw = ours["muon"][4e-3], ours["adamw"][4e-3]
    assert f"({muon['new_loss']:.3f} against {adamw['new_loss']:.3f})" in document
    assert f"({muon['forgotten']:.3f} against {adamw['forgotten']:.3f}; one seed)" in document
    low, lora = theirs["adamw"][1e-3], theirs["lora:adamw"][8e-3]
    assert f"forgot {low['forgotten']:.3f} where adapters forgot {lora['forgotten']:.3f}" in document
    assert f"reached {low['new_loss']:.3f} where they reached {lora['new_loss']:.3f}" in document
