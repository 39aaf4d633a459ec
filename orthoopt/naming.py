"""What the names of parameters say: cleaned paths, and the words that model codebases use for their layers.

Names are the second witness, after the structure of the model. They are compared by whole path components,
never by substrings: ``head_proj`` is not a head, and a ``lora_A`` below ``gate_proj`` is not a gate.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

WRAPPERS = frozenset(
    {"_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "base_layer", "original_module"}
)
_SAVED = re.compile(r"(^|\.)modules_to_save\.\w+(?=\.)")  # peft's copies of layers, one for each adapter
_PARAMETRIZED = re.compile(r"parametrizations\.(\w+)\.original\d*$")
_EMBEDDING = re.compile(
    r"((tok|token|tokens|word|char|text|input|vocab|byte)_?)?(embed|embeds|embedding|embeddings|emb)"
)
_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")


def _list(text: str) -> list[str]:
    return text.split()


def names(text: str) -> frozenset[str]:
    """A set of names out of one string."""
    return frozenset(_list(text))


EMBEDDINGS = names("wte embed_tokens embed_in tok_embeddings token_embedding_table shared")
HEADS = names("lm_head lm_heads head dist_head head_dist classifier score embed_out output_layer logits qa_outputs")
ROUTERS = names("gate router router_gate shared_expert_gate gating gate_network")
_SPECIAL = names("bos eos cls class mask dist distillation reg register query latent memory prompt padding")
STATE_SPACE = names("A_log A_logs A_b_log D Ds dt_bias time_decay time_first time_faaaa")

ATTENTION = names(
    "q_proj k_proj v_proj o_proj to_q to_k to_v wq wk wv q_attn query key value "
    "q_a_proj q_b_proj kv_a_proj_with_mqa kv_b_proj kv_a_proj kv_proj"
)
FUSED_QKV = names("att_proj qkv_proj qkv to_qkv c_attn Wqkv wqkv query_key_value in_proj_weight")
FUSED_GATE_UP = names("gate_up_proj gate_up Wi input_linear w12 w13 weights_in")
MLP_IN = (FUSED_GATE_UP - {"input_linear"}) | names(
    "gate_proj up_proj w_gate w_up dense_h_to_4h c_fc wi wi_0 wi_1 fc_in proj_mlp"
)
MLP_OUT = names("down_proj w_down dense_4h_to_h weights_out w_out fc_out")
# Names that may stand for anything else: they need an enclosing mlp, or their other half beside them, of the
# transposed shape. In pairs of the way in and the way out.
_PAIRS = _list(
    "fc1/fc2 linear1/linear2 lin1/lin2 w1/w2 w3/w2 fc_1/fc_2 linear_1/linear_2 w_1/w_2 w_0/w_2 dense1/dense2 "
    "layer_1/layer_2 ffw_layer_1/ffw_layer_2 up/down gate/down gate_up/down proj_up/proj_down proj_up_gate/proj_down "
    "intermediate/output intermediate_dense/output_dense input_linear/output_linear ffn/ffn_output "
    "key/value c_fc/c_proj wi/wo Wi/Wo pwconv1/pwconv2 linear_up/linear_down linear_in/linear_out linear_fc1/linear_fc2"
)
PAIRS_IN = {way_in: way_out for way_in, _, way_out in (pair.partition("/") for pair in _PAIRS)}
PAIRS_OUT = {way_out: way_in for way_in, way_out in reversed(PAIRS_IN.items())}


def clean_name(name: str) -> str:
    """The name without what torch.compile, DDP, FSDP, checkpointing, PEFT and parametrizations add."""
    name = _SAVED.sub("", _PARAMETRIZED.sub(r"\1", name))
    return ".".join(part for part in name.split(".") if part and part not in WRAPPERS)


def original_leaf(leaf: str, beside: Callable[[str], bool]) -> str:
    """The tensor that a parameter stands for where torch's older functions replaced it, else the name as it is.

    ``weight_v`` is weight norm's where there is a ``weight_g`` beside it; ``weight_orig`` is spectral norm's, or a
    pruned weight. ``beside`` tells whether the owner has another parameter of a name.
    """
    stem, _, suffix = leaf.rpartition("_")
    return stem if stem and (suffix == "orig" or (suffix == "v" and beside(f"{stem}_g"))) else leaf


def words(component: str) -> set[str]:
    """The lower-case words of a path component: ``EncDecAttention`` -> enc, dec, attention."""
    return set(_CAMEL.sub("_", component).lower().split("_"))


def is_position(component: str) -> bool:
    """Whether a table of this name holds places or distances, not the entries of a vocabulary."""
    said = words(component)
    embeds = said & {"embed", "embedding", "embeddings", "embedder"}
    # levels of a pyramid are added to positions
    placed = embeds and said & {"level", "row", "column", "col", "distance"}
    return bool(placed or said & {"wpe", "pos", "position", "positions", "positional", "rel", "relative", "rpb"})


def is_token(leaf: str) -> bool:
    """Whether a raw parameter of this name is a learned token that is put beside the inputs."""
    said = words(leaf)
    beside = said & {"token", "tokens", "embedding", "embeddings", "queries"}
    return leaf in ("latent", "latents") or bool(said & _SPECIAL and beside) or {"latent", "query"} <= said


def is_token_table(component: str) -> bool:
    """Whether an embedding of this name holds learned tokens, used whole and not looked up: ``mask_tokens``."""
    said = words(component)
    queries = said & {"query", "queries", "refpoint", "reference", "ctx"}
    return bool(queries) or bool(said & {"token", "tokens"} and said & (_SPECIAL - {"class"}))


def is_no_vocabulary(component: str) -> bool:
    """Whether a table of this name holds places, learned tokens, or kinds of tokens, and not a vocabulary."""
    kinds = words(component) & {"type", "types", "segment", "segments"}
    return is_position(component) or is_token_table(component) or bool(kinds)


def is_classifier(component: str) -> bool:
    """Whether a component of this name leads to logits, without doubt."""
    said = words(component)
    return component.endswith(("lm_head", "lm_heads")) or bool(said & {"classifier", "logits"} and "pre" not in said)


def is_head(component: str) -> bool:
    """Whether a component of this name leads to logits."""
    return component in HEADS or is_classifier(component)


def is_embedding(component: str) -> bool:
    """Whether a table of this name is an embedding of a vocabulary."""
    named = re.search(r"(^|_)embeddings(_\d+)?$", component) or {"embed", "tokens"} <= words(component)
    return component in EMBEDDINGS or bool(named) or _EMBEDDING.fullmatch(component) is not None


def may_be_embedding(component: str) -> bool:
    """Whether a matrix of this name may be a table as well as a layer that embeds: ``shape_embed``."""
    return bool(words(component) & {"embed", "embedding", "emb"})


def is_gain(leaf: str) -> bool:
    """Whether a raw parameter of this name multiplies features one by one."""
    return bool(words(leaf) & {"scale", "gain", "gamma"})


def is_lora(path: Sequence[str]) -> bool:
    """Whether the path runs through a low-rank adapter."""
    return any(part.startswith(("lora_A", "lora_B", "lora_embedding_")) for part in path)


def is_bias(leaf: str) -> bool:
    """Whether a parameter of this name is a bias, of any number of dimensions."""
    return leaf == "bias" or leaf.endswith(("_bias", "_biases")) or leaf.startswith("bias_")


def is_norm(kind: str) -> bool:
    """Whether a class of this name is a norm: ``RMSNorm``, ``BatchNorm2d``, ``RMSNormGated``; not ``NormedLinear``."""
    return re.search(r"Norm(\d\w?|Gated)?$", kind) is not None


def is_state_space(leaf: str) -> bool:
    """Whether a raw parameter of this name holds decay rates or gains of a recurrence, entry by entry."""
    return leaf in STATE_SPACE or leaf.startswith(("time_mix_", "time_maa_"))


def expert_component(path: Sequence[str]) -> str | None:
    """The component that holds experts (shared experts are dense, they do not count)."""
    for part in reversed(path):
        said = words(part)
        if said & {"expert", "experts"}:
            return None if "shared" in said or "gate" in said else part
    return None


def block(path: Sequence[str]) -> tuple[str, str] | None:
    """The innermost component that names its block: ("attention", "mlp" or "other", component)."""
    for part in reversed(path):
        kind = block_kind(part)
        if kind is not None:
            return kind, part
    return None


def block_kind(component: str) -> str | None:
    """What a component or the name of a class names: an attention, an mlp or something else; a layer is none of them.

    Delta nets and gated residuals call themselves attention by name, ``linear_attn``, but have other heads or none.
    """
    said = {word.rstrip("0123456789") for word in words(component)}
    if said & {"bottleneck", "merger"} and "mlp" not in said:
        return "other"
    if said & {"block", "layer", "layers"}:
        return None
    if {"delta", "net"} <= said or {"hyper", "connection"} <= said or {"gated", "residual"} <= said:
        return "other"
    if {"global", "pointer"} <= said:  # queries and keys without values
        return "attention"
    if said & {"attn", "attention", "mha", "crossattention", "selfattention"}:
        return "attention"
    is_mlp = said & {"mlp", "ffn", "ff", "feedforward"} or {"feed", "forward"} <= said
    return "mlp" if is_mlp or component in ("DenseReluDense", "moe", "block_sparse_moe") else None


def in_a_stack(path: Sequence[str]) -> bool:
    """Whether the path runs through a numbered container and goes on: one layer of many."""
    return any(part.isdigit() for part in path[:-1])
