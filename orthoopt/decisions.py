"""The ordered table of decisions behind ``roles``: each looks at one parameter, the first that speaks wins.

A decision takes a candidate with its evidence and returns a verdict or None. Reasons name the
evidence and never the number of a layer, so that repeated layers have equal ones.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import nn

from orthoopt import layouts, naming
from orthoopt.census import Candidate
from orthoopt.heads import is_dense
from orthoopt.layers import attention_layer, mlp_side, mlp_words


class Verdict(NamedTuple):
    """What one decision says."""

    role: str
    view: str
    reason: str


def owner_words(candidate: Candidate) -> str:
    """The owner's class for people, ``nn.Linear`` or ``GptOssTopKRouter``; with its name when it has one."""
    if candidate.owner is None:
        return "by name, owner unknown:"
    kind = type(candidate.owner)
    if _is_conv1d(candidate):
        return "transformers Conv1D"
    if not kind.__module__.startswith("torch.nn."):
        return kind.__name__
    public = next((base for base in kind.__mro__ if getattr(nn, base.__name__, None) is base), kind)
    return f"nn.{public.__name__}"


def _own_name(candidate: Candidate) -> str:
    """The owner's name and the parameter's, without numbers of layers."""
    return f"{candidate.label}.{candidate.leaf}" if candidate.label else candidate.leaf


def _matrix_or_vector(candidate: Candidate) -> str:
    return "matrix" if candidate.param.ndim >= 2 else "vector"


def adapter(candidate: Candidate) -> Verdict | None:
    """LoRA first: a rank-8 adapter of a gate_proj looks like a router."""
    if candidate.param.ndim != 2 or not naming.is_lora((*candidate.path, candidate.leaf)):
        return None
    return Verdict("hidden", "matrix", "one half of a LoRA adapter, whatever layer it adapts")


def bias(candidate: Candidate) -> Verdict | None:
    """Biases, also the 2-D ones of experts."""
    if not naming.is_bias(candidate.leaf):
        return None
    per_expert = ", one row per expert" if candidate.param.ndim == 2 else ""
    return Verdict("vector", "vector", f"{owner_words(candidate)} bias{per_expert}")


def position(candidate: Candidate) -> Verdict | None:
    """Tables of positions and learned tokens: their rows are not the entries of a vocabulary."""
    table = candidate.leaf == "weight" and (_is_embedding(candidate) or not candidate.modules)
    if table and naming.is_position(candidate.last):
        return Verdict("vector", "vector", f"{owner_words(candidate)} {candidate.last} is a position table")
    if candidate.leaf == "weight":
        return None
    if naming.is_position(candidate.leaf):
        return Verdict("vector", "vector", f"{candidate.leaf} is a position table")
    if naming.is_token(candidate.leaf):
        return Verdict("vector", "vector", f"{candidate.leaf} is a learned token, put beside the inputs")
    return None


def state_space(candidate: Candidate) -> Verdict | None:
    """Decay rates and gains of recurrences, 2-D in Mamba-1, are used entry by entry."""
    if not naming.is_state_space(candidate.leaf):
        return None
    return Verdict("vector", "vector", f"{candidate.leaf} of a state space layer is used entry by entry")


def thin(candidate: Candidate) -> Verdict | None:
    """Fewer than two dimensions above 1: norms, scalars, sinks, a gate with one output."""
    if sum(size > 1 for size in candidate.shape) >= 2:
        return None
    if candidate.leaf == "sinks":
        return Verdict("vector", "vector", "attention sinks, one number per head")
    if candidate.name is None:
        return Verdict("vector", "vector", "by shape: fewer than two dimensions above 1")
    if candidate.param.ndim < 2 and candidate.leaf == "weight" and candidate.owner is not None:
        return Verdict("vector", "vector", f"gain of {owner_words(candidate)}")
    said = f"{owner_words(candidate)} {_own_name(candidate)}"
    return Verdict("vector", "vector", f"{said} has fewer than two dimensions above 1")


def _is_embedding(candidate: Candidate) -> bool:
    if isinstance(candidate.owner, nn.Embedding | nn.EmbeddingBag):
        return True
    return candidate.owner_is("Embedding") and candidate.leaf == "weight" and candidate.param.ndim == 2


def embedding(candidate: Candidate) -> Verdict | None:
    """Lookup tables by their module; tied to the head when they are the same tensor."""
    holders = [candidate, *candidate.aliases]
    tables = [holder for holder in holders if _is_embedding(holder)]
    if not candidate.modules:
        tables = [
            h for h in holders if h.leaf == "weight" and naming.is_embedding(h.last) and h.param.ndim == 2
        ]
    if not tables:
        return None
    table = tables[0]
    accessed = id(candidate.param) in candidate.census.input_ids
    said = f"{owner_words(table)} {'returned by get_input_embeddings()' if accessed else table.label}"
    others = [holder for holder in holders if holder not in tables]
    if others:
        return Verdict("tied_embedding", "matrix", f"{said}; {others[0].name} is the same tensor")
    if id(candidate.param) in candidate.census.output_ids:
        return Verdict("tied_embedding", "matrix", f"{said}; get_output_embeddings() returns the same tensor")
    if not candidate.modules and not candidate.census.heads:
        said += "; if a head is tied to it, names cannot show it"
    elif len(tables) > 1:
        said += f"; shared with {tables[1].name}"
    return Verdict("embedding", "matrix", said)


def head(candidate: Candidate) -> Verdict | None:
    """The output layer: found by ``heads.find_heads`` before any decision."""
    reason = candidate.census.heads.get(id(candidate.param))
    return None if reason is None else Verdict("lm_head", "matrix", f"{owner_words(candidate)} {reason}")


def router(candidate: Candidate) -> Verdict | None:
    """Layers whose outputs choose experts."""
    if candidate.param.ndim != 2:
        return None
    said = naming.block(candidate.path)
    if candidate.owner_is("Router", "TopKGate"):
        return Verdict("router", "matrix", f"{owner_words(candidate)}: one row for each expert")
    if said is not None and said[0] == "attention":
        return None
    inside = [part for part in candidate.path if part in naming.ROUTERS]
    is_mlp_gate = any(candidate.beside(up) == candidate.shape for up in ("up", "up_proj", "w_up", "value"))
    if inside and not (inside == ["gate"] and is_mlp_gate):
        return Verdict("router", "matrix", f"{owner_words(candidate)} {inside[-1]}: one row for each expert")
    gates = "gate" in naming.words(candidate.last) and candidate.last not in naming.MLP_IN and not is_mlp_gate
    if gates and min(candidate.shape) <= 8 and candidate.last not in naming.PAIRS_IN:
        return Verdict(
            "router", "matrix", f"{owner_words(candidate)} {candidate.last}: a gate with few outputs"
        )
    return None


def expert(candidate: Candidate) -> Verdict | None:
    """Experts: 3-D stacks, or one layer each below a component of that name."""
    stacked = candidate.param.ndim == 3
    component = naming.expert_component(candidate.path)
    flagged = isinstance(getattr(candidate.owner, "is_transposed", None), bool)
    if not (component or (stacked and (flagged or candidate.owner_is("Expert")))):
        return None
    side = mlp_side(candidate)
    name = candidate.leaf if candidate.leaf != "weight" else candidate.label
    if not stacked:
        if side is None or not is_dense(candidate):
            return None
        fused = layouts.fused_gate_up(candidate, candidate.shape[0]) if side == "in" else None
        view, words = fused or ("matrix", f"one expert of {component}")
        return Verdict(f"expert_{side}", view, f"{owner_words(candidate)} {name}: {words}")
    if side is None:
        return Verdict(
            "unknown", "matrix", f"a stack of experts, but {name} does not say whether it leads in or out"
        )
    layout = layouts.experts(candidate, is_in=side == "in")
    if layout is None:
        return Verdict(
            "unknown", "matrix", "a stack of experts, stored (in, out) or (out, in): the shapes fit both"
        )
    return Verdict(f"expert_{side}", layout[0], f"{owner_words(candidate)}: {layout[1]}")


def convolution(candidate: Candidate) -> Verdict | None:
    """Kernels: (out, in * k) matrices, one per group; depthwise ones mix no features."""
    owner = candidate.owner
    if not isinstance(owner, nn.modules.conv._ConvNd):
        return None
    shown = owner_words(candidate)
    if owner.groups == owner.in_channels and owner.groups > 1:
        return Verdict("vector", "vector", f"depthwise {shown}: mixes no channels, one filter each")
    first = candidate.param is candidate.census.first_kernel
    reason = f"{shown}, the first: reads {owner.in_channels} input channels" if first else shown
    groups = f" heads({owner.groups})" if owner.groups > 1 else ""
    if groups:
        reason += f", {owner.groups} groups, a matrix each"
    if owner.transposed:
        return Verdict("conv", f"flatten{groups} transpose", f"{reason}, stored (in, out, k...)")
    return Verdict("conv", f"flatten{groups}", reason)


def _is_conv1d(candidate: Candidate) -> bool:
    """Transformers' Conv1D is a Linear that stores (in, out); recognised without importing it."""
    if candidate.owner is not None:
        return type(candidate.owner).__name__ == "Conv1D" and hasattr(candidate.owner, "nf")
    return candidate.census.names_show_conv1d and candidate.last in ("c_attn", "q_attn", "c_proj", "c_fc")


def conv1d(candidate: Candidate) -> Verdict | None:
    """GPT-2's layers: transposed, q, k and v fused."""
    if not _is_conv1d(candidate) or candidate.param.ndim != 2:
        return None
    stored = f"{owner_words(candidate)} stores (in, out)"
    if candidate.owner is None:
        stored = f"{owner_words(candidate)} stored (in, out), as a c_attn of shape (d, 3 d) shows"
    cols, rows = candidate.shape
    if attention_layer(candidate) is not None:
        if candidate.last != "c_attn":
            return Verdict("attention", "transpose", stored)
        view, words = layouts.fused_qkv(candidate, rows, cols, axis="columns")
        return Verdict(
            "attention", "transpose" if view == "matrix" else f"transpose {view}", f"{stored}; {words}"
        )
    side = mlp_side(candidate)
    return Verdict("hidden" if side is None else f"mlp_{side}", "transpose", stored)


def fused_attention(candidate: Candidate) -> Verdict | None:
    """nn.MultiheadAttention keeps q, k, v as raw parameters: in one when they have one width, else apart."""
    names = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")
    if candidate.leaf not in names or candidate.param.ndim != 2:
        return None
    if candidate.leaf != "in_proj_weight":
        return Verdict("attention", "matrix", f"{owner_words(candidate)} {candidate.leaf}")
    rows, cols = candidate.shape
    if isinstance(candidate.owner, nn.MultiheadAttention) or rows == 3 * cols:
        return Verdict(
            "attention",
            layouts.blocks([rows // 3] * 3),
            f"{owner_words(candidate)} q, k, v fused in its rows",
        )
    return Verdict(
        "attention", "matrix", f"{owner_words(candidate)} q, k, v fused in unknown sizes, seen as one matrix"
    )


def recurrent(candidate: Candidate) -> Verdict | None:
    """torch's RNN, GRU and LSTM fuse their gates in the rows."""
    owner = candidate.owner
    if not isinstance(owner, nn.RNNBase | nn.RNNCellBase) or candidate.param.ndim != 2:
        return None
    gates = candidate.shape[0] // owner.hidden_size
    if gates > 1 and gates * owner.hidden_size == candidate.shape[0]:
        view = layouts.blocks([owner.hidden_size] * gates)
        return Verdict("hidden", view, f"{owner_words(candidate)} {gates} gates fused in its rows")
    return Verdict("hidden", "matrix", f"{owner_words(candidate)} recurrent weights")


def dense(candidate: Candidate) -> Verdict | None:
    """Linear layers, sorted by where they stand and what they are called."""
    if candidate.param.ndim != 2 or candidate.leaf != "weight" or not candidate.name:
        return None
    known = is_dense(candidate)
    shown = f"{owner_words(candidate)} {candidate.label}".rstrip()
    if candidate.owner is not None and not known:
        shown += ", a layer of unknown kind, by its name"
    rows, cols = candidate.shape
    place = attention_layer(candidate)
    if place is not None:
        if candidate.last in naming.FUSED_QKV or (candidate.last == "in_proj" and rows == 3 * cols):
            view, words = layouts.fused_qkv(candidate, rows, cols)
            return Verdict("attention", view, f"{shown}: {words}")
        if candidate.last.startswith("in_proj_"):
            return Verdict(
                "attention", "matrix", f"{shown}: fused in an order of its own, seen as one matrix"
            )
        return Verdict("attention", "matrix", f"{shown} {place}".rstrip())
    side = mlp_side(candidate)
    if side is not None:
        view, words = (layouts.fused_gate_up(candidate, rows) if side == "in" else None) or ("matrix", "")
        return Verdict(
            f"mlp_{side}", view, f"{shown}: {words}" if words else f"{shown}{mlp_words(candidate)}"
        )
    if candidate.owner is None or not known:
        return None
    view, words = layouts.state_space_input(candidate, rows) or ("matrix", "")
    return Verdict("hidden", view, f"{shown}: {words}" if words else f"{shown}, outside attention and mlp")


def shape_alone(candidate: Candidate) -> Verdict | None:
    """What is left for parameters without a module: the shape."""
    if candidate.owner is not None:
        return None
    shape, ndim = candidate.shape, candidate.param.ndim
    kernel = ndim in (4, 5) or (ndim == 3 and any("conv" in word for word in naming.words(candidate.last)))
    if kernel:
        if shape[1] == 1:
            return Verdict(
                "vector", "vector", "by shape: a kernel over one channel, depthwise as far as can be seen"
            )
        return Verdict("conv", "flatten", f"by shape: {ndim} dimensions are a convolution kernel")
    if ndim != 2:
        return Verdict(
            "unknown",
            _matrix_or_vector(candidate),
            f"{ndim} dimensions: a stack of experts or a kernel, the shape cannot tell",
        )
    long, short = max(shape), min(shape)
    if long >= 2048 and long >= 16 * short:
        return Verdict(
            "unknown", "matrix", f"by shape: {long} against {short} looks like an embedding or a head"
        )
    said = (
        "by shape: a matrix" if candidate.name is None else "by shape: a matrix whose name says nothing known"
    )
    return Verdict("hidden", "matrix", said)


def nothing_known(candidate: Candidate) -> Verdict | None:
    """The last resort, never a guess."""
    what = f"{candidate.leaf} of {owner_words(candidate)}"
    reason = f"{what}: neither a known layer nor a known name; elementwise until an override says more"
    return Verdict("unknown", _matrix_or_vector(candidate), reason)


DECISIONS: tuple[Callable[[Candidate], Verdict | None], ...] = (
    adapter,
    bias,
    position,
    state_space,
    thin,
    embedding,
    head,
    router,
    expert,
    convolution,
    conv1d,
    fused_attention,
    recurrent,
    dense,
    shape_alone,
    nothing_known,
)
