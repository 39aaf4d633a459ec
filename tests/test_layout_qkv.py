"""q, k, v fused head after head (NeoX, Bloom, Falcon), in one block (torch), or apart: the same weights are trained."""

from __future__ import annotations

import copy
from collections.abc import Callable

import models
import pytest
import torch
from torch import Tensor, nn
from twins import (
    PLANS,
    VOCABULARY,
    Tensors,
    Twins,
    batches,
    check_computation,
    check_matrices,
    check_steps,
    everything,
    made_equal,
    trained,
)

WIDTH, HEADS = 32, 4


class Apart(nn.Module):
    """q, k, v in layers of their own, returned as the fused layer would: group after group, q, k, v in each."""

    def __init__(self, sizes: tuple[int, ...], groups: int, bias: bool) -> None:
        super().__init__()
        self.groups = groups
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(WIDTH, groups * size, bias=bias) for size in sizes)

    def forward(self, x: Tensor) -> Tensor:
        parts = [layer(x).unflatten(-1, (self.groups, -1)) for layer in (self.q_proj, self.k_proj, self.v_proj)]
        return torch.cat(parts, -1).flatten(-2)


def twins(model: nn.Module, sizes: tuple[int, ...], groups: int) -> Twins:
    """The model, and a copy with q, k, v apart; ``sizes`` are the rows of each in one of the ``groups``."""
    second = copy.deepcopy(model)
    for name, module in list(second.named_modules()):
        if name.endswith("query_key_value"):
            parent, _, leaf = name.rpartition(".")
            setattr(second.get_submodule(parent), leaf, Apart(sizes, groups, module.bias is not None))

    def apart(tensors: Tensors) -> dict[str, Tensor]:
        result = {}
        for name, value in tensors.items():
            path, found, leaf = name.partition("query_key_value.")
            parts = value.unflatten(0, (groups, -1)).split(list(sizes), 1) if found else [value]
            keys = [f"{x}_proj." for x in "qkv"] if found else [""]
            result |= {
                f"{path}{found}{k}{leaf}": p.flatten(0, 1) if found else p for k, p in zip(keys, parts, strict=True)
            }
        return result

    return Twins(model, second, apart)


def built(architecture: str, config: dict[str, object]) -> nn.Module:
    ends = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": None}
    return models.transformers_model(
        architecture, {"vocab_size": VOCABULARY, "hidden_size": WIDTH, **ends, **config}, "cpu"
    )


def neox() -> Twins:
    config = {"num_attention_heads": HEADS, "num_hidden_layers": 1, "intermediate_size": 48}
    return twins(built("GPTNeoXForCausalLM", config), (8, 8, 8), HEADS)


def bloom() -> Twins:
    return twins(built("BloomForCausalLM", {"n_head": HEADS, "n_layer": 1}), (8, 8, 8), HEADS)


def falcon() -> Twins:
    config = {"num_attention_heads": HEADS, "num_hidden_layers": 1, "new_decoder_architecture": True, "num_kv_heads": 2}
    return twins(built("FalconForCausalLM", config), (16, 8, 8), 2)


PAIRS: dict[str, Callable[[], Twins]] = {"neox": neox, "bloom": bloom, "falcon": falcon}


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


def without_keys(name: str, value: Tensor) -> Tensor:
    return torch.zeros_like(value) if name.endswith("k_proj.bias") else value


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("which", ["neox", "falcon"])  # Bloom's softmax is in float32 whatever the model's dtype
def test_both_train_to_the_same_weights(which: str, plan: str) -> None:
    # Ten steps' roundings of the gradients, magnified likewise. A softmax does not see the bias of keys (where nothing
    # turns them), whose gradients of rounding AdamW divides by 1e-8, and Scion brings to full length.
    seen = without_keys if plan == "scion" else everything
    assert trained(made_equal(PAIRS[which]()), plan, batches(), seen) < 1e-9
