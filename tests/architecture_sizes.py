"""Sizes that make any transformers config small: one table for all fields, one of exceptions by model type.

Sizes differ, and none is a small multiple of another that a fused layer could be mistaken for: hidden 32, 4 heads
of 20 where the size of heads is free (queries 80, keys 40) and of 8 where it is not, mlp 56, experts' mlp 36, shared
experts' mlp 44, vocabulary 99, towers for images and audio 48 wide.
"""

from __future__ import annotations

from typing import Any

import architecture_sizes_vision as vision

Fields = dict[str, Any]

VOCABULARY = 99
WIDTH_OF_TOWERS = 48


def _all(value: Any, names: str) -> Fields:
    return dict.fromkeys(names.split(), value)


SIZES: Fields = {
    **_all(32, "hidden_size d_model n_embd emb_dim embed_dim dim_model"),
    **_all(2, "num_hidden_layers n_layer n_layers num_layers decoder_layers encoder_layers num_decoder_layers"),
    **_all(2, "num_encoder_layers num_blocks depth"),
    **_all(4, "num_attention_heads n_head n_heads attention_heads decoder_attention_heads encoder_attention_heads"),
    **_all(4, "num_decoder_attention_heads num_encoder_attention_heads"),
    **_all(2, "num_key_value_heads num_kv_heads"),
    **_all(20, "head_dim dim_head kv_channels"),
    **_all(56, "intermediate_size ffn_dim decoder_ffn_dim encoder_ffn_dim n_inner ffn_hidden_size dim_ff dff d_inner"),
    **_all(56, "feed_forward_size dense_intermediate_size intermediate_size_mlp prefix_dense_intermediate_size"),
    **_all(36, "moe_intermediate_size expert_ffn_hidden_size"),
    **_all(44, "shared_expert_intermediate_size shared_experts_intermediate_size shared_intermediate_size"),
    **_all(44, "moe_shared_expert_intermediate_size"),
    **_all(VOCABULARY, "vocab_size unpadded_vocab_size"),
    **_all(64, "max_position_embeddings n_positions n_ctx max_seq_len context_length max_target_positions"),
    **_all(32, "max_source_positions"),
    **_all(8, "num_experts num_local_experts n_routed_experts moe_num_experts"),
    **_all(2, "num_experts_per_tok moe_k moe_topk top_k_experts"),
    **_all(2, "n_group topk_group"),
    **_all(1, "first_k_dense_replace num_dense_layers n_shared_experts num_shared_experts moe_num_shared_experts"),
    **_all(20, "q_lora_rank"),
    **_all(16, "kv_lora_rank"),
    **_all(8, "qk_nope_head_dim"),
    **_all(4, "qk_rope_head_dim"),
    **_all(10, "v_head_dim"),
    **_all(14, "index_head_dim indexer_head_dim"),
    **_all(2, "index_n_heads indexer_n_heads"),
    **_all(8, "mamba_n_heads mamba_num_heads"),
    **_all(8, "mamba_d_head mamba_head_dim"),
    **_all(2, "mamba_n_groups mamba_ngroups"),
    **_all(6, "mamba_d_state state_size ssm_state_size"),
    **_all(3, "mamba_dt_rank time_step_rank"),
    **_all(2, "linear_num_key_heads"),
    **_all(4, "linear_num_value_heads linear_num_heads"),
    **_all(6, "linear_key_head_dim"),
    **_all(10, "linear_value_head_dim linear_head_dim"),
    **_all(16, "sliding_window attention_window_size local_attention window_size attention_chunk_size chunk_size"),
    **_all(16, "mamba_chunk_size image_size"),
    **_all(8, "patch_size"),
    **_all(262, "encoder_hash_byte_group_vocab"),
    **_all(97, "vocab_size_per_layer_input"),
    **_all(12, "hidden_size_per_layer_input"),
    **_all(32, "out_hidden_size"),
    **_all(4, "rotary_dim num_heads num_self_attention_heads num_cross_attention_heads"),
    **_all(8, "d_kv d_head"),
    **_all(56, "d_ff"),
    **_all(2, "num_self_attends_per_block"),
    **_all(64, "max_encoder_position_embeddings max_decoder_position_embeddings"),
    **_all(99, "src_vocab_size tgt_vocab_size"),
}

# Stands in for timm's MobileNet, which needs timm.
SIGLIP_FOR_GEMMA3N: Fields = {
    **{"model_type": "siglip_vision_model", "hidden_size": 32, "intermediate_size": 56, "image_size": 16},
    **{"num_hidden_layers": 2, "num_attention_heads": 4, "patch_size": 8},
    **{"rms_norm_eps": 1e-6, "vocab_size": 11, "vocab_offset": 99},
}

SIGLIP_FOR_TIMM: Fields = SIGLIP_FOR_GEMMA3N | {"hidden_size": 48, "model_args": {"embed_dim": 48}}

# Mimi's convolutions are made for its own widths.
MIMI: Fields = {"hidden_size": 512, "model_type": "mimi"}

FLORENCE_STAGES: Fields = {
    **{"depths": [1, 1], "patch_size": [7, 3], "patch_stride": [4, 2], "patch_padding": [3, 1]},
    **{"patch_prenorm": [False, True], "embed_dim": [24, 48], "num_heads": [2, 4], "num_groups": [2, 4]},
}

# Only fields whose default says otherwise than SIZES, or that SIZES leaves alone; keyed by a config's model_type.
EXCEPTIONS: dict[str, Fields] = {
    **vision.EXCEPTIONS,
    "bailing_hybrid": {"num_hidden_layers": 3, "layer_group_size": 3, "linear_head_dim": 10},
    "bamba": {"attn_layer_indices": [1]},
    "beam": {"mlp_layer_types": ["dense", "sparse"]},
    "blt": {"use_cache": False, "encoder_hash_byte_group_size": [3, 4]},
    "blt_global_transformer": {"hidden_size": 64},
    "blt_local_decoder": {"hidden_size_global": 64},
    "blt_local_encoder": {"hidden_size_global": 64},
    "cohere_compass_text": {
        "rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e4}},
    },
    "dbrx": {
        "attn_config": {"rope_theta": 1e4, "kv_n_heads": 2, "clip_qkv": 8},
        "ffn_config": {"ffn_hidden_size": 36, "moe_num_experts": 8, "moe_top_k": 2},
    },
    "deepseek_v4": {"num_hidden_layers": 4, "o_groups": 2, "o_lora_rank": 6},
    "dots3_note_text": {"num_key_value_heads": 4},
    "falcon_h1": {"mamba_d_ssm": 64},
    "flint": {"mlp_only_layers": [0]},
    "fuyu": {"patch_size": 4, "image_size": 16},
    "gemma3n_audio": {
        "vocab_size": 13,
        "vocab_offset": 110,
        "conf_num_hidden_layers": 2,
        "conf_num_attention_heads": 4,
    },
    "gemma3n_text": {"num_hidden_layers": 10, "num_kv_shared_layers": 5, "laurel_rank": 6},
    "gemma4_assistant": {
        "backbone_hidden_size": 52,
        "text_config": {"hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 0},
    },
    "gemma4_text": {"global_head_dim": 24, "vocab_size_per_layer_input": 97},
    "gemma4_unified_assistant": {"backbone_hidden_size": 52},
    "gemma4_unified_text": {"global_head_dim": 24},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"]},
    "helium": {"head_dim": 8},
    "inkling2_text": {
        **{"num_hidden_layers": 6, "swa_num_attention_heads": 4, "swa_num_key_value_heads": 2, "swa_head_dim": 24},
        **{"rel_extent": 28, "d_rel": 6},
    },
    "inkling_text": {
        **{
            "swa_num_attention_heads": 4,
            "swa_num_key_value_heads": 2,
            "swa_head_dim": 24,
            "rel_extent": 28,
            "d_rel": 6,
        },
    },
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "kimi_linear": {"layer_types": ["linear_attention", "full_attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "lfm3": {"num_hidden_layers": 5},
    "longcat_flash": {"head_dim": 4, "zero_expert_num": 3},
    "mamba2": {"num_heads": 8, "head_dim": 8, "n_groups": 2},
    "mllama_text_model": {"cross_attention_layers": [1]},
    "nemotron_h": {"n_groups": 2},
    "qwen3_5_moe_text": {"layer_types": ["linear_attention", "full_attention"]},
    "qwen3_5_text": {"layer_types": ["linear_attention", "full_attention"]},
    "qwen3_next": {"layer_types": ["linear_attention", "full_attention"]},
    "qwen4_exp_text": {
        **{"layer_types": ["linear_attention", "indexed_attention"], "hc_lowrank": 6, "ple_layer_ids": [1]},
        **{"ngram_vocab_size_base": 50, "make_ngram_vocab_size_divisible_by": 4, "heads_per_ngram": 4},
        **{"indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 28, "indexer_budget": 8},
        **{"indexer_compress_ratio": 4, "eos_token_id": 1, "split_ngram_parts": 1},
    },
    "recurrent_gemma": {"num_hidden_layers": 3},
    "reformer": {
        **{"is_decoder": True, "attn_layers": ["local", "lsh"], "attention_head_size": 10},
        **{"axial_pos_shape": [8, 8], "axial_pos_embds_dim": [12, 20]},
    },
    "roc_bert": {
        **{"pronunciation_vocab_size": 61, "shape_vocab_size": 67},
        **{"pronunciation_embed_dim": 12, "shape_embed_dim": 14},
    },
    "distilbert": {"dim": 32, "hidden_dim": 56},
    "esmc": {"num_key_value_heads": 4},
    "funnel": {"block_sizes": [1, 2]},
    "granite_speech_encoder": {"hidden_dim": 32, "input_dim": 13, "output_dim": 42, "dim_head": 10},
    "granite_speech_plus_encoder": {"hidden_dim": 32, "input_dim": 13, "output_dim": 42, "dim_head": 10},
    "luke": {"entity_vocab_size": 71, "entity_emb_size": 14},
    "mobilebert": {"embedding_size": 24, "intra_bottleneck_size": 20},
    "musicflamingo": {"audio_config": {"model_type": "audioflamingo3_encoder"}},
    "neomme_text": {"head_dim": 16},
    "nllb-moe": {"encoder_sparse_step": 2, "decoder_sparse_step": 2},
    "switch_transformers": {"num_sparse_encoder_layers": 1, "num_sparse_decoder_layers": 1},
    "neomme": {"head_dim": 16},
    "Nemotron3DiarizationHeadConfig": {"audio_hidden_size": 48},
    "perceiver": {"num_latents": 6, "d_latents": 40},
    "squeezebert": {"embedding_size": 32},
    "vibevoice_acoustic_tokenizer": {"num_filters": 4, "depths": [1, 1, 1], "downsampling_ratios": [2, 2]},
    "vibevoice_acoustic_tokenizer_encoder": {"num_filters": 4, "depths": [1, 1, 1], "downsampling_ratios": [2, 2]},
    "xlstm": {"hidden_size": 128, "num_heads": 4, "ffn_round_up_to_multiple_of": 4},
    "xmod": {"default_language": "en_XX"},
    "zamba": {"num_hidden_layers": 4, "layers_block_type": ["linear_attention", "hybrid"] * 2},
    "zamba2": {"num_hidden_layers": 4, "layers_block_type": ["linear_attention", "hybrid"] * 2},
    "zaya": {"num_experts_per_tok": 1, "router_hidden_size": 14},
    # images, audio and several modalities
    "bark": {"codec_config": {"model_type": "encodec"}},
    "chameleon": {"vocabulary_map": {"<image>": 90}},
    "cosmos3_edge_text": {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 3, 3]}},
    "deepseek_ocr2_text": {"mlp_layer_types": ["dense", "sparse"]},
    "dots3_note_vision_encoder": {"mlp_layer_types": ["dense", "sparse"], "adapter_in_dim": 48, "adapter_out_dim": 32},
    "emu3": {"vocabulary_map": {"<image>": 90}},
    "ernie4_5_vl_moe_text": {
        **{"moe_intermediate_size": [36, 28], "mlp_layer_types": ["dense", "sparse"]},
        **{"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}},
    },
    "exaone4_5": {"text_config": {"model_type": "exaone4"}},
    "fast_vlm": {"vision_config": SIGLIP_FOR_TIMM},
    "florence_vision": FLORENCE_STAGES,
    "fun_asr_nano": {"adaptor_config": {"intermediate_size": 8, "hidden_size": 32}},
    "glm5_next_text": {
        **{"qk_rope_head_dim": 0, "layer_types": ["linear_attention", "indexed_attention"]},
        **{"mlp_layer_types": ["dense", "sparse"]},
    },
    "gradium_phonon_tts": {"flow_head_config": {"condition_dim": 32, "hidden_size": 40}},
    "granite4_vision": {
        "vision_config": {"hidden_size": 128},  # a head of the Q-former is 64 wide
        "deepstack_layer_map": [[-1, 0]],
        "downsample_rate": "1/2",
    },
    "granite_docling_vision": {"out_hidden_size": 32},
    "granite_speech5_encoder": {"context_size": 16},
    "inkling2_vision": {"text_hidden_size": 32},
    "kyutai_speech_to_text": {"codec_config": MIMI},
    "csm": {"codec_config": MIMI},
    "lfm3_vl_vision": {"layer_types": ["conv", "full_attention"]},
    "molmo2_adapter": {"vision_feature_layer": [-1, -2], "text_hidden_size": 32, "hidden_size": 48},
    "molmo2_vision": {"image_size": [16, 16]},
    "moonshine_streaming": {"num_key_value_heads": 4, "encoder_config": {"hidden_size": 48}},
    "musicgen": {"text_encoder": {"d_model": 48}},
    "musicgen_melody": {"text_encoder": {"d_model": 48}},
    "muse_spark_audio": {
        **{"num_hidden_layers": 2, "patch_sizes": [16, 6], "hidden_sizes": [24, 48], "depths": [1, 1]},
        **{"out_hidden_size": 32},
    },
    "muse_spark_text": {"moe_hidden_size": 28},
    "perception_lm": {"vision_config": SIGLIP_FOR_TIMM},
    "dots3_note_audio_encoder": {"adapter_input_size": 48, "adapter_output_size": 32},
    "Qwen3OmniMoeTalkerConfig": {"spatial_merge_size": 2},
    "qwen2_vl": {"vision_config": {"embed_dim": 48, "hidden_size": 32}},  # the latter is the text's
    "qwen3_omni_moe_talker_text": {"shared_expert_intermediate_size": 44},
    "step3p5": {"mlp_layer_types": ["dense", "sparse"]},
    "pocket_tts": {"flow_head_config": {"condition_dim": 32, "hidden_size": 40}},
}

# Options that change a layout and that default configs leave off: family -> "model type@what" -> fields of the config.
VARIANTS: dict[str, dict[str, Fields]] = {
    **vision.VARIANTS,
    "causal_lm": {
        "deepseek_v3@no_query_latent": {"q_lora_rank": None},
        "doge@experts": {"is_moe": True, "num_experts": 16},
        "falcon@grouped": {"new_decoder_architecture": True},
        "falcon@multi_head": {"multi_query": False},
        "gemma4_text@experts": {"enable_moe_block": True},
        "gemma4_text@global_heads": {"attention_k_eq_v": True, "num_global_key_value_heads": 1},
        "gpt2@cross_attention": {"add_cross_attention": True},
        "gpt2@untied": {"tie_word_embeddings": False},
        "gpt_bigcode@multi_head": {"multi_query": False},
        "jetmoe@square": {"kv_channels": 16},  # experts as wide as the model, like the published ones
        "llama@tied": {"tie_word_embeddings": True},
        "mamba2@tied": {"tie_word_embeddings": True},
        "nemotron_h@latent": {"moe_latent_size": 12},
        "xlstm@fused": {"weight_mode": "fused"},
        "zamba2@adapters": {"use_shared_attention_adapter": True, "adapter_rank": 6},
    },
    "seq2seq": {"t5@gated": {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}},
    "masked_lm": {"deberta@relative": {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]}},
    "image_text_to_text": {
        "granite_docling@density": {"density_router_hidden_size": 14},
        "idefics@resampler": {"use_resampler": True, "additional_vocab_size": 5},
    },
    "ctc": {
        "wav2vec2@large": {"do_stable_layer_norm": True, "feat_extract_norm": "layer", "add_adapter": True},
        "wav2vec2@languages": {"do_stable_layer_norm": True, "adapter_attn_dim": 6},
        "wav2vec2-bert@relative": {"position_embeddings_type": "relative", "add_adapter": True},
        "wav2vec2-conformer@rotary": {"position_embeddings_type": "rotary"},
    },
    "audio_classification": {"whisper@weighted": {"use_weighted_layer_sum": True}},
    "text_to_waveform": {"vits@speakers": {"num_speakers": 5, "speaker_embedding_size": 12}},
}
