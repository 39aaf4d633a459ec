"""Comparing plans: what differs is listed, the rest counted, and both ways say the same."""

from __future__ import annotations

import json
import re
from typing import Any

import models
import pytest

from orthoopt import plans
from orthoopt.explain import explain
from orthoopt.explain_compare import Comparison, compare


def changes_of(comparison: Comparison) -> dict[str, dict[str, tuple[Any, Any]]]:
    return {difference.name: difference.changes for difference in comparison.differences}


@pytest.mark.parametrize("plan", plans.names())
def test_a_plan_does_not_differ_from_itself(plan: str) -> None:
    comparison = compare(models.gpt_oss(), plan, plan)
    assert comparison.differences == [] and comparison.same == len(comparison.left.rows)
    text = comparison.text()
    assert "nothing differs" in text and "->" not in text.partition("nothing differs")[2]
    assert comparison.to_dict()["differences"] == []


def test_what_muon_does_differently_from_symmetry() -> None:
    comparison = compare(models.qwen3(), "symmetry", "muon")
    assert changes_of(comparison) == {
        "model.embed_tokens.weight": {"rule": ("row_norm", "adamw"), "weight_decay": (0.0, 0.1)},
        "lm_head.weight": {"rule": ("row_norm", "adamw"), "weight_decay": (0.0, 0.1), "centre": ("both", None)},
    }
    assert comparison.same == len(comparison.left.rows) - 2
    text = comparison.text()
    assert f"symmetry -> muon: 2 of {len(comparison.left.rows)} tensors differ" in text
    assert "rule          row_norm  ->  adamw" in text and "centre        both      ->  -" in text


def test_options_heads_and_learning_rates_show() -> None:
    changes = changes_of(compare(models.llama(), "symmetry", "symmetry_paper_hybrid"))
    q = changes["model.layers.{0,1}.self_attn.q_proj.weight"]
    assert q["view"] == ("matrix", "heads(4)") and q["momentum_form"] == ("ema", "heavy_ball") and "rule" not in q
    down = changes["model.layers.{0,1}.mlp.down_proj.weight"]
    assert (
        down["rule"] == ("spectral", "hybrid") and down["axis"] == (None, "cols") and down["nesterov"] == (True, False)
    )
    assert changes["model.embed_tokens.weight"]["lr"] == (0.01, 0.025)
    mode = {"attention": {"rule": "spectral", "weight_decay_mode": "cautious"}}
    cautious = changes_of(compare(models.llama(), {"attention": {"rule": "spectral"}}, mode))
    assert set(map(str, cautious.values())) == {"{'weight_decay_mode': ('decoupled', 'cautious')}"}


@pytest.mark.parametrize("other", ["muon", "symmetry_paper", "scion", "dct_adamw", "adamw"])
def test_both_ways_say_the_same(other: str) -> None:
    there, back = compare(models.olmoe(), "symmetry", other), compare(models.olmoe(), other, "symmetry")
    turned = {name: {key: (b, a) for key, (a, b) in changes.items()} for name, changes in changes_of(back).items()}
    assert changes_of(there) == turned and there.same == back.same


def test_the_sums_of_both_and_their_ratio() -> None:
    comparison = explain(models.gpt2(), "adamw").compare(explain(models.gpt2(), "muon"))
    data = json.loads(json.dumps(comparison.to_dict()))
    assert data["schema"] == "orthoopt.comparison/1"
    assert data["left"]["state_bytes"] == comparison.left.state_bytes
    assert data["right"]["flops"] == comparison.right.flops
    (line,) = [line for line in comparison.text().splitlines() if line.startswith("a step")]
    left, right = comparison.left.flops, comparison.right.flops
    assert left and right and float(line.split()[-1]) == pytest.approx(right / left, rel=5e-3)
    assert len(data["differences"]) == len(comparison.differences)
    differing = {name for difference in data["differences"] for name in difference["parameters"]}
    assert len(differing) + data["same"] == len(comparison.left.rows)


@pytest.mark.parametrize("width", [60, 80, 120])
def test_it_fits(width: int) -> None:
    comparison = compare(models.gpt_oss(), "symmetry", "symmetry_paper")
    assert max(map(len, comparison.text(width=width).splitlines())) <= width
    assert "\x1b" not in comparison.text(width=width) and "\x1b" in comparison.text(width=width, color=True)


def test_layers_of_a_kind_share_their_changes() -> None:
    text = compare(models.llama(num_hidden_layers=12), "muon", "root").text()
    assert len(re.findall("rule +spectral +-> +root", text)) == 3  # attention, mlp_in, mlp_out
    assert text.count("mlp.gate_proj") == text.count("mlp.up_proj") == 1
    after = text[text.index("mlp.gate_proj") :].splitlines()
    assert "mlp.up_proj" in after[1]  # the same happens to both: said once


def test_other_parameters_cannot_be_compared() -> None:
    with pytest.raises(
        ValueError, match="same parameters can be compared: 28 against .*the first that differs is transformer.wte"
    ):
        explain(models.gpt2()).compare(explain(models.llama()))
    few = explain(models.gpt2())
    with pytest.raises(ValueError, match="against 4, the first that differs is transformer.wte.weight"):
        few.compare(few.only(r"0\.mlp"))


def test_an_iterator_of_parameters_is_read_once() -> None:
    comparison = compare(models.qwen3().named_parameters(), "symmetry", "muon")
    assert len(comparison.left.rows) == len(comparison.right.rows) > 10
