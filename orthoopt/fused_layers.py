"""Linear layers whose outputs are several things at once: which rows belong to which; see ``fused_entry``."""

from __future__ import annotations

from orthoopt.fused_entry import Fused, Sizes, halves, thirds
from orthoopt.layouts import HEADS, KEY_VALUE_HEADS
from orthoopt.naming import names


def _key_value(said: Sizes) -> list[int]:
    return [said(*KEY_VALUE_HEADS, *HEADS) * said("head_dim", "kv_channels", "dim_head")] * 2


def _delta_net(said: Sizes, key: int, value: int) -> list[int]:
    """The share of one key head: ``key`` rows twice, and its value heads' ``value`` rows twice."""
    share = said("num_v_heads") // said("num_k_heads") * value
    return [*([key] * 2 if key else []), share, share]


FUSED: tuple[Fused, ...] = (
    # Latent attention (DeepSeek-V2, arXiv 2405.04434): a latent for keys and values beside a rotary key.
    Fused(
        names("kv_a_proj_with_mqa"),
        (),
        lambda said: [said("kv_lora_rank"), said("qk_rope_head_dim")],
        "latent and rotary key fused in its rows",
    ),
    Fused(
        names("kv_b_proj"),
        (),
        lambda said: [said("qk_nope_head_dim"), said("v_head_dim")],
        "key and value fused head after head, joined",
        heads=lambda said: said.heads,
    ),
    Fused(
        names("q_gate_proj"),
        (),
        lambda said: [said("qk_head_dim"), said("v_head_dim")],
        "query and gate fused head after head, joined",
        heads=lambda said: said.heads,
    ),
    # Gated delta nets (arXiv 2412.06464).
    Fused(
        names("in_proj_qkvz"),
        ("GatedDeltaNet",),
        lambda said: _delta_net(said, said("head_k_dim"), said("head_v_dim")),
        "q, k, v, z fused in groups of heads, joined",
        heads=lambda said: said("num_k_heads"),
    ),
    Fused(
        names("in_proj_ba"),
        ("GatedDeltaNet",),
        lambda said: _delta_net(said, 0, 1),
        "b, a fused in groups of heads, joined",
        heads=lambda said: said("num_k_heads"),
    ),
    Fused(
        names("in_proj_qkv"),
        ("GatedDeltaNet",),
        lambda said: [said("key_dim"), said("key_dim"), said("value_dim")],
        "q, k, v fused in its rows",
    ),
    # Attention whose output is gated: the gate is made beside the query (Qwen3-Next and its line).
    Fused(
        names("q_proj"),
        ("Qwen3NextAttention", "Qwen3_5Attention", "Qwen3_5MoeAttention", "Qwen4ExpTextAttention"),
        lambda said: [said("head_dim")] * 2,
        "query and gate fused head after head, joined",
        heads=lambda said: said.heads,
    ),
    Fused(
        names("kv_proj to_kv"), ("JetMoeAttention", "ConformerAttention"), _key_value, "key and value fused in its rows"
    ),
    Fused(
        names("index_qk_proj"),
        (),
        lambda said: [
            said("index_n_heads") * said("index_head_dim"),
            said("index_kv_heads") * said("index_head_dim"),
        ],
        "q, k fused in its rows",
    ),
    # A chunk's keys go to the window after it and to its own.
    Fused(
        names("kv_proj gate_proj"),
        ("V4CSACompressor", "V4Indexer"),
        halves,
        "of the next window and of this one, fused in its rows",
    ),
    # CodeGen was trained on four machines, each with its part of query, value and key.
    Fused(
        names("qkv_proj"),
        ("CodeGenAttention",),
        lambda said: [said.rows // 12] * 3,
        "q, v, k fused in four parts, joined",
        heads=lambda said: 4,
    ),
    Fused(
        names("in_proj"),
        ("DisentangledSelfAttention",),
        lambda said: [said.rows // (3 * said.heads)] * 3,
        "q, k, v fused head after head, joined",
        heads=lambda said: said.heads,
    ),
    # Mamba (arXiv 2312.00752) and Mamba-2 (arXiv 2405.21060).
    Fused(
        names("x_proj"),
        ("MambaMixer",),
        lambda said: [said("time_step_rank", "dt_rank"), said("ssm_state_size"), said("ssm_state_size")],
        "dt, B, C fused in its rows",
    ),
    Fused(names("in_proj"), ("ShortConv",), thirds, "B, C, x fused in its rows"),
    Fused(names("linear_start"), ("LightConv1d",), halves, "value and gate fused in its rows"),
    # xLSTM (arXiv 2405.04517) with its layers fused.
    Fused(
        names("qkv_opreact"),
        ("xLSTMLayer",),
        lambda said: [said("qk_dim"), said("qk_dim"), said("v_dim"), said("v_dim")],
        "q, k, v, output gate fused in its rows",
    ),
    Fused(names("ifgate_preact"), ("xLSTMLayer",), halves, "input and forget gates fused in its rows"),
    Fused(names("proj_up_gate_z"), ("xLSTMFeedForward",), halves, "gate and up fused in its rows"),
    # LeViT, FocalNet and gates of detectors.
    Fused(
        names("queries_keys_values"),
        ("LevitAttention",),
        lambda said: [said("key_dim"), said("key_dim"), said("attention_ratio") * said("key_dim")],
        "q, k, v fused head after head, joined",
        heads=lambda said: said.heads,
    ),
    Fused(
        names("keys_values"),
        ("LevitAttentionSubsample",),
        lambda said: [said("key_dim"), said("attention_ratio") * said("key_dim")],
        "k, v fused head after head, joined",
        heads=lambda said: said.heads,
    ),
    Fused(
        names("projection_in"),
        ("FocalNetModulation",),
        lambda said: [said("dim"), said("dim"), said("focal_level") + 1],
        "query, context and gates fused in its rows",
    ),
    Fused(names("pos_trans"), ("DeformableDetrModel",), halves, "queries and targets fused in its rows"),
    Fused(names("gate"), ("DFineGate", "Deimv2Gate"), halves, "two gates fused in its rows"),
    Fused(names("dense"), ("GlobalPointer",), halves, "queries and keys fused in its rows"),
    # Convolution modules of speech encoders, in Linear layers.
    Fused(names("pointwise_lin1"), ("ConvolutionModule",), halves, "value and gate fused in its rows"),
    Fused(names("gru_rel_pos_linear"), (), halves, "two gates fused in its rows"),
    Fused(
        names("linear_1"),
        ("AyaVisionMultiModalProjector", "Cohere2VisionMultiModalProjector"),
        halves,
        "value and gate fused in its rows",
    ),
    # Gated layers that keep the name of a plain one.
    Fused(
        names("fc1"),
        ("MoshiGatingMLP", "KyutaiSpeechToTextGatingMLP", "MoonshineDecoderMLP", "MoonshineStreamingDecoderMLP"),
        halves,
        "gate and up fused in its rows",
    ),
)
