"""explain: one line says what a parameter gets and why; the sums are right; JSON keeps everything."""

from __future__ import annotations

import json
import time
from pathlib import Path

import models
import pytest
import torch

import orthoopt
from orthoopt import rules
from orthoopt.explain import Explanation, explain
from orthoopt.roles import roles

NO_SYMMETRY = rules.Equivariance("none", "none")


def line_of(text: str, name: str) -> str:
    (line,) = [line for line in text.splitlines() if line.startswith(f"{name} ")]
    return line


def test_gpt2_under_symmetry_shows_what_the_readme_promises() -> None:
    model = models.transformers_model("GPT2LMHeadModel", {"n_layer": 2})
    text = str(explain(model, plan="symmetry"))
    wte = line_of(text, "transformer.wte.weight")
    assert "50257x768" in wte and "tied_embedding" in wte and "row_norm" in wte
    assert "lm_head.weight is the same tensor" in wte
    c_attn = line_of(text, "transformer.h.{0,1}.attn.c_attn.weight")
    assert "transpose split(768,768,768)" in c_attn and "spectral" in c_attn
    assert "q, k, v fused in its columns" in c_attn
    assert "transposed, 3 fused matrices (768+768+768 rows)" in text
    for layer in ("attn.c_proj", "mlp.c_fc", "mlp.c_proj"):
        line = line_of(text, f"transformer.h.{{0,1}}.{layer}.weight")
        assert " transpose " in line and "spectral" in line and "stores (in, out)" in line
    explained = explain(model)
    special = [row for row in explained.rows if row.rule != "adamw"]
    assert len(special) == 1 + 2 * 4
    assert all(row.role == row.view == "vector" for row in explained.rows if row.rule == "adamw")
    assert orthoopt.roles(model) == roles(model)


def test_rows_agree_with_the_param_groups() -> None:
    model = models.gpt_oss()
    rows = {row.name: row for row in explain(model, lr=0.5, weight_decay=0.25).rows}
    groups = orthoopt.param_groups(model, plan="symmetry", lr=0.5, weight_decay=0.25)
    listed = {name: group for group in groups for name, _ in group["params"]}
    assert rows.keys() == listed.keys()
    for name, group in listed.items():
        row = rows[name]
        assert (row.role, row.view, row.rule) == (group["role"], group["view"], group["rule"])
        assert (row.lr, row.weight_decay) == (group["lr"], group["weight_decay"])


def test_overrides_show_in_row_and_reason() -> None:
    explained = explain(models.qwen3(), overrides=[(r"lm_head", {"rule": "adamw", "lr": 0.125})])
    (head,) = [row for row in explained.rows if row.name == "lm_head.weight"]
    assert (head.rule, head.lr, head.view, head.role) == ("adamw", 0.125, "vector", "lm_head")
    assert "override 'lm_head'" in head.reason


def test_the_sums_of_the_summary() -> None:
    model = models.gpt2()
    explained = explain(model, plan="muon")
    elements = sum(param.numel() for param in model.parameters())
    assert explained.elements == elements == sum(share.elements for share in explained.shares)
    assert sum(share.tensors for share in explained.shares) == len(list(model.parameters()))
    assert explained.adamw_state_bytes == 8 * elements + 4 * len(explained.rows)
    adamw = sum(8 * row.numel + 4 for row in explained.rows if row.rule == "adamw")
    spectral = sum(4 * row.numel for row in explained.rows if row.rule == "spectral")
    assert explained.state_bytes == adamw + spectral == sum(share.state_bytes for share in explained.shares)
    assert explain(model, plan="adamw").state_bytes == explained.adamw_state_bytes


def test_state_bytes_are_what_the_optimizer_holds_also_for_bf16_parameters() -> None:
    model = models.TorchLanguageModel().bfloat16()
    optimizer = orthoopt.Symmetry(model, lr=1e-3)
    for param in model.parameters():
        param.grad = torch.ones_like(param)
    optimizer.step()
    tensors = [v for state in optimizer.state.values() for v in state.values() if isinstance(v, torch.Tensor)]
    held = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    assert explain(model).state_bytes == held


@pytest.mark.parametrize("plan", ["symmetry_paper", "dct_adamw", "scion"])
def test_json_keeps_everything(plan: str) -> None:
    explained = explain(models.gpt_oss(), plan, lr=torch.tensor(0.25))
    written = json.dumps(explained.to_dict(), allow_nan=False)
    again = Explanation.from_dict(json.loads(written))
    assert json.dumps(again.to_dict()) == written
    assert again.text() == explained.text() and again.compare(explained).same == len(explained.rows)
    assert explained.to_dict()["model"] == "GptOssForCausalLM"
    with pytest.raises(ValueError, match=r"schema 'orthoopt\.explain/0' is not 'orthoopt\.explain/1'"):
        Explanation.from_dict({"schema": "orthoopt.explain/0"})


def test_the_keys_of_the_json_are_the_documented_ones() -> None:
    page = (Path(__file__).parents[1] / "docs" / "explain.md").read_text()
    data = explain(models.gpt2()).to_dict()
    for keys in (data, data["rows"][0], data["shares"][0]):
        assert all(f"`{key}`" in page for key in keys), keys.keys()
    row = next(row for row in data["rows"] if row["name"].endswith("0.attn.c_attn.weight"))
    assert row["shape"] == [32, 96] and row["view_words"] == "transposed, 3 fused matrices (32+32+32 rows)"
    assert row["options"]["ns_steps"] == 5 and data["schema"] == "orthoopt.explain/1"
    assert explain(models.gpt2(), plan={"attention": {"rule": "spectral"}}).to_dict()["plan"] == "custom"


def test_only_some_parameters() -> None:
    explained = explain(models.gpt2())
    part = explained.only(r"\.0\.mlp")
    assert {row.name.split(".")[3] for row in part.rows} == {"mlp"} and len(part.rows) == 4
    assert [row.role for row in explained.only("mlp", "mlp_in").rows] == ["mlp_in"] * 2
    with pytest.raises(ValueError, match="pattern 'nope' matches no parameter; names: transformer.wte.weight"):
        explained.only("nope")
    with pytest.raises(ValueError, match="no parameter has the role 'router'; roles: .*attention"):
        explained.only("", "router")
    with pytest.raises(ValueError, match="is not a regular expression"):
        explained.only("(")


@pytest.mark.parametrize("plan", ["adamw", "muon", "trion"])
def test_the_cost_of_the_whole_is_the_sum_of_roles_and_of_rows(plan: str) -> None:
    explained = explain(models.olmoe(), plan)
    assert explained.flops == sum(share.flops or 0 for share in explained.shares) > 0
    assert explained.matmul_flops == sum(row.matmul_flops or 0 for row in explained.rows)
    assert (explained.matmul_flops == 0) == (plan == "adamw")


def test_the_cost_of_a_rule_that_reads_values_is_not_made_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules._base, "_RULES", dict(rules._base._RULES))

    def nosy_direction(momentum: torch.Tensor) -> torch.Tensor:
        """By the sign of the sum, which the host reads."""
        return momentum if momentum.sum().item() > 0 else -momentum

    rules.register(rules.momentum_rule("nosy", nosy_direction, rms=lambda r, c, o: 1.0, equivariance=NO_SYMMETRY))
    explained = explain(models.qwen3(), {"attention": {"rule": "nosy"}})
    assert explained.flops is None and explained.to_dict()["flops"] is None
    assert all((row.flops is None) == (row.rule == "nosy") for row in explained.rows)
    text = explained.text()
    assert "the cost of a step is not known: nosy cannot run without values" in text
    assert "?" in text and "<td" in explained.html()


def test_a_28_layer_model_on_meta_is_quick() -> None:
    model = models.transformers_model("Qwen3ForCausalLM", {"num_hidden_layers": 28})
    started = time.perf_counter()
    text = str(explain(model))
    assert time.perf_counter() - started < 2  # 0.1 s when the machine is idle
    assert line_of(text, "model.layers.{0..27}.mlp.down_proj.weight")
    assert isinstance(explain(model), Explanation)
