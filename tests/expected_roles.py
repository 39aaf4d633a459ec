"""What the classifier must say of each model, written by hand from reading the models' forward passes."""

from __future__ import annotations

from collections.abc import Callable

import models
from torch import nn

from orthoopt.roles import ParameterRole

Expected = dict[str, tuple[str, str]]

VECTOR = ("vector", "vector")
# The layers that Llama, Qwen3, Gemma 3 and OLMoE have in common, read in their modelling files.
ATTENTION: Expected = {
    r"model\.layers\.\d\.self_attn\.[qkvo]_proj\.weight": ("attention", "matrix"),
    r"model\.layers\.\d\.\w*layernorm\.weight": VECTOR,
    r"model\.norm\.weight": VECTOR,
}
QK_NORMS: Expected = {r"model\.layers\.\d\.self_attn\.[qk]_norm\.weight": VECTOR}
SWIGLU: Expected = {
    r"model\.layers\.\d\.mlp\.(gate|up)_proj\.weight": ("mlp_in", "matrix"),
    r"model\.layers\.\d\.mlp\.down_proj\.weight": ("mlp_out", "matrix"),
}
UNTIED: Expected = {
    r"model\.embed_tokens\.weight": ("embedding", "matrix"),
    r"lm_head\.weight": ("lm_head", "matrix"),
}
TIED: Expected = {r"model\.embed_tokens\.weight": ("tied_embedding", "matrix")}
MODELS: dict[str, tuple[Callable[[], nn.Module], Expected]] = {
    "llama": (models.llama, {**UNTIED, **ATTENTION, **SWIGLU}),
    "llama tied": (lambda: models.llama(tie_word_embeddings=True), {**TIED, **ATTENTION, **SWIGLU}),
    "qwen3": (models.qwen3, {**UNTIED, **ATTENTION, **QK_NORMS, **SWIGLU}),
    "gemma3": (models.gemma3, {**TIED, **ATTENTION, **QK_NORMS, **SWIGLU}),
    "gpt2": (
        lambda: models.gpt2(add_cross_attention=True),
        {
            r"transformer\.wte\.weight": ("tied_embedding", "matrix"),
            r"transformer\.wpe\.weight": VECTOR,
            r"transformer\.(h\.\d\.)?ln_\w+\.(weight|bias)": VECTOR,
            r"transformer\.h\.\d\.\w+\.\w+\.bias": VECTOR,
            r"transformer\.h\.\d\.attn\.c_attn\.weight": ("attention", "transpose split(32,32,32)"),
            r"transformer\.h\.\d\.crossattention\.c_attn\.weight": ("attention", "transpose split(32,32)"),
            r"transformer\.h\.\d\.crossattention\.q_attn\.weight": ("attention", "transpose"),
            r"transformer\.h\.\d\.(cross)?att\w+\.c_proj\.weight": ("attention", "transpose"),
            r"transformer\.h\.\d\.mlp\.c_fc\.weight": ("mlp_in", "transpose"),
            r"transformer\.h\.\d\.mlp\.c_proj\.weight": ("mlp_out", "transpose"),
        },
    ),
    "olmoe": (
        models.olmoe,
        {
            **UNTIED,
            **ATTENTION,
            **QK_NORMS,
            r"model\.layers\.\d\.mlp\.gate\.weight": ("router", "matrix"),
            r"model\.layers\.\d\.mlp\.experts\.gate_up_proj": ("expert_in", "split(48,48)"),
            r"model\.layers\.\d\.mlp\.experts\.down_proj": ("expert_out", "matrix"),
        },
    ),
    "gpt-oss": (
        models.gpt_oss,
        {
            **UNTIED,
            **ATTENTION,
            r"model\.layers\.\d\.self_attn\.(sinks|[qkvo]_proj\.bias)": VECTOR,
            r"model\.layers\.\d\.mlp\.router\.weight": ("router", "matrix"),
            r"model\.layers\.\d\.mlp\.router\.bias": VECTOR,
            r"model\.layers\.\d\.mlp\.experts\.gate_up_proj": ("expert_in", "transpose interleave(2)"),
            r"model\.layers\.\d\.mlp\.experts\.down_proj": ("expert_out", "transpose"),
            r"model\.layers\.\d\.mlp\.experts\.\w+_proj_bias": VECTOR,
        },
    ),
    "torch language model": (
        models.TorchLanguageModel,
        {
            r"tokens\.weight": ("embedding", "matrix"),
            r"position\.weight": VECTOR,
            r"body\.layers\.\d\.self_attn\.in_proj_weight": ("attention", "split(32,32,32)"),
            r"body\.layers\.\d\.self_attn\.out_proj\.weight": ("attention", "matrix"),
            r"body\.layers\.\d\.linear1\.weight": ("mlp_in", "matrix"),
            r"body\.layers\.\d\.linear2\.weight": ("mlp_out", "matrix"),
            r"body\.layers\.\d\.(norm\d\.weight|.*bias)": VECTOR,
            r"readout\.weight": ("lm_head", "matrix"),
        },
    ),
    "nn.Transformer": (
        lambda: nn.Transformer(16, 2, 1, 1, 24, batch_first=True),
        {
            r"\w+\.layers\.0\.\w+\.in_proj_weight": ("attention", "split(16,16,16)"),
            r"\w+\.layers\.0\.\w+\.out_proj\.weight": ("attention", "matrix"),
            r"\w+\.layers\.0\.linear1\.weight": ("mlp_in", "matrix"),
            r"\w+\.layers\.0\.linear2\.weight": ("mlp_out", "matrix"),
            r"\w+\.layers\.0\.(norm\d\.weight|.*bias)": VECTOR,
            r"\w+\.norm\.\w+": VECTOR,
        },
    ),
    "attention of other key width": (
        lambda: nn.MultiheadAttention(16, 2, kdim=8, vdim=12, add_bias_kv=True),
        {
            r"[qkv]_proj_weight": ("attention", "matrix"),
            r"out_proj\.weight": ("attention", "matrix"),
            r"in_proj_bias|out_proj\.bias|bias_[kv]": VECTOR,
        },
    ),
    "convnet": (
        models.ConvNet,
        {
            r"(stem|pointwise)\.weight": ("conv", "flatten"),
            r"depthwise\.weight": VECTOR,
            r"hidden\.weight": ("hidden", "matrix"),
            r"out\.weight": ("lm_head", "matrix"),
            r"norm\.weight|.*\.bias": VECTOR,
        },
    ),
    "phi3": (
        lambda: models.transformers_model("Phi3ForCausalLM", {**models.DENSE, "pad_token_id": 0}),
        {
            **UNTIED,
            r"model\.layers\.\d\.\w*layernorm\.weight": VECTOR,
            r"model\.norm\.weight": VECTOR,
            r"model\.layers\.\d\.self_attn\.qkv_proj\.weight": ("attention", "split(32,16,16)"),
            r"model\.layers\.\d\.self_attn\.o_proj\.weight": ("attention", "matrix"),
            r"model\.layers\.\d\.mlp\.gate_up_proj\.weight": ("mlp_in", "split(48,48)"),
            r"model\.layers\.\d\.mlp\.down_proj\.weight": ("mlp_out", "matrix"),
        },
    ),
    "neox": (
        lambda: models.transformers_model(
            "GPTNeoXForCausalLM",
            {k: v for k, v in models.DENSE.items() if k not in ("head_dim", "num_key_value_heads")},
        ),
        {
            r"gpt_neox\.embed_in\.weight": ("embedding", "matrix"),
            r"lm_head\.weight": ("lm_head", "matrix"),
            r"gpt_neox\.layers\.\d\.attention\.query_key_value\.weight": (
                "attention",
                "heads(4) split(8,8,8) join",
            ),
            r"gpt_neox\.layers\.\d\.attention\.dense\.weight": ("attention", "matrix"),
            r"gpt_neox\.layers\.\d\.mlp\.dense_h_to_4h\.weight": ("mlp_in", "matrix"),
            r"gpt_neox\.layers\.\d\.mlp\.dense_4h_to_h\.weight": ("mlp_out", "matrix"),
            r".*(norm\.weight|bias)": VECTOR,
        },
    ),
    "falcon": (
        lambda: models.transformers_model(
            "FalconForCausalLM",
            {
                **{"vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4},
                **{"new_decoder_architecture": True, "num_kv_heads": 2},
            },
        ),
        {
            r"transformer\.word_embeddings\.weight": ("tied_embedding", "matrix"),
            r".*query_key_value\.weight": ("attention", "heads(2) split(16,8,8) join"),
            r".*attention\.dense\.weight": ("attention", "matrix"),
            r".*dense_h_to_4h\.weight": ("mlp_in", "matrix"),
            r".*dense_4h_to_h\.weight": ("mlp_out", "matrix"),
            r".*ln_\w+\.(weight|bias)": VECTOR,
        },
    ),
    "mamba": (
        lambda: models.transformers_model(
            "MambaForCausalLM", {"vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 1, "state_size": 4}
        ),
        {
            r"backbone\.embeddings\.weight": ("tied_embedding", "matrix"),
            r".*mixer\.(A_log|D|conv1d\.weight|\w+\.bias)": VECTOR,
            r".*mixer\.in_proj\.weight": ("hidden", "split(64,64)"),
            r".*mixer\.x_proj\.weight": ("hidden", "split(2,4,4)"),
            r".*mixer\.(dt|out)_proj\.weight": ("hidden", "matrix"),
            r".*norm\w*\.weight": VECTOR,
        },
    ),
    "vit": (
        lambda: models.transformers_model(
            "ViTForImageClassification",
            {
                **{
                    "hidden_size": 32,
                    "intermediate_size": 48,
                    "num_hidden_layers": 1,
                    "num_attention_heads": 4,
                },
                **{"image_size": 16, "patch_size": 8, "num_labels": 10},
            },
        ),
        {
            r"vit\.embeddings\.(cls_token|position_embeddings)": VECTOR,
            r"vit\.embeddings\.patch_embeddings\.projection\.weight": ("conv", "flatten"),
            r"vit\.layers\.\d\.attention\.[qkvo]_proj\.weight": ("attention", "matrix"),
            r"vit\.layers\.\d\.mlp\.fc1\.weight": ("mlp_in", "matrix"),
            r"vit\.layers\.\d\.mlp\.fc2\.weight": ("mlp_out", "matrix"),
            r"classifier\.weight": ("lm_head", "matrix"),
            r".*(layernorm\w*\.weight|\.bias)": VECTOR,
        },
    ),
}


def by_name(listed: list[ParameterRole]) -> dict[str, ParameterRole]:
    return {entry.name: entry for entry in listed}
