"""Roles and views against what the forward pass does with each parameter, over every causal LM of transformers."""

from __future__ import annotations

import re
from typing import Any
from unittest import mock

import architectures
import hypothesis.strategies as st
import models
import pytest
import torch
from agreement import disagreements, fitting_view
from architecture_sizes import EXCEPTIONS
from forward_cases import DEEP_ROUTERS, NO_FORWARD, NONE, NOT_REACHED, QUICK, READ_OTHERWISE, VARIANTS
from forward_inputs import ASSISTANTS, forward_arguments, input_ids
from forward_witness import Evidence, watch
from hypothesis import given
from torch import Tensor, nn

from orthoopt.roles import ParameterRole, classify, roles

NAMES = [name for name in architectures.names("causal_lm") if name not in NO_FORWARD]


def witness(name: str, options: dict[str, Any] | None = None) -> tuple[nn.Module, dict[str, Evidence]]:
    """A model of this architecture, and what a forward pass does with its parameters."""
    with mock.patch.dict(EXCEPTIONS, {name: {**EXCEPTIONS.get(name, {}), **(options or {})}}):
        model = architectures.build(name, device="cpu").eval()
    with torch.no_grad():
        for param in model.parameters():  # some models leave weights unset that a checkpoint would bring
            param.normal_(0, 0.1)
    arguments = forward_arguments(name, model)
    return model, watch(model, input_ids(model), lambda: model(**arguments))


def check(name: str, options: dict[str, Any] | None = None) -> None:
    model, seen = witness(name, options)
    otherwise = READ_OTHERWISE.get(name, [])
    inside = DEEP_ROUTERS.get(name, NONE)
    found = []
    for entry in roles(model):
        said = next(((view, reason) for pattern, view, reason in otherwise if re.fullmatch(pattern, entry.name)), None)
        if said is not None:
            found += [f"{entry}: the view is {said[0]}, {said[1]}"] if entry.view != said[0] else []
        elif re.fullmatch(inside, entry.name):
            found += [f"{entry}: is a layer of a router"] if entry.role != "router" else []
        else:
            found += disagreements([entry], seen)
    by_head = [ParameterRole(c.name, c.role, c.per_head[0], c.per_head[1]) for c in classify(model) if c.per_head]
    found += [what for what in disagreements(by_head, seen) if what not in found]
    assert not found, "\n".join([f"{len(found)} disagreements:", *found])
    assert name in ASSISTANTS or any(evidence.by_input_ids for evidence in seen.values())
    assert any(use.logits for evidence in seen.values() for use in evidence.linear)
    prefix, _ = NOT_REACHED.get(name, (NONE, ""))
    missed = {parameter for parameter in unreached(seen) if not re.match(prefix, parameter)}
    assert not missed, f"the pass does not reach {sorted(missed)}, so it says nothing about them"


def unreached(seen: dict[str, Evidence]) -> set[str]:
    """Parameters that the pass touches in no layer."""
    numberless = {parameter: re.sub(r"\.\d+\.", ".#.", parameter) for parameter in seen}
    touched = {numberless[parameter] for parameter, evidence in seen.items() if evidence.used}
    return {parameter for parameter, short in numberless.items() if short not in touched}


@pytest.mark.parametrize("name", [name for name in NAMES if name in QUICK])
def test_roles_agree_with_the_forward_pass(name: str) -> None:
    check(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NAMES if name not in QUICK])
def test_roles_agree_with_every_forward_pass(name: str) -> None:
    check(name)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "options"), VARIANTS, ids=[f"{name} {', '.join(given)}" for name, given in VARIANTS])
def test_roles_agree_with_the_forward_pass_of_variants(name: str, options: dict[str, Any]) -> None:
    check(name, options)


def test_the_cases_are_architectures_of_this_transformers() -> None:
    cases = {*NO_FORWARD, *QUICK, *NOT_REACHED, *READ_OTHERWISE, *DEEP_ROUTERS, *ASSISTANTS, *dict(VARIANTS)}
    assert cases <= set(architectures.names("causal_lm"))


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
    model = models.TorchLanguageModel(tied=True)  # in training mode: for inference torch has one operation for a layer
    ids = torch.randint(40, 90, (2, 9))
    seen = watch(model, ids, lambda: model(ids))
    tied = seen["tokens.weight"]
    assert tied.by_input_ids and any(use.logits for use in tied.linear)
    assert not disagreements(roles(model), seen)
    (entry,) = [e for e in roles(model) if e.name == "tokens.weight"]
    assert disagreements([entry._replace(role="embedding")], seen)


class SideBySide(nn.Module):
    """Two experts in one parameter each, side by side in the outputs of one and in the inputs of the other."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.randn(2 * 6, 8))
        self.down = nn.Parameter(torch.randn(2 * 6, 8))

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (count, 8) -> (count, 8)."""
        return sum(
            nn.functional.linear(x, up).relu() @ down
            for up, down in zip(self.up.chunk(2), self.down.view(2, 6, 8), strict=True)
        )


def test_experts_side_by_side_are_told_apart_on_either_side() -> None:
    model = SideBySide()
    x = torch.randn(5, 8)
    seen = watch(model, torch.zeros(1), lambda: model(x).sum())
    halves = {frozenset(range(6)), frozenset(range(6, 12))}
    assert set(seen["up"].linear[0].pieces) == halves == set(seen["down"].linear[0].blocks)
    assert fitting_view(seen["up"].linear[0]) == "split(6,6)"
    assert fitting_view(seen["down"].linear[0]) == "heads(2) transpose"
    for name, right, wrong in (("up", "heads(2)", "matrix"), ("down", "heads(2) transpose", "transpose")):
        assert not disagreements([ParameterRole(name, "expert_in", right, "")], seen)
        assert disagreements([ParameterRole(name, "expert_in", wrong, "")], seen)


@given(
    sizes=st.lists(st.integers(1, 5), min_size=2, max_size=4),
    heads=st.integers(1, 3),
    in_out=st.booleans(),
    adapted=st.booleans(),
)
def test_any_cut_of_the_outputs_is_seen(sizes: list[int], heads: int, in_out: bool, adapted: bool) -> None:
    width = heads * sum(sizes)
    model = nn.Module()
    model.register_parameter("weight", nn.Parameter(torch.randn((7, width) if in_out else (width, 7))))
    model.register_parameter("adapter", nn.Parameter(torch.randn(width, 7)))

    def call() -> Tensor:
        x = torch.randn(3, 7) @ torch.randn(7, 7)
        y = x @ model.weight if in_out else nn.functional.linear(x, model.weight)
        y = y + nn.functional.linear(x, model.adapter) if adapted else y
        return sum(piece.softmax(-1).flatten(1).mean() for piece in y.view(3, heads, -1).split(sizes, dim=-1))

    use = watch(model, torch.zeros(1), call)["weight"].linear[0]
    head = sum(sizes)
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    cut = [{h * head + s + i for h in range(heads) for i in range(n)} for s, n in zip(starts, sizes, strict=True)]
    assert set(use.pieces) == set(map(frozenset, cut))
    assert use.in_out == in_out and len(use.blocks) == 1
    view = f"heads({heads}) split({','.join(map(str, sizes))})"
    right = ParameterRole("weight", "hidden", f"transpose {view}" if in_out else view, "")
    seen = {"weight": Evidence("weight", linear=[use])}
    assert not disagreements([right], seen)
    assert not disagreements([right._replace(view=str(fitting_view(use)))], seen)
    assert disagreements([right._replace(view="transpose" if in_out else "matrix")], seen)
    other = f"split({width - 1},1)"  # its first matrix mixes what goes apart, or its cut goes through a piece
    if len(sizes) > 2 or 1 not in sizes or heads > 1:
        assert disagreements([right._replace(view=f"transpose {other}" if in_out else other)], seen)
