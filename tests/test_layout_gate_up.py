"""Phi-3 fuses gate with up and q, k, v with grouped queries; Llama keeps them apart and is else the same network."""

from __future__ import annotations

import models
import pytest
import torch
from torch import Tensor
from twins import PLANS, Tensors, Twins, batches, check_computation, check_matrices, check_steps, made_equal, trained

QUERY, KEY_VALUE = 32, 16  # 4 query and 2 key/value heads of 8


def taken_apart(tensors: Tensors) -> dict[str, Tensor]:
    """Llama's tensors out of Phi-3's."""
    apart = {}
    for name, value in tensors.items():
        if name.endswith("qkv_proj.weight"):
            parts = value.split([QUERY, KEY_VALUE, KEY_VALUE])
            apart |= {name.replace("qkv", which): part for which, part in zip("qkv", parts, strict=True)}
        elif name.endswith("gate_up_proj.weight"):
            gate, up = value.chunk(2)
            apart |= {name.replace("gate_up", "gate"): gate, name.replace("gate_up", "up"): up}
        else:
            apart[name] = value
    return apart


def twins(layers: int = 2) -> Twins:
    rotary = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}
    same = {"rms_norm_eps": 1e-6, "num_hidden_layers": layers, "tie_word_embeddings": False, **rotary}
    ends = {"pad_token_id": None, "bos_token_id": 0, "eos_token_id": 0}
    phi3 = models.transformers_model("Phi3ForCausalLM", {**models.DENSE, **same, **ends}, "cpu")
    return Twins(phi3, models.llama("cpu", **same), taken_apart)


def test_both_compute_the_same() -> None:
    check_computation(twins())


@pytest.mark.parametrize("plan", PLANS)
def test_both_have_the_same_matrices_in_the_same_roles(plan: str) -> None:
    check_matrices(twins(), plan)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("plan", PLANS)
def test_the_same_gradients_move_both_alike(plan: str, dtype: torch.dtype) -> None:
    check_steps(twins(layers=1), plan, dtype)


@pytest.mark.parametrize("plan", PLANS)
def test_both_train_to_the_same_weights(plan: str) -> None:
    # Ten steps' roundings of the gradients, magnified likewise.
    assert trained(made_equal(twins()), plan, batches()) < 1e-10
