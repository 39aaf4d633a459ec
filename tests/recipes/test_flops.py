from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from orthoopt.recipes.flops import named_peak, peak_flops, training_flops_per_token
from orthoopt.recipes.meta import build_meta_model

_SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 64}
_LLAMA = _SMALL | {"intermediate_size": 96, "num_key_value_heads": 2, "head_dim": 16}
_BLOCK = 48


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("qwen3", _LLAMA),
        ("gpt2", {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 64, "n_positions": 64}),
        ("olmoe", _SMALL | {"intermediate_size": 64, "num_experts": 8, "num_experts_per_tok": 2}),
    ],
    ids=["dense", "gpt2_tied", "mixture"],
)
def test_a_step_performs_as_many_products_as_are_counted(kind, values) -> None:
    torch.manual_seed(0)
    config = CONFIG_MAPPING[kind](**values)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager", experts_implementation="eager")
    ids = torch.randint(64, (2, _BLOCK))
    with FlopCounterMode(display=False) as counter:
        model(input_ids=ids, labels=ids).loss.backward()
    counted = training_flops_per_token(model, _BLOCK) * ids.numel()
    # Beside them the counter has the angles of rotary positions, a product of 1 x dim/2 with 1 x block.
    assert counter.get_total_flops() == pytest.approx(counted, rel=2e-3)


def test_frozen_weights_have_no_gradient_of_their_own_to_compute() -> None:
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING["qwen3"](**_LLAMA))
    trained = training_flops_per_token(model, _BLOCK)
    layer = model.model.layers[0].mlp.up_proj
    layer.weight.requires_grad_(False)
    assert trained - training_flops_per_token(model, _BLOCK) == 2 * layer.weight.numel()


def test_known_models_on_the_meta_device() -> None:
    """6 times the weights each token meets: GPT-2's 124M without positions, of OLMoE the billion that is active."""
    gpt2, olmoe = build_meta_model("gpt2"), build_meta_model("olmoe-1b-7b")
    weights = sum(p.numel() for p in gpt2.parameters() if p.ndim == 2) - gpt2.transformer.wpe.weight.numel()
    assert training_flops_per_token(gpt2, 1024) == 6 * weights + 12 * 12 * 768 * 1024
    assert 6 * 1.1e9 < training_flops_per_token(olmoe, 1) < 6 * 1.3e9  # its paper says 1.3B with the embedding


def test_a_window_bounds_what_a_query_is_scored_against() -> None:
    model = build_meta_model("gpt-oss-20b")  # half of 24 layers see 128 tokens
    more = training_flops_per_token(model, 4096) - training_flops_per_token(model, 2048)
    assert more == 12 * 12 * 64 * 64 * 2048


def test_an_unsaid_number_of_experts_is_an_error() -> None:
    model = build_meta_model("olmoe-1b-7b")
    model.config.num_experts_per_tok = 0
    with pytest.raises(ValueError, match=r"OlmoeConfig does not say how many experts .*layers\.0\.mlp\.experts"):
        training_flops_per_token(model, 1024)


@pytest.mark.parametrize(
    ("name", "dtype", "rate"),
    [
        ("NVIDIA H100 80GB HBM3", torch.bfloat16, 989.4e12),
        ("NVIDIA H100 PCIe", torch.float16, 756e12),
        ("NVIDIA H200", torch.bfloat16, 989.4e12),
        ("NVIDIA A100-SXM4-80GB", torch.float32, 19.5e12),
        ("NVIDIA L40S", torch.bfloat16, 362.05e12),
        ("NVIDIA GeForce RTX 4090", torch.bfloat16, 165.2e12),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", torch.bfloat16, None),
        ("NVIDIA H100 80GB HBM3 MIG 3g.40gb", torch.bfloat16, None),
        ("Tesla V100-SXM2-16GB", torch.float16, 125e12),
        ("Tesla V100-SXM2-16GB", torch.bfloat16, None),
        ("AMD Instinct MI250X", torch.bfloat16, 383e12),
        ("Somebody's GPU 9000", torch.bfloat16, None),
    ],
)
def test_peaks_by_name(name, dtype, rate) -> None:
    assert named_peak(name, dtype) == rate


def test_fp32_is_tf32_where_torch_may_use_it(monkeypatch) -> None:
    monkeypatch.setattr("orthoopt.recipes.flops._tf32_allowed", lambda: True)
    assert named_peak("NVIDIA A100-SXM4-80GB", torch.float32) == 156e12
    assert peak_flops(torch.device("cpu"), torch.float32) is None
