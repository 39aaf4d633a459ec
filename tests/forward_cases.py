"""Which architectures run under the forward witness, with which options, and what of their answer needs a word."""

from __future__ import annotations

from typing import Any

NONE = "(?!)"  # matches no name

# Architectures that cannot run a forward pass on a CPU, with the reason.
NO_FORWARD: dict[str, str] = {}

# A few that have, together, the known layouts and roles: these run always, the rest with the slow tests.
QUICK = frozenset(
    [
        *["bloom", "codegen", "deepseek_v3", "falcon", "gemma3_text", "gpt2", "gpt_bigcode", "gpt_neox", "gpt_oss"],
        *["granitemoehybrid", "llama", "mamba", "mixtral", "olmoe", "opt", "phi3", "qwen3_next", "recurrent_gemma"],
    ]
)

# Options that give an architecture other parameters or another layout, which its shrunken config does not have.
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("bert", {"add_cross_attention": True, "is_decoder": True}),
    ("cohere", {"use_qk_norm": True}),
    ("deepseek_v2", {"q_lora_rank": None}),
    ("deepseek_v3", {"q_lora_rank": None}),
    ("doge", {"is_moe": True, "num_experts": 64, "num_experts_per_tok": 4}),
    ("electra", {"embedding_size": 20}),
    ("ernie", {"use_task_id": True}),
    ("falcon", {"new_decoder_architecture": True}),
    ("falcon", {"multi_query": False, "num_kv_heads": 4}),
    ("gemma", {"tie_word_embeddings": False}),
    ("gemma4_text", {"enable_moe_block": True}),
    ("gemma4_text", {"attention_k_eq_v": True}),
    ("gpt2", {"add_cross_attention": True}),
    ("gpt_bigcode", {"multi_query": False}),
    ("granitemoehybrid", {"num_local_experts": 0}),
    ("jamba", {"num_experts": 1, "num_experts_per_tok": 1}),
    ("lfm2", {"layer_types": ["conv", "full_attention"]}),
    ("llama", {"tie_word_embeddings": True}),
    ("mamba2", {"n_groups": 1}),
    ("opt", {"word_embed_proj_dim": 20}),
    ("persimmon", {"qk_layernorm": False}),
    ("phi", {"qk_layernorm": True}),
    ("qwen3_moe", {"mlp_only_layers": [0]}),
    ("reformer", {"axial_pos_embds": False}),
    ("stablelm", {"qk_layernorm": True}),
    ("xmod", {"add_cross_attention": True, "is_decoder": True}),
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

# Where what the pass shows is not all: the view that is right all the same, with the reason.
_DISTANCES = "one side of it is distances, picked by place"
_SERIES = "two series, of the next window and of this one, that meet in one softmax"
READ_OTHERWISE: dict[str, list[tuple[str, str, str]]] = {
    "deepseek_v4": [
        (r".*\.indexer\.(kv|gate)_proj\.weight", "split(14,14)", _SERIES),
        (r".*\.3\..*\.compressor\.(kv|gate)_proj\.weight", "split(20,20)", _SERIES),
    ],
    "diffllama": [(r".*\.v_proj\.weight", "matrix", "two attentions read the two halves of its heads")],
    "inkling_text": [(r".*\.rel_logits_proj\.proj", "vector", _DISTANCES)],
    "inkling2_text": [(r".*\.rel_logits_proj\.proj", "vector", _DISTANCES)],
    "prophetnet": [(r".*\.relative_pos_embeddings\.weight", "vector", _DISTANCES)],
    "zamba": [(r".*\.in_proj\.weight", "interleave(2)", "a scan for each head of the gate and of x")],
}

# Where a router has layers before the one whose outputs are sorted.
DEEP_ROUTERS = {"zaya": r".*\.mlp\.gate\.(down_proj|router_mlp\.fc[12])\.weight"}
