"""Roles: every trainable parameter once, with the role and the view that its forward pass gives it."""

from __future__ import annotations

import re

import models
import pytest
import torch
from expected_roles import MODELS, by_name
from torch import nn

from orthoopt.roles import ROLES, ParameterRole, classify, roles
from orthoopt.views import parse_view


@pytest.mark.parametrize("which", MODELS)
def test_roles_and_views_by_hand(which: str) -> None:
    build, expected = MODELS[which]
    model = build()
    listed = roles(model)
    assert [entry.name for entry in listed] == [name for name, _ in model.named_parameters()]
    unused = set(expected)
    for entry in listed:
        pattern = next((p for p in expected if re.fullmatch(p, entry.name)), None)
        assert pattern is not None, f"no expectation for {entry}"
        unused.discard(pattern)
        assert (entry.role, entry.view) == expected[pattern], entry
    assert not unused


@pytest.mark.parametrize("which", MODELS)
def test_every_parameter_once_with_a_view_that_fits(which: str) -> None:
    model = MODELS[which][0]()
    classified = classify(model)
    params = list(model.parameters())
    assert [id(c.param) for c in classified] == [id(p) for p in params]
    for _, param, role, view, reason, *_ in classified:
        assert role in ROLES and reason
        if parse_view(view).is_matrix:
            shapes = parse_view(view).piece_shapes(tuple(param.shape))
            assert all(min(shape[-2:]) >= 2 for shape in shapes)


def test_reasons_name_the_evidence() -> None:
    said = {name: entry.reason for name, entry in by_name(roles(models.gpt2())).items()}
    wte = said["transformer.wte.weight"]
    assert wte == "nn.Embedding returned by get_input_embeddings(); lm_head.weight is the same tensor"
    fused = said["transformer.h.0.attn.c_attn.weight"]
    assert fused == "transformers Conv1D stores (in, out); q, k, v fused in its columns"
    assert "position table" in said["transformer.wpe.weight"]
    oss = {name: entry.reason for name, entry in by_name(roles(models.gpt_oss())).items()}
    experts = oss["model.layers.0.mlp.experts.gate_up_proj"]
    assert experts.startswith("GptOssExperts: 8 experts stored (in, out), says is_transposed=True")
    assert experts.endswith("gate and up interleaved in the columns")
    assert oss["model.layers.0.mlp.router.weight"].startswith("GptOssTopKRouter")
    assert oss["lm_head.weight"] == "nn.Linear returned by get_output_embeddings(), not tied"


def test_a_torch_model_tied_by_hand_has_no_second_head() -> None:
    listed = by_name(roles(models.TorchLanguageModel(tied=True)))
    assert listed["tokens.weight"].role == "tied_embedding"
    assert "readout.weight is the same tensor" in listed["tokens.weight"].reason
    assert "readout.weight" not in listed and "lm_head" not in {entry.role for entry in listed.values()}


def test_frozen_parameters_are_left_out_and_still_bear_witness() -> None:
    model = models.TorchLanguageModel()
    model.readout.requires_grad_(False)
    model.tokens.requires_grad_(False)
    listed = by_name(roles(model))
    assert "readout.weight" not in listed and "tokens.weight" not in listed
    assert "lm_head" not in {entry.role for entry in listed.values()}  # not the next best layer instead


def test_wrappers_do_not_change_the_verdict_and_names_stay_as_given() -> None:
    model = models.TorchLanguageModel()
    plain = roles(model)
    compiled = roles(nn.ModuleDict({"_orig_mod": model}))  # what torch.compile and DDP make of the names
    assert [e._replace(name=f"_orig_mod.{e.name}") for e in plain] == compiled
    nested = nn.ModuleDict({"module": nn.ModuleDict({"_checkpoint_wrapped_module": model})})
    assert [e[1:] for e in roles(nested)] == [e[1:] for e in plain]
    normed = nn.ModuleDict({"fc1": nn.utils.parametrizations.weight_norm(nn.Linear(4, 8)), "fc2": nn.Linear(8, 4)})
    found = by_name(roles(normed))
    assert found["fc1.parametrizations.weight.original0"].role == "vector"  # the (8, 1) magnitudes
    assert found["fc1.parametrizations.weight.original1"].role == "mlp_in"


def test_a_lora_adapter_of_a_gate_is_no_router() -> None:
    layer = nn.ModuleDict({"lora_A": nn.Linear(32, 4, bias=False), "lora_B": nn.Linear(4, 32, bias=False)})
    model = nn.ModuleDict({"mlp": nn.ModuleDict({"gate_proj": layer, "gate": nn.Linear(32, 4, bias=False)})})
    listed = by_name(roles(model))
    for half in ("lora_A", "lora_B"):
        assert listed[f"mlp.gate_proj.{half}.weight"][1:3] == ("hidden", "matrix")
        assert "LoRA" in listed[f"mlp.gate_proj.{half}.weight"].reason
    assert listed["mlp.gate.weight"].role == "router"


def test_the_gate_of_a_gated_mlp_is_no_router() -> None:
    model = nn.ModuleDict({"gate": nn.Linear(32, 48), "up": nn.Linear(32, 48), "down": nn.Linear(48, 32)})
    listed = by_name(roles(nn.ModuleDict({"mlp": model})))
    got = [listed[f"mlp.{name}.weight"].role for name in ("gate", "up", "down")]
    assert got == ["mlp_in", "mlp_in", "mlp_out"]


def test_numbered_layers_need_their_other_half() -> None:
    classifier = nn.ModuleDict({"fc1": nn.Linear(20, 16), "fc2": nn.Linear(16, 12), "fc3": nn.Linear(12, 10)})
    assert {e.role for e in roles(classifier) if e.name.endswith("weight")} == {"hidden"}
    block = nn.ModuleDict({"fc1": nn.Linear(20, 16), "fc2": nn.Linear(16, 20)})
    assert [e.role for e in roles(block) if e.name.endswith("weight")] == ["mlp_in", "mlp_out"]
    sequential = nn.ModuleDict({"mlp": nn.Sequential(nn.Linear(20, 16), nn.GELU(), nn.Linear(16, 20))})
    assert [e.role for e in roles(sequential) if e.name.endswith("weight")] == ["mlp_in", "mlp_out"]


def test_head_names_are_whole_components() -> None:
    model = nn.ModuleDict(
        {"head_proj": nn.Linear(8, 6), "blocks": nn.ModuleList([nn.ModuleDict({"head": nn.Linear(8, 8)})])}
    )
    assert {e.role for e in roles(model) if e.name.endswith("weight")} == {"hidden"}
    vgg = nn.ModuleDict({"classifier": nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 10))})
    assert [e.role for e in roles(vgg) if e.name.endswith("weight")] == ["hidden", "lm_head"]


def test_thin_layers_are_vectors() -> None:
    model = nn.ModuleDict({"value": nn.Linear(8, 1), "first": nn.Conv2d(1, 4, 3), "up": nn.Linear(1, 8)})
    listed = by_name(roles(model))
    assert listed["value.weight"].role == listed["up.weight"].role == "vector"
    assert listed["first.weight"][1:3] == ("conv", "flatten")  # one grey channel, not depthwise


def test_convolutions_with_groups_and_transposed_ones() -> None:
    listed = by_name(roles(nn.ModuleDict({"a": nn.Conv2d(8, 6, 3, groups=2), "b": nn.ConvTranspose1d(4, 6, 2)})))
    assert listed["a.weight"].view == "flatten heads(2)"
    assert listed["b.weight"].view == "flatten transpose"


def test_recurrent_gates_are_split() -> None:
    listed = by_name(roles(nn.ModuleDict({"lstm": nn.LSTM(4, 8), "gru": nn.GRU(4, 8), "rnn": nn.RNN(4, 8)})))
    assert listed["lstm.weight_ih_l0"].view == "split(8,8,8,8)"
    assert listed["gru.weight_hh_l0"].view == "split(8,8,8)"
    assert listed["rnn.weight_hh_l0"].view == "matrix"
    assert listed["lstm.bias_ih_l0"].role == "vector"


class Experts(nn.Module):
    """Experts without flags, as user code has them."""

    def __init__(self, leading: tuple[int, ...], back: tuple[int, ...], name: str = "gate_up_proj") -> None:
        super().__init__()
        self.register_parameter(name, nn.Parameter(torch.zeros(leading)))
        self.down_proj = nn.Parameter(torch.zeros(back))


@pytest.mark.parametrize(
    ("leading", "back", "name", "views"),
    [
        ((4, 12, 8), (4, 8, 6), "gate_up_proj", ["split(6,6)", "matrix"]),
        ((4, 8, 12), (4, 6, 8), "gate_up_proj", ["transpose split(6,6)", "transpose"]),
        ((4, 8, 8), (4, 8, 4), "gate_up_proj", ["split(4,4)", "matrix"]),  # 2 I = H: the other half decides
        ((4, 8, 8), (4, 4, 8), "gate_up_proj", ["transpose split(4,4)", "transpose"]),
        ((4, 12, 8), (4, 8, 6), "wi", ["matrix", "matrix"]),  # two halves, but in which order?
    ],
)
def test_the_layout_of_experts_from_both_halves(
    leading: tuple[int, ...], back: tuple[int, ...], name: str, views: list[str]
) -> None:
    listed = roles(nn.ModuleDict({"experts": Experts(leading, back, name)}))
    assert [(e.role, e.view) for e in listed] == list(zip(["expert_in", "expert_out"], views, strict=True))


def test_experts_that_fit_both_ways_are_unknown_until_the_width_speaks() -> None:
    experts = {"experts": Experts((4, 6, 8), (4, 8, 6), "up_proj")}
    assert {e.role for e in roles(nn.ModuleDict(experts))} == {"unknown"}
    listed = roles(nn.ModuleDict({**experts, "embed_tokens": nn.Embedding(20, 8)}))
    assert [(e.role, e.view) for e in listed[:2]] == [("expert_in", "matrix"), ("expert_out", "matrix")]
    listed = roles(nn.ModuleDict({**experts, "embed_tokens": nn.Embedding(20, 6)}))
    assert [(e.role, e.view) for e in listed[:2]] == [("expert_in", "transpose"), ("expert_out", "transpose")]


def test_experts_one_by_one_and_the_shared_one() -> None:
    def mlp() -> nn.ModuleDict:
        return nn.ModuleDict({"w1": nn.Linear(8, 6), "w2": nn.Linear(6, 8), "w3": nn.Linear(8, 6)})

    moe = nn.ModuleDict({"experts": nn.ModuleList([mlp()]), "shared_expert": mlp(), "gate": nn.Linear(8, 4)})
    listed = by_name(roles(nn.ModuleDict({"moe": moe})))
    got = [listed[f"moe.experts.0.w{i}.weight"].role for i in (1, 2, 3)]
    assert got == ["expert_in", "expert_out", "expert_in"]
    assert listed["moe.shared_expert.w2.weight"].role == "mlp_out"
    assert listed["moe.gate.weight"].role == "router"


class Odd(nn.Module):
    """Parameters that nothing speaks for."""

    def __init__(self) -> None:
        super().__init__()
        self.mixing = nn.Parameter(torch.zeros(4, 6))
        self.tensor = nn.Parameter(torch.zeros(4, 6, 3))


def test_what_nothing_speaks_for_is_unknown() -> None:
    listed = by_name(roles(Odd()))
    assert listed["mixing"][1:3] == listed["tensor"][1:3] == ("unknown", "matrix")
    assert "mixing of Odd" in listed["mixing"].reason


@pytest.mark.parametrize(
    ("params", "because"),
    [
        ([{"params": []}], "parameter 0 is dict"),
        (torch.zeros(2), "not one tensor"),
        ([torch.zeros(2), "fc.weight"], "parameter 1 is str"),
        ([(1, torch.zeros(2))], "parameter 0 is tuple"),
    ],
)
def test_other_things_are_refused(params: object, because: str) -> None:
    with pytest.raises(TypeError, match=because):
        roles(params)


def test_deciding_needs_no_transformers() -> None:
    import subprocess
    import sys

    code = "import sys, orthoopt.roles; assert 'transformers' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_layers_that_differ_in_number_alone_have_one_reason() -> None:
    for build, _ in MODELS.values():
        reasons: dict[str, set[str]] = {}
        for entry in roles(build()):
            reasons.setdefault(re.sub(r"layers\.\d|h\.\d", "#", entry.name), set()).add(entry.reason)
        assert all(len(said) == 1 for said in reasons.values())
    stack = roles(nn.ModuleList([nn.Linear(4, 4, bias=False) for _ in range(3)]))
    assert len({entry.reason for entry in stack}) == 1


def fused(parent: type[nn.Module], name: str, rows: int, cols: int, **attributes: object) -> ParameterRole:
    """The verdict on a Linear called ``name`` in a module of class ``parent`` with these attributes."""
    module = parent()
    module.add_module(name, nn.Linear(cols, rows, bias=False))
    for key, value in attributes.items():
        setattr(module, key, value)
    (entry,) = roles(nn.ModuleDict({"block": module}))
    return entry


def named_class(name: str) -> type[nn.Module]:
    return type(name, (nn.Module,), {})


@pytest.mark.parametrize(
    ("parent", "name", "rows", "attributes", "view"),
    [
        ("CausalSelfAttention", "qkv", 96, {}, "split(32,32,32)"),
        ("CausalSelfAttention", "qkv", 64, {"n_heads": 4, "n_kv_heads": 2}, "split(32,16,16)"),
        ("CausalSelfAttention", "qkv", 128, {"num_heads": 4, "num_kv_heads": 2, "head_dim": 16}, "split(64,32,32)"),
        ("CausalSelfAttention", "qkv", 80, {"n_heads": 4, "n_kv_heads": 2}, "matrix"),  # the sizes do not add up
        ("CausalSelfAttention", "qkv", 48, {"n_heads": 4, "groups": 1}, "matrix"),  # 6 heads of 8, or 12 of 4?
        ("Sam2MultiScaleAttention", "qkv", 192, {"num_attention_heads": 4, "dim_out": 64}, "split(64,64,64)"),
        ("CausalSelfAttention", "query_key_value", 96, {"num_heads": 4}, "matrix"),  # in which order?
        ("BloomAttention", "query_key_value", 96, {"num_heads": 4}, "heads(4) split(8,8,8) join"),
        ("MiniMaxLightningAttention", "qkv_proj", 96, {"num_attention_heads": 4}, "heads(4) split(8,8,8) join"),
        ("CodeGenAttention", "qkv_proj", 96, {"num_attention_heads": 4}, "heads(4) split(8,8,8) join"),
        ("GPTBigCodeAttention", "c_attn", 48, {"num_heads": 4, "multi_query": True}, "split(32,8,8)"),
    ],
)
def test_fused_attention_by_what_its_module_says(
    parent: str, name: str, rows: int, attributes: dict[str, object], view: str
) -> None:
    entry = fused(named_class(parent), name, rows, 32, **attributes)
    assert (entry.role, entry.view) == ("attention", view)
    if view == "matrix":
        assert "seen as one matrix" in entry.reason


def test_gains_of_norms_may_have_a_row_a_head_and_layers_with_norm_in_their_names_are_none() -> None:
    class HeadNorm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(4, 8))

    class NormedLinear(nn.Linear):
        pass

    listed = by_name(roles(nn.ModuleDict({"q_norm": HeadNorm(), "value": NormedLinear(6, 4)})))
    assert listed["q_norm.weight"].role == "vector" and listed["value.weight"].role == "attention"


def test_mamba_inputs_are_split_only_where_the_order_is_known() -> None:
    known = fused(named_class("MambaMixer"), "in_proj", 16, 4, intermediate_size=8)
    assert (known.role, known.view) == ("hidden", "split(8,8)")
    interleaved = fused(named_class("ZambaMambaMixer"), "in_proj", 16, 4, intermediate_size=8)
    assert (interleaved.role, interleaved.view) == ("hidden", "interleave(2)")
    unknown = fused(named_class("MyMixer"), "in_proj", 16, 4, intermediate_size=8)
    assert (unknown.role, unknown.view) == ("hidden", "matrix")
    sizes = {"intermediate_size": 8, "n_groups": 1, "ssm_state_size": 3, "num_heads": 2}
    assert fused(named_class("BambaMixer"), "in_proj", 24, 4, **sizes).view == "split(8,8,3,3,2)"


def test_one_letter_is_no_evidence() -> None:
    listed = roles([("adapter.D", torch.zeros(4, 6, requires_grad=True))])
    assert listed[0].role != "vector"
