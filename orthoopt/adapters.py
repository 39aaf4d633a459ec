"""Adapters: few new parameters beside a frozen layer, of peft's kinds, by their layer's class or by their names.

They are decided first: a rank-8 adapter of a gate_proj looks like a router, and one of an attention is no attention.
The pair A (rank, in), B (out, rank) of LoRA and of what factors a weight like it are linear maps between feature
spaces, the rank being one: matrices. Other numbers that a method keeps are no maps, however they are shaped.
"""

from __future__ import annotations

from torch import nn

from orthoopt import naming
from orthoopt.census import Candidate
from orthoopt.layers import Verdict, owner_words

_FACTORS = (
    *("lora_A", "lora_B", "delora_A", "delora_B", "hira_A", "hira_B"),
    *("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"),
    *("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b"),
)
_LOOKED_UP = ("lora_embedding_A", "hira_embedding_A")
_AFTER_LOOKUP = ("lora_embedding_B", "hira_embedding_B")
_ROTATIONS = ("oft_R", "oft_embedding_R", "boft_R")
_VIRTUAL_TOKENS = ("PromptEmbedding", "PromptEncoder", "PrefixEncoder", "MultitaskPromptEmbedding", "CPTEmbedding")


def adapter(candidate: Candidate) -> Verdict | None:
    """The parameters that peft adds, except the vectors and kernels among them, which later decisions know."""
    if candidate.param.ndim < 2 or naming.is_bias(candidate.leaf):
        return None
    path = (*candidate.path, candidate.leaf)
    tokens = _virtual_tokens(candidate, path)
    if tokens is not None:
        return tokens
    if "trainable_tokens_delta" in path:
        tied = "; the head's too, the same tensor" if candidate.aliases else ""
        words = f"trainable_tokens_delta: the rows of an embedding that are trained{tied}"
        return Verdict("tied_embedding" if tied else "embedding", "matrix", words)
    layer = _tuner_layer(candidate)
    method = next((part for part in path if part in _LOOKED_UP + _AFTER_LOOKUP + _FACTORS + _ROTATIONS), None)
    if method in _LOOKED_UP and candidate.param.ndim == 2:
        words = f"{method}, the table of an embedding's adapter: looked up by token, stored (rank, vocabulary)"
        return Verdict("embedding", "transpose", words)
    if layer is None and method not in ("lora_A", "lora_B", *_AFTER_LOOKUP):
        return None  # other names need peft's class beside them
    if method in _ROTATIONS:
        return Verdict("vector", "vector", f"{method} holds the free entries of rotations, used entry by entry")
    if candidate.param.ndim != 2:
        return None if layer is None or isinstance(candidate.owner, nn.modules.conv._ConvNd) else _unknown(path, layer)
    if min(candidate.shape) < 2:
        return None
    if method in _FACTORS + _AFTER_LOOKUP:
        return _factor(candidate, method or "", layer)
    if isinstance(candidate.owner, nn.Linear):
        if any("router" in naming.words(part) for part in candidate.path[-2:]):
            return Verdict("router", "matrix", f"nn.Linear {candidate.path[-2]}: chooses among adapters")
        return Verdict("hidden", "matrix", f"nn.Linear of an adapter, peft's {type(layer).__name__}")
    return _unknown(path, layer)


def _factor(candidate: Candidate, method: str, layer: nn.Module | None) -> Verdict:
    is_lora = method.startswith("lora_")
    said = "one half of a LoRA adapter" if is_lora else f"{method}, a factor of an adapter"
    if method == "lora_B" and _adapts_a_head(candidate, layer):
        return Verdict("lm_head", "matrix", "lora_B of the output layer: its rows are those of the logits")
    experts = getattr(layer, "num_experts", 1)
    if is_lora and isinstance(experts, int) and experts > 1:  # peft's ParamWrapper: all experts in one Linear
        view = f"heads({experts})" if method == "lora_A" else f"transpose interleave({experts}) transpose"
        return Verdict("hidden", view, f"{said} of {experts} experts")
    return Verdict("hidden", "matrix", f"{said}, whatever layer it adapts")


def _adapts_a_head(candidate: Candidate, layer: nn.Module | None) -> bool:
    base = getattr(layer, "base_layer", None)
    ids = {id(param) for param in base.parameters()} if isinstance(base, nn.Module) else set()
    return bool(ids & (candidate.census.heads.keys() | candidate.census.output_ids))


def _unknown(path: tuple[str, ...], layer: nn.Module | None) -> Verdict:
    held = next((part for part in path if isinstance(getattr(layer, part, None), nn.Module)), path[-1])
    return Verdict(
        "unknown", "matrix", f"{held} of an adapter, peft's {type(layer).__name__}: no linear map known here"
    )


def _tuner_layer(candidate: Candidate) -> nn.Module | None:
    """peft's layer around the adapted one; what it adapts has it no longer among its ancestors."""
    for module in candidate.modules[1:] if not isinstance(candidate.owner, nn.ParameterDict) else candidate.modules:
        if any(base.__name__ == "BaseTunerLayer" for base in type(module).__mro__):
            return module
    return None


def _virtual_tokens(candidate: Candidate, path: tuple[str, ...]) -> Verdict | None:
    """Prompt, prefix and P-tuning: embeddings that nothing looks up, learned inputs beside the real ones."""
    holder = candidate.modules[1] if len(candidate.modules) > 1 else None
    named = "prompt_encoder" in path and candidate.last == "embedding"
    if isinstance(candidate.owner, nn.Embedding) and (type(holder).__name__ in _VIRTUAL_TOKENS or named):
        words = f"{owner_words(candidate)} of {type(holder).__name__}: virtual tokens, put beside the inputs"
        return Verdict("vector", "vector", words)
    if candidate.owner is None and named:
        return Verdict("vector", "vector", "embedding of a prompt_encoder: virtual tokens, put beside the inputs")
    if candidate.leaf in ("adaption_prompt", "trainable_embedding", "prefix_task_cols", "prefix_task_rows"):
        return Verdict("vector", "vector", f"{candidate.leaf}: virtual tokens, put beside the inputs")
    return None
