"""Symmetries of whole networks: training what a symmetry makes of the weights gives what it makes of the trained ones.

Reordering neurons, tokens or experts, or turning the residual stream, changes no output. A plan whose rules promise to
follow must train both networks to the same one; the promise is read off the rules, so every ready plan is asked.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import group_element, relative_error
from torch import Tensor, nn
from torch.nn import functional as F

from orthoopt import OrthoOpt, param_groups, plans, rules
from orthoopt.dispatch import assign
from orthoopt.views import parse_view

VOCABULARY, WIDTH, NEURONS, HEADS, EXPERTS, STEPS = 11, 6, 9, 2, 3, 3
Transform = Callable[[str, Tensor], Tensor]
permutations = st.permutations(range(NEURONS)).map(torch.tensor)


class MLP(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = (nn.Linear(WIDTH, NEURONS, bias=False) for _ in range(2))
        self.down_proj = nn.Linear(NEURONS, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Experts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate_up_proj = nn.Parameter(0.5 * torch.randn(EXPERTS, 2 * NEURONS, WIDTH))
        self.down_proj = nn.Parameter(0.5 * torch.randn(EXPERTS, WIDTH, NEURONS))

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        gate, up = torch.einsum("btd,efd->btef", x, self.gate_up_proj).chunk(2, dim=-1)
        return torch.einsum("bte,btef,edf->btd", weights, F.silu(gate) * up, self.down_proj)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.num_heads = HEADS
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(WIDTH, 4 * HEADS, bias=False) for _ in range(3))
        self.o_proj = nn.Linear(4 * HEADS, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (p(x).unflatten(-1, (HEADS, 4)).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        return self.o_proj(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))


class LanguageModel(nn.Module):
    """Attention, a SwiGLU, a softmax mixture of SwiGLU experts; norms without gains, for a rotation moves those."""

    def __init__(self) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(VOCABULARY, WIDTH)
        self.self_attn, self.mlp, self.experts = Attention(), MLP(), Experts()
        self.router = nn.Linear(WIDTH, EXPERTS, bias=False)
        self.norm = nn.RMSNorm(WIDTH, elementwise_affine=False)
        self.lm_head = nn.Linear(WIDTH, VOCABULARY, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed_tokens(tokens)
        x = x + self.self_attn(self.norm(x))
        x = x + self.mlp(self.norm(x))
        y = self.norm(x)
        x = x + self.experts(y, self.router(y).softmax(-1))
        return self.lm_head(self.norm(x))


def tokens() -> Tensor:
    return torch.randint(0, VOCABULARY, (STEPS, 6, 7), generator=torch.Generator().manual_seed(5))


def start() -> LanguageModel:
    torch.manual_seed(3)
    return LanguageModel().double()


def train(model: nn.Module, data: Tensor, plan: Any, overrides: Any = ()) -> dict[str, Tensor]:
    optimizer = OrthoOpt(param_groups(model, plan, lr=0.01, weight_decay=0.1, overrides=overrides))
    for batch in data:
        optimizer.zero_grad()
        F.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten()).backward()
        optimizer.step()
    return {name: param.detach() for name, param in model.named_parameters()}


@functools.cache
def trained_from_the_start(plan: str) -> dict[str, Tensor]:
    return train(start(), tokens(), plan)


def moved(model: nn.Module, transform: Transform) -> nn.Module:
    model = copy.deepcopy(model)
    with torch.no_grad():
        for name, param in model.named_parameters():
            param.copy_(transform(name, param.clone()))
    return model


def error(
    plan: str, transform: Transform, data: Tensor | None = None, order: list[int] | None = None, overrides: Any = ()
) -> float:
    """How far the trained image of the start is from the image of what is trained, relative, the worst tensor's.

    ``data`` and ``order`` say what the transform makes of the tokens and of the logits.
    """
    model = start()
    image = moved(model, transform)
    data = tokens() if data is None else data
    logits = model(tokens()[0])
    torch.testing.assert_close(image(data[0]), logits if order is None else logits[..., order], rtol=1e-9, atol=1e-12)
    trained = train(model, tokens(), plan, overrides) if overrides else trained_from_the_start(plan)
    other = train(image, data, plan, overrides)
    return max(relative_error(other[name], transform(name, value)) for name, value in trained.items())


COVERED_BY = {
    "permutation": ("permutation", "signed_permutation", "orthogonal"),
    "orthogonal": ("orthogonal",),
}
Needs = Mapping[str, tuple[str, str]]
"""Role -> the group that must act on the left and on the right of its matrices, "none" for no action."""


def promises(plan: str, needs: Needs) -> bool:
    """Whether the rules of a plan promise to follow what these groups do to the matrices of a model."""
    for item in assign(LanguageModel(), plan):
        rule = rules.get(item.group["rule"])
        view = parse_view(item.view) if rule.is_matrix else parse_view("matrix")
        for shape in view.piece_shapes(tuple(item.param.shape)):
            promise = rule.equivariance(item.group, shape[-2], shape[-1])
            for needed, promised in zip(needs.get(item.role, ("none", "none")), promise[:2], strict=True):
                if needed != "none" and promised not in COVERED_BY[needed]:
                    return False
    return True


NEURONS_NEED = {role: ("permutation", "none") for role in ("mlp_in", "expert_in")} | {
    role: ("none", "permutation") for role in ("mlp_out", "expert_out")
}
VOCABULARY_NEEDS = {role: ("permutation", "none") for role in ("embedding", "lm_head")}
READING = ("embedding", "mlp_in", "expert_in", "router", "lm_head")
ROTATION_NEEDS = {role: ("none", "orthogonal") for role in READING} | {
    role: ("orthogonal", "none") for role in ("mlp_out", "expert_out")
}
FAMILY = [name for name in plans.names() if name.startswith("symmetry")]


def promising(needs: Needs) -> list[str]:
    return [name for name in plans.names() if promises(name, needs)]


def test_the_plans_that_are_asked() -> None:
    """Nothing below is vacuous: these plans promise, those do not."""
    assert {*FAMILY, "adamw", "muon", "row_norm"} <= {*promising(NEURONS_NEED)} & {*promising(VOCABULARY_NEEDS)}
    assert {*FAMILY} <= {*promising(ROTATION_NEEDS)}
    assert not {"adamw", "muon", "row_norm"} & {*promising(ROTATION_NEEDS)}


# Three steps' roundings, magnified by the slope of five Newton-Schulz steps (1e3) and by the learning rate (1e-2, and
# 25 times that on the published embedding).
TOLERANCE = 1e-12


@pytest.mark.parametrize("plan", promising(NEURONS_NEED))
@settings(max_examples=8)
@given(order=permutations)
def test_neurons_of_a_swiglu_may_be_reordered_together(plan: str, order: Tensor) -> None:
    def reorder(name: str, value: Tensor) -> Tensor:
        if name.startswith("mlp."):
            return value[:, order] if "down" in name else value[order]
        return value

    assert error(plan, reorder) < TOLERANCE


@pytest.mark.parametrize("plan", promising(NEURONS_NEED))
@settings(max_examples=8)
@given(orders=st.tuples(*[permutations] * EXPERTS), experts=st.permutations(range(EXPERTS)))
def test_neurons_of_each_expert_and_experts_may_be_reordered(
    plan: str, orders: tuple[Tensor, ...], experts: list[int]
) -> None:
    within = torch.stack(orders)

    def reorder(name: str, value: Tensor) -> Tensor:
        if name == "experts.down_proj":
            return value.take_along_dim(within[:, None, :], 2)[experts]
        if name == "experts.gate_up_proj":
            return torch.cat([part.take_along_dim(within[:, :, None], 1) for part in value.chunk(2, 1)], 1)[experts]
        return value[experts] if name == "router.weight" else value

    assert error(plan, reorder) < TOLERANCE


@pytest.mark.parametrize("plan", promising(VOCABULARY_NEEDS))
@settings(max_examples=8)
@given(order=st.permutations(range(VOCABULARY)))
def test_tokens_may_be_renumbered(plan: str, order: list[int]) -> None:
    renumbered = torch.tensor(order).argsort()

    def reorder(name: str, value: Tensor) -> Tensor:
        return value[order] if "tokens" in name or "head" in name else value

    assert error(plan, reorder, renumbered[tokens()], order) < TOLERANCE


def turn(seed: int) -> Transform:
    rotation = group_element("orthogonal", WIDTH, seed)

    def turned(name: str, value: Tensor) -> Tensor:
        return rotation.mT @ value if "down" in name or "o_proj" in name else value @ rotation

    return turned


@pytest.mark.parametrize("plan", promising(ROTATION_NEEDS))
@settings(max_examples=8)
@given(seed=st.integers(0, 2**31))
def test_the_residual_stream_may_be_turned(plan: str, seed: int) -> None:
    assert error(plan, turn(seed)) < TOLERANCE


@pytest.mark.parametrize("plan", ["adamw", "muon", "row_norm"])
def test_entries_and_rows_of_features_know_their_basis(plan: str) -> None:
    """AdamW everywhere, AdamW on the embedding, and rows of a matrix that writes into the residual stream."""
    assert error(plan, turn(0)) > 1e-3


def test_a_rule_turned_the_wrong_way_breaks_the_reordering_of_neurons() -> None:
    """The test above can fail: a rule tied to coordinates of the neurons does."""

    def reorder(name: str, value: Tensor) -> Tensor:
        order = torch.arange(NEURONS).flip(0)
        if name.startswith("mlp."):
            return value[:, order] if "down" in name else value[order]
        return value

    cut = [("mlp.gate_proj", {"rule": "spectral", "view": "split(4,5)"})]
    assert error("symmetry", reorder, overrides=cut) > 1e-3


@pytest.mark.parametrize(
    ("plan", "overrides", "held"),
    [
        ("symmetry_paper", (), ("router", "lm_head")),
        ("symmetry", (), ("lm_head",)),
        ("symmetry", [("router", {"centre": "both"})], ("router", "lm_head")),
        ("symmetry", [("lm_head", {"centre": "none"})], ()),
        (
            "symmetry_hybrid",
            [("router", {"rule": "hybrid", "centre": "both", "weight_decay": 0.0})],
            ("router", "lm_head"),
        ),
        ("adamw", [(".", {"weight_decay": 0.0})], ()),
    ],
)
def test_centred_rules_alone_hold_the_mean_row_that_a_softmax_does_not_see(
    plan: str, overrides: Any, held: tuple[str, ...]
) -> None:
    before = {name: param.detach().clone() for name, param in start().named_parameters()}
    after = train(start(), tokens(), plan, overrides)
    for layer in ("router", "lm_head"):
        name = f"{layer}.weight"
        drift = (after[name].mean(0) - before[name].mean(0)).norm() / (after[name] - before[name]).norm()
        assert drift < 1e-12 if layer in held else drift > 1e-3, (plan, layer, float(drift))
