"""Linear layers whose outputs are several things at once: which rows belong to which, by the layer's name and module.

An entry speaks for layers of some names inside modules of some classes, written as endings of class names, and gives
the sizes of the blocks from the module's attributes or the model's config. It holds only if the sizes add up to the
rows. Each was read in the forward passes of transformers' models of that kind.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from orthoopt.census import Candidate
from orthoopt.layouts import HEADS, KEY_VALUE_HEADS, Layout, blocks
from orthoopt.naming import FUSED_GATE_UP, names
from orthoopt.views import parse_view


class _Unknown(LookupError):
    """An attribute that the module and its config do not have."""


class _Sizes:
    """The whole numbers of a layer's module, its ancestors and their configs."""

    def __init__(self, candidate: Candidate, rows: int) -> None:
        self._candidate = candidate
        self.rows = rows

    def __call__(self, *names: str) -> int:
        value = self._candidate.attribute(*names)
        if value is None:
            raise _Unknown(names)
        return value

    @property
    def heads(self) -> int:
        return self(*HEADS)


@dataclass(frozen=True)
class Fused:
    """Which layers, and how their rows are cut."""

    layers: frozenset[str]
    """Names of the layers."""
    modules: tuple[str, ...]
    """Endings of the class names of the module around them; empty where names and sizes are evidence enough."""
    sizes: Callable[[_Sizes], Sequence[int]]
    """Rows of each block, in order; within a head where there are heads."""
    words: str
    heads: Callable[[_Sizes], int] | None = None
    """How many times the blocks repeat, head after head."""

    def layout(self, candidate: Candidate, rows: int) -> Layout | None:
        """The view and its words; None where the entry does not apply."""
        around = [type(module).__name__ for module in candidate.modules[1:2]]
        if candidate.last not in self.layers or (self.modules and not any(n.endswith(self.modules) for n in around)):
            return None
        said = _Sizes(candidate, rows)
        try:
            sizes = list(self.sizes(said))
            heads = self.heads(said) if self.heads is not None else None
        except (_Unknown, ZeroDivisionError):
            return None
        if min(sizes) < 1 or sum(sizes) * (heads or 1) != rows:
            return None
        view = blocks(sizes) if heads is None else f"heads({heads}) {blocks(sizes)} join"
        if any(min(shape[-2:]) < 2 for shape in parse_view(view).piece_shapes(candidate.shape)):
            return None
        return view, self.words


def _thirds(said: _Sizes) -> list[int]:
    return [said.rows // 3] * 3


def _halves(said: _Sizes) -> list[int]:
    return [said.rows // 2] * 2


def _key_value(said: _Sizes) -> list[int]:
    return [said(*KEY_VALUE_HEADS, *HEADS) * said("head_dim", "kv_channels", "dim_head")] * 2


def _delta_net(said: _Sizes, key: int, value: int) -> list[int]:
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
        _halves,
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
    Fused(names("in_proj"), ("ShortConv",), _thirds, "B, C, x fused in its rows"),
    Fused(names("linear_start"), ("LightConv1d",), _halves, "value and gate fused in its rows"),
    # xLSTM (arXiv 2405.04517) with its layers fused.
    Fused(
        names("qkv_opreact"),
        ("xLSTMLayer",),
        lambda said: [said("qk_dim"), said("qk_dim"), said("v_dim"), said("v_dim")],
        "q, k, v, output gate fused in its rows",
    ),
    Fused(names("ifgate_preact"), ("xLSTMLayer",), _halves, "input and forget gates fused in its rows"),
    Fused(names("proj_up_gate_z"), ("xLSTMFeedForward",), _halves, "gate and up fused in its rows"),
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
    Fused(names("gate"), ("DFineGate", "Deimv2Gate"), _halves, "two gates fused in its rows"),
    Fused(names("dense"), ("GlobalPointer",), _halves, "queries and keys fused in its rows"),
    # Gated layers that keep the name of a plain one.
    Fused(
        names("fc1"),
        ("MoshiGatingMLP", "KyutaiSpeechToTextGatingMLP", "MoonshineDecoderMLP", "MoonshineStreamingDecoderMLP"),
        _halves,
        "gate and up fused in its rows",
    ),
)


# Zamba 2 adapts one shared layer differently at each place: lists of Sequential(Linear, Linear).
_ADAPTED = frozenset(f"{name}_adapter_list" for name in FUSED_GATE_UP)


def fused_outputs(candidate: Candidate, rows: int) -> Layout | None:
    """View and words for a layer that one of the entries knows; None for every other."""
    if candidate.last == "1" and any(part in _ADAPTED for part in candidate.path) and rows % 2 == 0:
        return blocks([rows // 2] * 2), "the second half of an adapter, added to gate and up fused in its rows"
    return next((layout for entry in FUSED if (layout := entry.layout(candidate, rows)) is not None), None)
