"""explain: one line says what a parameter gets and why; the sums are right; equal layers share a line."""

from __future__ import annotations

import json
import time

import models
import pytest
import torch
from torch import nn

import orthoopt
from orthoopt.explain import Explanation, explain
from orthoopt.roles import roles


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


def test_equal_layers_share_a_line_and_unequal_ones_do_not() -> None:
    deep = models.llama(num_hidden_layers=12)
    text = explain(deep, overrides=[(r"layers\.(3|7)\.mlp\.up_proj", {"rule": "adamw"})]).text()
    names = [line.split()[0] for line in text.splitlines() if "mlp.up_proj" in line]
    assert names == [
        "model.layers.{0..2,4..6,8..11}.mlp.up_proj.weight",
        "model.layers.{3,7}.mlp.up_proj.weight",
    ]
    full = explain(deep).text(full=True)
    assert all(line_of(full, name) for name, _ in deep.named_parameters())


def test_names_with_several_numbers_are_collapsed_only_when_complete() -> None:
    def stack(depths: list[int]) -> nn.ModuleList:
        return nn.ModuleList([nn.ModuleList([nn.Linear(4, 6, bias=False) for _ in range(n)]) for n in depths])

    complete = explain(nn.ModuleDict({"a": stack([2, 2, 2])})).text()
    assert line_of(complete, "a.{0..2}.{0,1}.weight")
    ragged = explain(nn.ModuleDict({"a": stack([2, 3, 2])})).text()
    assert line_of(ragged, "a.{0..2}.0.weight") and line_of(ragged, "a.{0..2}.1.weight")
    assert line_of(ragged, "a.1.2.weight")


def test_many_runs_of_layers_are_cut_short() -> None:
    layers = nn.ModuleList([nn.Linear(4, 6 if i % 4 == 3 else 8, bias=False) for i in range(24)])
    text = explain(layers).text()
    assert line_of(text, "{0..2,4..6,..,20..22}.weight") and line_of(text, "{3,7,..,23}.weight")


@pytest.mark.parametrize("width", [60, 120, 160, 240])
def test_reasons_fit_the_terminal_and_lose_nothing(width: int) -> None:
    explained = explain(models.gpt2())
    text, whole = explained.text(width=width), explained.text()
    beside = "reason" in text.splitlines()[0]
    if beside:
        assert max(map(len, text.splitlines())) <= width
    squeezed = "".join(text.split())
    for row in explained.rows:
        assert row.reason in whole
        if not beside:
            assert "".join(row.reason.split()) in squeezed
    assert beside == (width > 120)


def test_without_a_terminal_every_row_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    explained = explain(models.llama())
    print(explained)
    assert capsys.readouterr().out == explained.text() + "\n"


def test_to_dict_is_json_and_complete() -> None:
    explained = explain(models.gpt2(), lr=torch.tensor(0.25))
    loaded = json.loads(json.dumps(explained.to_dict()))
    assert loaded["lr"] == 0.25 and loaded["plan"] == "symmetry"
    assert len(loaded["rows"]) == len(explained.rows)
    row = next(row for row in loaded["rows"] if row["name"].endswith("0.attn.c_attn.weight"))
    assert row["shape"] == [32, 96] and row["view_words"] == "transposed, 3 fused matrices (32+32+32 rows)"
    assert loaded["state_bytes"] == explained.state_bytes
    assert explain(models.gpt2(), plan={"attention": {"rule": "spectral"}}).plan == "custom"


class Odd(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mixing = nn.Parameter(torch.zeros(4, 6))


def test_unknown_parameters_are_pointed_out_with_the_way_out() -> None:
    text = explain(Odd()).text()
    assert "1 of unknown role: mixing" in text and '(r"mixing", {"role": "hidden", "view": "matrix"})' in text
    settled = explain(Odd(), overrides=[(r"mixing", {"role": "hidden", "view": "matrix"})])
    assert settled.rows[0][2:5] == ("hidden", "matrix", "spectral") and "unknown" not in settled._summary()
    named = [("a.b", torch.zeros(2, 3, 4, requires_grad=True))]
    assert r'(r"a\.b"' in explain(named).text()


def test_a_28_layer_model_on_meta_is_quick() -> None:
    model = models.transformers_model("Qwen3ForCausalLM", {"num_hidden_layers": 28})
    started = time.perf_counter()
    text = str(explain(model))
    assert time.perf_counter() - started < 2  # 0.1 s when the machine is idle
    assert line_of(text, "model.layers.{0..27}.mlp.down_proj.weight")
    assert isinstance(explain(model), Explanation)
