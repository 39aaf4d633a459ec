"""Experts in fused stacks, one layer each, interleaved or transposed: the same weights are trained."""

from __future__ import annotations

import copy
from collections.abc import Callable

import models
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from twins import PLANS, Tensors, Twins, batches, check_computation, check_matrices, check_steps, made_equal, trained

EXPERTS, WIDTH, NEURONS = 4, 32, 12
SMALL = {"num_hidden_layers": 1, "intermediate_size": NEURONS, "pad_token_id": None, "experts_implementation": "eager"}


class Expert(nn.Module):
    """A SwiGLU out of three layers."""

    def __init__(self) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = (nn.Linear(WIDTH, NEURONS, bias=False) for _ in range(2))
        self.down_proj = nn.Linear(NEURONS, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Routed(nn.Module):
    """Tokens to experts and back; how one expert computes is left open."""

    def expert(self, number: int, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor, chosen: Tensor, shares: Tensor) -> Tensor:
        result = torch.zeros_like(x)
        for number in range(EXPERTS):
            token, place = torch.where(chosen == number)
            result = result.index_add(0, token, self.expert(number, x[token]) * shares[token, place, None])
        return result


class Unfused(Routed):
    """Every expert a module of three layers, as before transformers 5."""

    def __init__(self) -> None:
        super().__init__()
        self.list = nn.ModuleList(Expert() for _ in range(EXPERTS))

    def expert(self, number: int, x: Tensor) -> Tensor:
        return self.list[number](x)


class ApartStacks(Routed):
    """Stacks of experts, gate and up apart."""

    def __init__(self) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = (nn.Parameter(torch.empty(EXPERTS, NEURONS, WIDTH)) for _ in range(2))
        self.down_proj = nn.Parameter(torch.empty(EXPERTS, WIDTH, NEURONS))

    def expert(self, number: int, x: Tensor) -> Tensor:
        hidden = F.silu(F.linear(x, self.gate_proj[number])) * F.linear(x, self.up_proj[number])
        return F.linear(hidden, self.down_proj[number])


class Straight(Routed):
    """gpt-oss's experts stored (out, in), gate above up."""

    def __init__(self, like: nn.Module) -> None:
        super().__init__()
        self.alpha, self.limit = like.alpha, like.limit
        self.gate_up_proj = nn.Parameter(torch.empty(EXPERTS, 2 * NEURONS, WIDTH))
        self.gate_up_proj_bias = nn.Parameter(torch.empty(EXPERTS, 2 * NEURONS))
        self.down_proj = nn.Parameter(torch.empty(EXPERTS, WIDTH, NEURONS))
        self.down_proj_bias = nn.Parameter(torch.empty(EXPERTS, WIDTH))

    def expert(self, number: int, x: Tensor) -> Tensor:
        both = F.linear(x, self.gate_up_proj[number], self.gate_up_proj_bias[number])
        return F.linear(self.gated(*both.chunk(2, -1)), self.down_proj[number], self.down_proj_bias[number])

    def gated(self, gate: Tensor, up: Tensor) -> Tensor:
        gate, up = gate.clamp(max=self.limit), up.clamp(-self.limit, self.limit)
        return (up + 1) * gate * torch.sigmoid(gate * self.alpha)


class BiasedExpert(nn.Module):
    """One of gpt-oss's experts out of three layers with biases."""

    def __init__(self) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = (nn.Linear(WIDTH, NEURONS) for _ in range(2))
        self.down_proj = nn.Linear(NEURONS, WIDTH)


class UnfusedStraight(Routed):
    """The same with a module of three layers for every expert."""

    gated = Straight.gated

    def __init__(self, like: nn.Module) -> None:
        super().__init__()
        self.alpha, self.limit = like.alpha, like.limit
        self.list = nn.ModuleList(BiasedExpert() for _ in range(EXPERTS))

    def expert(self, number: int, x: Tensor) -> Tensor:
        one = self.list[number]
        return one.down_proj(self.gated(one.gate_proj(x), one.up_proj(x)))


def renamed(one: Callable[[str, Tensor], dict[str, Tensor]]) -> Callable[[Tensors], dict[str, Tensor]]:
    """What is done to the parameters of ``mlp.experts``, given their last name; others stay."""

    def stored_anew(tensors: Tensors) -> dict[str, Tensor]:
        result = {}
        for name, value in tensors.items():
            path, found, leaf = name.partition(".mlp.experts.")
            changed = one(leaf, value) if found else {leaf: value}
            result |= {f"{path}{found}{new}": part for new, part in changed.items()}
        return result

    return stored_anew


def one_by_one(leaf: str, value: Tensor) -> dict[str, Tensor]:
    """Fused stacks, gate above up, to a module for each expert."""
    bias = leaf.endswith("_bias")
    name, last = leaf.removesuffix("_bias"), "bias" if bias else "weight"
    parts = {"gate_proj": 0, "up_proj": 1} if name == "gate_up_proj" else {name: 0}
    return {
        f"list.{number}.{part}.{last}": one.chunk(len(parts))[place]
        for number, one in enumerate(value)
        for part, place in parts.items()
    }


def stacks_apart(leaf: str, value: Tensor) -> dict[str, Tensor]:
    if leaf != "gate_up_proj":
        return {leaf: value}
    gate, up = value.chunk(2, 1)
    return {"gate_proj": gate, "up_proj": up}


def straightened(leaf: str, value: Tensor) -> dict[str, Tensor]:
    """gpt-oss's tensors, transposed and interleaved, to (out, in) with gate above up."""
    if leaf.startswith("gate_up"):
        value = torch.cat([value[..., ::2], value[..., 1::2]], -1)
    return {leaf: value if leaf.endswith("bias") else value.mT}


def one_by_one_straightened(leaf: str, value: Tensor) -> dict[str, Tensor]:
    return one_by_one(leaf, straightened(leaf, value)[leaf])


def olmoe(experts: type[Routed], one: Callable[[str, Tensor], dict[str, Tensor]]) -> Twins:
    ends = {"bos_token_id": 0, "eos_token_id": 0}
    first = models.olmoe("cpu", num_experts=EXPERTS, **SMALL, **ends)
    second = copy.deepcopy(first)
    for layer in second.model.layers:
        layer.mlp.experts = experts()
    return Twins(first, second, renamed(one))


def gpt_oss(experts: Callable[[nn.Module], Routed], one: Callable[[str, Tensor], dict[str, Tensor]]) -> Twins:
    config = {**SMALL, "num_local_experts": EXPERTS, "layer_types": ["full_attention"], "eos_token_id": 0}
    first = models.gpt_oss("cpu", **config)
    second = copy.deepcopy(first)
    for layer in second.model.layers:
        layer.mlp.experts = experts(layer.mlp.experts)
    return Twins(first, second, renamed(one))


PAIRS: dict[str, Callable[[], Twins]] = {
    "unfused": lambda: olmoe(Unfused, one_by_one),
    "gate and up apart": lambda: olmoe(ApartStacks, stacks_apart),
    "straight": lambda: gpt_oss(Straight, straightened),
    "straight, unfused": lambda: gpt_oss(UnfusedStraight, one_by_one_straightened),
}


@pytest.mark.parametrize("which", PAIRS)
def test_both_compute_the_same(which: str) -> None:
    check_computation(PAIRS[which]())


@pytest.mark.parametrize("which", PAIRS)
def test_both_have_the_same_matrices_in_the_same_roles(which: str) -> None:
    pair = PAIRS[which]()
    for plan in PLANS:
        check_matrices(pair, plan)


@pytest.mark.parametrize("dtype", [torch.float64, pytest.param(torch.float32, marks=pytest.mark.slow)])
@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("which", PAIRS)
def test_the_same_gradients_move_both_alike(which: str, plan: str, dtype: torch.dtype) -> None:
    check_steps(PAIRS[which](), plan, dtype)


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize(
    "which", ["unfused", "straight", *(pytest.param(name, marks=pytest.mark.slow) for name in list(PAIRS)[1::2])]
)
def test_both_train_to_the_same_weights(which: str, plan: str) -> None:
    # Ten steps' roundings of the gradients, magnified likewise, and gradients of 1e-17 where a softmax sees nothing (a
    # common bias of all experts' scores), which AdamW divides by its eps of 1e-8.
    assert trained(made_equal(PAIRS[which]()), plan, batches()) < 1e-9
