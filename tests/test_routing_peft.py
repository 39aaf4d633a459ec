"""Roles in models with peft's adapters. Only what is trained is listed: the layers they adapt are frozen.

LoRA's halves are linear maps, with the rank as one of their spaces. The table of an embedding's adapter is looked up
by token, so it is an embedding, stored on its side; ``lora_B`` of a head has a row for every logit, so it is a head.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import models
import pytest
import torch
from routing_check import HEAD, MATRIX, MLP_IN, MLP_OUT, VECTOR, Expected, check
from torch import nn

import orthoopt
from orthoopt.roles import roles
from orthoopt.views import parse_view

TARGETS = ["q_proj", "v_proj", "gate_proj"]
LAYER = r"base_model\.model\.model\.layers\.\d\."
ADAPTED = LAYER + r"(self_attn\.[qv]|mlp\.gate)_proj\."
LORA: Expected = {ADAPTED + r"lora_[AB]\.default\.weight": MATRIX}
TABLE: Expected = {
    r"base_model\.model\.model\.embed_tokens\.lora_embedding_A\.default": ("embedding", "transpose"),
    r"base_model\.model\.model\.embed_tokens\.lora_embedding_B\.default": MATRIX,
}
SAVED = r"modules_to_save\.default\."
EMBEDDING = ("embedding", "matrix")
UNKNOWN = ("unknown", "matrix")


def llama(**config: Any) -> nn.Module:
    return models.llama("cpu", **config)


CASES: dict[str, tuple[str, dict[str, Any], Callable[[], nn.Module], Expected]] = {
    "LoRA": (
        "LoraConfig",
        {"r": 4, "target_modules": TARGETS, "lora_bias": True},
        llama,
        {**LORA, ADAPTED + r"lora_B\.default\.bias": VECTOR},
    ),
    "rsLoRA of Conv1D": (
        "LoraConfig",
        {"r": 4, "use_rslora": True, "target_modules": ["c_attn", "c_fc", "c_proj"], "fan_in_fan_out": True},
        lambda: models.gpt2("cpu"),
        {r"base_model\.model\.transformer\.h\.\d\.(attn|mlp)\.c_\w+\.lora_[AB]\.default\.weight": MATRIX},
    ),
    "DoRA": (
        "LoraConfig",
        {"r": 4, "use_dora": True, "target_modules": [*TARGETS, "embed_tokens"]},
        llama,
        {**LORA, **TABLE, r".*\.lora_magnitude_vector\.default\.weight": VECTOR},
    ),
    "LoRA of the head": (
        "LoraConfig",
        {"r": 4, "target_modules": ["lm_head"]},
        llama,
        {
            r"base_model\.model\.lm_head\.lora_A\.default\.weight": MATRIX,
            r"base_model\.model\.lm_head\.lora_B\.default\.weight": HEAD,
        },
    ),
    "LoRA of stacked experts": (
        "LoraConfig",
        {"r": 4, "target_modules": [], "target_parameters": ["mlp.experts.gate_up_proj"]},
        lambda: models.olmoe("cpu"),
        {
            LAYER + r"mlp\.experts\.lora_A\.default\.weight": ("hidden", "heads(8)"),
            LAYER + r"mlp\.experts\.lora_B\.default\.weight": ("hidden", "transpose interleave(8) transpose"),
        },
    ),
    "whole layers saved": (
        "LoraConfig",
        {"r": 4, "target_modules": TARGETS, "modules_to_save": ["lm_head", "embed_tokens"]},
        llama,
        {
            **LORA,
            rf"base_model\.model\.model\.embed_tokens\.{SAVED}weight": EMBEDDING,
            rf"base_model\.model\.lm_head\.{SAVED}weight": HEAD,
        },
    ),
    "a tied embedding saved": (
        "LoraConfig",
        {"r": 4, "target_modules": TARGETS, "modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
        lambda: llama(tie_word_embeddings=True),
        {**LORA, rf"base_model\.model\.model\.embed_tokens\.{SAVED}weight": ("tied_embedding", "matrix")},
    ),
    "mlps saved": (
        "LoraConfig",
        {"r": 4, "target_modules": ["q_proj"], "modules_to_save": ["mlp"]},
        llama,
        {
            LAYER + r"self_attn\.q_proj\.lora_[AB]\.default\.weight": MATRIX,
            LAYER + rf"mlp\.{SAVED}(gate|up)_proj\.weight": MLP_IN,
            LAYER + rf"mlp\.{SAVED}down_proj\.weight": MLP_OUT,
        },
    ),
    "rows of an embedding": (
        "LoraConfig",
        {"r": 4, "target_modules": TARGETS, "trainable_token_indices": {"embed_tokens": [1, 2, 3]}},
        llama,
        {**LORA, r".*embed_tokens\.token_adapter\.trainable_tokens_delta\.default": EMBEDDING},
    ),
    "rows of a tied embedding": (
        "LoraConfig",
        {"r": 4, "target_modules": TARGETS, "trainable_token_indices": [1, 2, 3]},
        lambda: llama(tie_word_embeddings=True),
        {**LORA, r".*embed_tokens\.token_adapter\.trainable_tokens_delta\.default": ("tied_embedding", "matrix")},
    ),
    "AdaLoRA": (
        "AdaLoraConfig",
        {"target_modules": TARGETS, "total_step": 10, "init_r": 4},
        llama,
        {ADAPTED + r"lora_[AB]\.default": MATRIX, ADAPTED + r"lora_E\.default": VECTOR},
    ),
    "IA3": (
        "IA3Config",
        {"target_modules": ["k_proj", "down_proj"], "feedforward_modules": ["down_proj"]},
        llama,
        {r".*\.ia3_l\.default": VECTOR},
    ),
    "prompt": (
        "PromptTuningConfig",
        {"num_virtual_tokens": 5, "task_type": "CAUSAL_LM"},
        llama,
        {r"prompt_encoder\.default\.embedding\.weight": VECTOR},
    ),
    "prefix": (
        "PrefixTuningConfig",
        {
            **{"num_virtual_tokens": 5, "task_type": "CAUSAL_LM"},
            **{"prefix_projection": True, "encoder_hidden_size": 12},
        },
        llama,
        {
            r"prompt_encoder\.default\.embedding\.weight": VECTOR,
            r"prompt_encoder\.default\.transform\.[02]\.weight": MATRIX,
            r"prompt_encoder\.default\.transform\.[02]\.bias": VECTOR,
        },
    ),
    "P-tuning by an LSTM": (
        "PromptEncoderConfig",
        {
            **{"num_virtual_tokens": 5, "task_type": "CAUSAL_LM", "encoder_hidden_size": 12},
            **{"encoder_reparameterization_type": "LSTM", "encoder_dropout": 0.0},
        },
        llama,
        {
            r"prompt_encoder\.default\.embedding\.weight": VECTOR,
            r"prompt_encoder\.default\.lstm_head\.weight_\w+": ("hidden", "split(12,12,12,12)"),
            r"prompt_encoder\.default\.mlp_head\.[02]\.weight": MATRIX,
            r".*bias\w*": VECTOR,
        },
    ),
    "LLaMA-Adapter": (
        "AdaptionPromptConfig",
        {"adapter_len": 4, "adapter_layers": 1, "task_type": "CAUSAL_LM"},
        llama,
        {r".*\.adaption_(prompt|gate)": VECTOR},
    ),
    "VeRA": (
        "VeraConfig",
        {"r": 4, "target_modules": ["q_proj", "gate_proj"]},
        llama,
        {r".*\.vera_lambda_[bd]\.default": VECTOR},
    ),
    "LoHa": (
        "LoHaConfig",
        {"r": 4, "target_modules": TARGETS},
        llama,
        {ADAPTED + r"hada_w[12]_[ab]\.default": MATRIX},
    ),
    "LoKr": (
        "LoKrConfig",
        {"r": 2, "target_modules": TARGETS},
        llama,
        {ADAPTED + r"lokr_w(1|2_a|2_b)\.default": MATRIX},
    ),
    "DeLoRA": (
        "DeloraConfig",
        {"r": 4, "target_modules": TARGETS},
        llama,
        {ADAPTED + r"delora_[AB]\.default": MATRIX, ADAPTED + r"delora_lambda\.default": VECTOR},
    ),
    "OFT": (
        "OFTConfig",
        {"oft_block_size": 8, "target_modules": TARGETS},
        llama,
        {ADAPTED + r"oft_R\.default\.weight": VECTOR},
    ),
    "BOFT": (
        "BOFTConfig",
        {"boft_block_size": 8, "target_modules": TARGETS},
        llama,
        {ADAPTED + r"boft_[Rs]\.default": VECTOR},
    ),
    # Householder vectors are columns that are normalised; weights of fixed matrices are no map of features.
    "HRA": ("HRAConfig", {"r": 4, "target_modules": TARGETS}, llama, {ADAPTED + r"hra_u\.default": UNKNOWN}),
    "RandLoRA": (
        "RandLoraConfig",
        {"r": 4, "target_modules": TARGETS},
        llama,
        {ADAPTED + r"randlora_(lambda|gamma)\.default": UNKNOWN},
    ),
    "Lily": (
        "LilyConfig",
        {"r": 4, "target_modules": TARGETS},
        llama,
        {
            ADAPTED + r"lily_[AB]\.default\.weight": MATRIX,
            ADAPTED + r"lily_router\.default\.weight": ("router", "matrix"),
        },
    ),
}


def with_adapter(base: nn.Module, config: str, options: dict[str, Any]) -> nn.Module:
    with warnings.catch_warnings():  # peft's own remarks, and its use of what transformers deprecates
        warnings.simplefilter("ignore")
        import peft

        return peft.get_peft_model(base, getattr(peft, config)(**options))


def adapted(which: str) -> nn.Module:
    config, options, base, _ = CASES[which]
    return with_adapter(base(), config, options)


@pytest.mark.parametrize("which", CASES)
def test_every_trained_parameter_of_an_adapter(which: str) -> None:
    check(adapted(which), CASES[which][-1])


@pytest.mark.parametrize("which", ["LoRA", "AdaLoRA", "prompt", "DoRA"])
def test_names_alone_know_the_adapters_that_are_named_like_no_others(which: str) -> None:
    named = [(name, param) for name, param in adapted(which).named_parameters() if param.requires_grad]
    check(named, CASES[which][-1])


def test_halves_for_experts_are_seen_expert_by_expert() -> None:
    torch.manual_seed(0)
    model = adapted("LoRA of stacked experts")
    layer = model.base_model.model.model.layers[0].mlp.experts
    layer.lora_B["default"].weight.data.normal_()
    (halves_in,) = parse_view("heads(8)").pieces(layer.lora_A["default"].weight)
    halves_out = parse_view("transpose interleave(8) transpose").pieces(layer.lora_B["default"].weight)
    delta = layer.get_delta_weight("default")  # (experts, out, in)
    for expert in range(8):
        product = layer.scaling["default"] * halves_out[expert] @ halves_in[expert]
        # 1e-5: products of rank 4 in fp32
        torch.testing.assert_close(product, delta[expert], atol=1e-5, rtol=1e-5)


def test_the_table_of_an_embeddings_adapter_moves_by_token() -> None:
    torch.manual_seed(0)
    model = adapted("DoRA")
    table = model.base_model.model.model.embed_tokens.lora_embedding_A["default"]
    optimizer = orthoopt.Symmetry(model, lr=1e-2)
    group = next(g for g in optimizer.param_groups if any(p is table for p in g["params"]))
    assert (group["rule"], group["view"]) == ("row_norm", "transpose")
    tokens = torch.tensor([[3, 5, 5, 7, 3]])
    before = table.detach().clone()
    for _ in range(2):  # half of each adapter is zero at first
        model(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    moved = (table.detach() - before).norm(dim=0)
    assert moved[[3, 5, 7]].min() > 0
    others = torch.ones(len(moved), dtype=torch.bool)
    others[[3, 5, 7]] = False
    assert moved[others].max() == 0


def test_an_adapted_router_or_gate_stays_an_adapter() -> None:
    model = with_adapter(
        models.olmoe("cpu"), "LoraConfig", {"r": 4, "target_modules": [], "target_parameters": ["mlp.gate.weight"]}
    )
    assert {e.role for e in roles(model)} == {"hidden"}
