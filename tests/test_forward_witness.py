"""Roles and views against what the forward pass does with each parameter, over every causal LM of transformers."""

from __future__ import annotations

import re
from typing import Any

import architectures
import models
import pytest
import torch
from agreement import disagreements
from forward_inputs import forward_arguments, input_ids
from forward_witness import Evidence, watch
from torch import Tensor, nn

from orthoopt.roles import ParameterRole, roles

NONE = "(?!)"  # matches no name

# Architectures that cannot run a forward pass on a CPU, with the reason.
NO_FORWARD: dict[str, str] = {}

# A few that have, together, every layout that is known: these run always, the rest with the slow tests.
QUICK = [
    "gpt2",
    "llama",
    "gemma3_text",
    "phi3",
    "gpt_neox",
    "falcon",
    "bloom",
    "gpt_bigcode",
    "codegen",
    "mamba",
    "mamba2",
    "olmoe",
    "gpt_oss",
    "mixtral",
    "deepseek_v3",
    "qwen3_next",
    "granitemoehybrid",
    "opt",
    "recurrent_gemma",
    "rwkv",
]

# What a pass from text to logits does not reach, with the reason.
NOT_REACHED = {
    "fuyu": (r"model\.vision_embed_tokens\.", "reads images"),
    "gemma3": (r"model\.(vision_tower|multi_modal_projector)\.", "reads images"),
    "gemma3n": (r"model\.(vision_tower|audio_tower|embed_vision|embed_audio)\.", "reads images and sound"),
    "git": (r"git\.(image_encoder|visual_projection)\.", "reads images"),
    "got_ocr2": (r"model\.(vision_tower|multi_modal_projector)\.", "reads images"),
    "moss_transcribe_diarize": (r"model\.(audio_tower|multi_modal_projector)\.", "reads sound"),
    "phi4_multimodal": (r"model\.embed_tokens_extend\.", "reads images and sound"),
    "xlnet": (r"transformer\.(mask_emb|layer\.\d+\.rel_attn\.(seg_embed|r_s_bias))", "only with targets, or two texts"),
    "reformer": (r"lm_head\.bias", "the head's Linear has a bias of its own"),
}

# Where the pass keeps rows apart that are one matrix all the same: the view that is right, with the reason.
ONE_MATRIX = {
    "diffllama": (r".*\.v_proj\.weight", "matrix", "two attentions read the two halves of its heads"),
    "zamba": (r".*\.in_proj\.weight", "interleave(2)", "a scan for each head of the gate and of x"),
}

# Where a router has layers before the one whose outputs are sorted.
DEEP_ROUTERS = {"zaya": r".*\.mlp\.gate\.(down_proj|router_mlp\.fc[12])\.weight"}


def witness(name: str) -> tuple[list[ParameterRole], dict[str, Evidence]]:
    """What the classifier says of this architecture, and what a forward pass does."""
    model = architectures.build(name, device="cpu").eval()
    with torch.no_grad():
        for param in model.parameters():  # some models leave weights unset that a checkpoint would bring
            param.normal_(0, 0.1)
    arguments = forward_arguments(name, model)
    return roles(model), watch(model, input_ids(model), lambda: model(**arguments))


def check(name: str) -> None:
    listed, seen = witness(name)
    pattern, view, reason = ONE_MATRIX.get(name, (NONE, "", ""))
    inside = DEEP_ROUTERS.get(name, NONE)
    found = []
    for entry in listed:
        if re.fullmatch(pattern, entry.name):
            found += [f"{entry}: the view is {view}, {reason}"] if entry.view != view else []
        elif re.fullmatch(inside, entry.name):
            found += [f"{entry}: is a layer of a router"] if entry.role != "router" else []
        else:
            found += disagreements([entry], seen)
    assert not found, "\n".join([f"{len(found)} disagreements:", *found])
    prefix, _ = NOT_REACHED.get(name, (NONE, ""))
    missed = {entry for entry in unreached(seen) if not re.match(prefix, entry)}
    assert not missed, f"the pass does not reach {sorted(missed)}, so it says nothing about them"


def unreached(seen: dict[str, Evidence]) -> set[str]:
    """Parameters that the pass touches in no layer."""
    numberless = {parameter: re.sub(r"\.\d+\.", ".#.", parameter) for parameter in seen}
    touched = {numberless[parameter] for parameter, evidence in seen.items() if evidence.used}
    return {parameter for parameter, short in numberless.items() if short not in touched}


@pytest.mark.parametrize("name", QUICK)
def test_roles_agree_with_the_forward_pass(name: str) -> None:
    check(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in architectures.names("causal_lm") if n not in {*QUICK, *NO_FORWARD}])
def test_roles_agree_with_every_forward_pass(name: str) -> None:
    check(name)


class Misnamed(nn.Module):
    """A small language model whose names all lie, with every kind of use and of cut that the witness tells apart."""

    def __init__(self) -> None:
        super().__init__()
        shapes = {
            **{"position": (90, 8), "lm_head": (16, 8), "norm": (90, 8), "bias": (8, 24), "embed": (12, 8)},
            **{"router": (8,), "conv": (8, 1, 3), "vector": (4, 8), "gate_up_proj": (4, 8, 12), "sinks": (4, 6, 8)},
            **{"scale": (12, 8), "rotary": (8, 8)},
        }
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(torch.randn(shape)))

    def forward(self, ids: Tensor) -> Tensor:
        """Ids (batch, length) -> logits (batch, length, 90), soft-capped."""
        places = torch.arange(ids.shape[1])
        x = nn.functional.embedding(ids, self.position) + self.lm_head[places]
        q, k, v = (x @ self.bias).split(8, dim=-1)  # stored (in, out), three blocks
        x = x + nn.functional.scaled_dot_product_attention(q, k, v)
        turned = nn.functional.linear(x, self.rotary).unflatten(-1, (2, 4))
        cos, sin = places[:, None].cos(), places[:, None].sin()
        a, b = turned.unbind(-2)
        x = x + torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1).softmax(-1)  # a rotation cuts nothing
        x = nn.functional.conv1d(x.mT, self.conv, padding=1, groups=8).mT * self.router
        flat = x.flatten(0, 1)
        scores, chosen = nn.functional.linear(flat, self.vector).sigmoid().topk(1)
        inner = torch.bmm(flat[:, None], self.gate_up_proj[chosen[:, 0]])[:, 0]
        inner = inner[:, ::2] * inner[:, 1::2].sigmoid()  # interleaved
        x = x + (torch.einsum("th,tho->to", inner, self.sinks[chosen[:, 0]]) * scores).view_as(x)
        rows = nn.functional.linear(x, self.embed).unflatten(-1, (2, 3, 2))  # two heads, each of three kinds
        first, second, third = (kind.flatten(-2) for kind in rows.unbind(-2))
        gained = torch.cat([first.tanh() * second * third] * 3, dim=-1)
        x = x + nn.functional.linear(gained, self.scale.T.contiguous() * 2)
        return nn.functional.linear(x, self.norm).div(30).tanh() * 30


def misnamed() -> dict[str, Evidence]:
    model = Misnamed()
    ids = torch.randint(40, 90, (2, 9))
    return watch(model, ids, lambda: model(ids))


def test_the_witness_is_not_misled_by_names() -> None:
    seen = misnamed()
    assert all(evidence.used and not evidence.other for evidence in seen.values())
    assert {by for by, _ in seen["position"].lookups} == {"input ids"}
    assert {by for by, _ in seen["lm_head"].lookups} == {"positions"}
    logits = {name for name, evidence in seen.items() if any(use.logits for use in evidence.linear)}
    assert logits == {"norm"}
    chooses = {name for name, evidence in seen.items() if any(use.chooses for use in evidence.linear)}
    assert chooses == {"vector"}
    assert {what for what, _ in seen["router"].entrywise} == {"mul"} and not seen["router"].linear
    assert seen["conv"].linear[0].depthwise and not seen["conv"].maps
    in_out = {name: use.in_out for name, evidence in seen.items() for use in evidence.maps}
    assert {name for name, stored in in_out.items() if stored} == {"bias", "gate_up_proj", "sinks", "scale"}


def test_the_witness_tells_which_rows_go_apart() -> None:
    pieces = {name: evidence.maps[0].pieces for name, evidence in misnamed().items() if evidence.maps}
    blocks = [frozenset(range(start, start + 8)) for start in (0, 8, 16)]
    assert set(pieces["bias"]) == set(blocks)
    assert set(pieces["gate_up_proj"]) == {frozenset(range(0, 12, 2)), frozenset(range(1, 12, 2))}
    assert set(pieces["embed"]) == {frozenset({i, i + 1, i + 6, i + 7}) for i in (0, 2, 4)}
    assert pieces["rotary"] == [frozenset(range(8))]


def said(name: str, role: str, view: str) -> list[str]:
    """What stands against this verdict on a parameter of the misnamed model."""
    return disagreements([ParameterRole(name, role, view, "")], misnamed())


@pytest.mark.parametrize(
    ("name", "role", "view", "wrong"),
    [
        ("position", "embedding", "matrix", {"role": "tied_embedding lm_head vector hidden unknown"}),
        ("lm_head", "vector", "vector", {"role": "embedding hidden"}),
        ("norm", "lm_head", "matrix", {"role": "embedding hidden attention router vector", "view": "transpose"}),
        ("bias", "attention", "transpose split(8,8,8)", {"view": "transpose|transpose split(16,8)|transpose heads(4)"}),
        ("embed", "hidden", "heads(2) split(2,2,2)", {"view": "matrix|split(4,4,4)|heads(2)|interleave(2)"}),
        ("rotary", "attention", "matrix", {"view": "split(4,4)|interleave(2)|transpose", "role": "unknown lm_head"}),
        ("router", "vector", "vector", {"role": "attention"}),
        ("conv", "vector", "vector", {"role": "conv"}),
        ("vector", "router", "matrix", {"role": "hidden mlp_in vector"}),
        (
            "gate_up_proj",
            "expert_in",
            "transpose interleave(2)",
            {"view": "transpose|interleave(2)|transpose split(6,6)"},
        ),
        ("sinks", "expert_out", "transpose", {"view": "matrix|transpose split(4,4)", "role": "vector conv router"}),
    ],
)
def test_a_wrong_verdict_is_found(name: str, role: str, view: str, wrong: dict[str, Any]) -> None:
    assert not said(name, role, view)
    for other in wrong.get("role", "").split():
        assert said(name, other, "vector" if other == "vector" else view if view != "vector" else "matrix")
    for other in filter(None, wrong.get("view", "").split("|")):
        assert said(name, role, other)


def test_a_tied_head_is_told_from_an_embedding_alone() -> None:
    model = models.TorchLanguageModel(tied=True).eval()
    ids = torch.randint(40, 90, (2, 9))
    seen = watch(model, ids, lambda: model(ids))
    tied = seen["tokens.weight"]
    assert tied.by_input_ids and any(use.logits for use in tied.linear)
    assert not disagreements(roles(model), seen)
    (entry,) = [e for e in roles(model) if e.name == "tokens.weight"]
    assert disagreements([entry._replace(role="embedding")], seen)
