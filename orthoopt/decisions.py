"""The ordered table of decisions behind ``roles``: each looks at one parameter, the first that speaks wins.

A decision takes a candidate with its evidence and returns a verdict or None. Reasons name the evidence
and never the number of a layer, so that repeated layers have equal ones.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from orthoopt import naming
from orthoopt.adapters import adapter
from orthoopt.census import Candidate
from orthoopt.fused_projections import gated, head_groups, key_value, listed_blocks
from orthoopt.layers import Verdict, attention_layer, owner_words
from orthoopt.linear_maps import adaptive_softmax, bilinear, conv1d, convolution, dense, expert, fused_attention
from orthoopt.modulation import denoiser_output, modulation
from orthoopt.parametrizations import parametrized
from orthoopt.raw import raw
from orthoopt.recurrent import recurrent
from orthoopt.state_spaces import selective_state_space


def _own_name(candidate: Candidate) -> str:
    """The owner's name and the parameter's, without numbers of layers."""
    return f"{candidate.label}.{candidate.leaf}" if candidate.label else candidate.leaf


def _matrix_or_vector(candidate: Candidate) -> str:
    return "matrix" if candidate.param.ndim >= 2 else "vector"


def bias(candidate: Candidate) -> Verdict | None:
    """Biases, also the 2-D ones of experts."""
    if not naming.is_bias(candidate.leaf):
        return None
    stacked = candidate.param.ndim == 2 and (candidate.owner_is("Expert") or naming.expert_component(candidate.path))
    per_expert = ", one row per expert" if stacked else ""
    return Verdict("vector", "vector", f"{owner_words(candidate)} bias{per_expert}")


def norm(candidate: Candidate) -> Verdict | None:
    """Gains of norms and of features, also those with one row a head."""
    if candidate.owner is not None and naming.is_norm(type(candidate.owner).__name__):
        return Verdict("vector", "vector", f"gain of {owner_words(candidate)}")
    if candidate.leaf != "weight" and naming.is_gain(candidate.leaf) and candidate.param.ndim >= 2:
        return Verdict("vector", "vector", f"{candidate.leaf} multiplies features one by one")
    return None


def position(candidate: Candidate) -> Verdict | None:
    """Tables of positions and learned tokens: their rows are not the entries of a vocabulary."""
    table = candidate.leaf == "weight" and (_is_embedding(candidate) or not candidate.modules)
    around = naming.words(candidate.path[-2]) if len(candidate.path) > 1 else set()
    places = len(candidate.modules) > 1 and type(candidate.modules[1]).__name__ == "AbsolutePositionalEmbedding"
    # ProphetNet and LayoutLM keep them in Linear layers: one side of the weight is distances.
    said = naming.words(candidate.last)
    table = table or (candidate.leaf == "weight" and bool(said & {"rel", "relative"} and said & {"bias", "embeddings"}))
    if _is_embedding(candidate) and naming.is_token_table(candidate.last):
        return Verdict("vector", "vector", f"{owner_words(candidate)} {candidate.last} holds learned tokens")
    if table and (
        naming.is_position(candidate.last) or places or around & {"position", "positions", "positional", "relative"}
    ):
        return Verdict("vector", "vector", f"{owner_words(candidate)} {candidate.last} is a position table")
    if candidate.leaf == "weight":
        return None
    if (
        naming.is_position(candidate.leaf)
        or candidate.owner_is("PositionEmbedding", "PositionalEmbedding")
        or (candidate.leaf.isdigit() and any(map(naming.is_position, candidate.path)))
    ):
        return Verdict("vector", "vector", f"{_own_name(candidate)} is a position table")
    if naming.is_token(candidate.leaf):
        return Verdict("vector", "vector", f"{candidate.leaf} is a learned token, put beside the inputs")
    return None


def state_space(candidate: Candidate) -> Verdict | None:
    """Decay rates and gains of recurrences, 2-D in Mamba-1, are used entry by entry."""
    if not naming.is_state_space(candidate.leaf):
        return None
    if candidate.leaf in ("D", "Ds") and not (candidate.within("A_log") or candidate.within("A_logs")):
        return None  # one letter is no evidence
    return Verdict("vector", "vector", f"{candidate.leaf} of a state space layer is used entry by entry")


def broadcast(candidate: Candidate) -> Verdict | None:
    """Raw parameters of shape (1, n, d): the same learned tokens or places for every sample of a batch."""
    raw_parameter = candidate.owner is not None and candidate.leaf != "weight" and candidate.param.ndim in (3, 4)
    if not raw_parameter or candidate.shape[0] != 1 or candidate.owner_is("Expert"):
        return None
    if isinstance(candidate.owner, nn.modules.conv._ConvNd | nn.Bilinear):
        return None
    reason = f"{owner_words(candidate)} {_own_name(candidate)} is one sample, the same for all of a batch"
    return Verdict("vector", "vector", reason)


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
    whose = f"{owner_words(candidate)} " if candidate.owner is not None else ""
    return Verdict("vector", "vector", f"{whose}{_own_name(candidate)} has fewer than two dimensions above 1")


def _is_embedding(candidate: Candidate) -> bool:
    if isinstance(candidate.owner, nn.Embedding | nn.EmbeddingBag):
        return True
    return candidate.owner_is("Embedding") and candidate.leaf == "weight" and candidate.param.ndim == 2


def _is_named_embedding(candidate: Candidate) -> bool:
    """By names alone: an embedding, or one of a list of them."""
    listed = candidate.last.isdigit() and len(candidate.path) > 1
    return naming.is_embedding(candidate.path[-2] if listed else candidate.last)


def embedding(candidate: Candidate) -> Verdict | None:
    """Lookup tables by their module; tied to the head when they are the same tensor."""
    holders = [candidate, *candidate.aliases]
    tables = [holder for holder in holders if _is_embedding(holder)]
    if not candidate.modules:
        tables = [h for h in holders if h.leaf == "weight" and h.param.ndim == 2 and _is_named_embedding(h)]
    if not tables:
        return None
    table = tables[0]
    accessed = id(candidate.param) in candidate.census.input_ids
    said = f"{owner_words(table)} {'returned by get_input_embeddings()' if accessed else table.label}".rstrip()
    if len(tables) < len(holders):
        other = next(h for h in holders if h is not candidate and (h not in tables or candidate not in tables))
        return Verdict("tied_embedding", "matrix", f"{said}; {other.name} is the same tensor")
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
    if reason is not None:
        view = "matrix" if candidate.param.ndim == 2 else "flatten"
        return Verdict("lm_head", view, f"{owner_words(candidate)} {reason}")
    reason = candidate.census.unsure.get(id(candidate.param))
    return None if reason is None else Verdict("unknown", "matrix", f"{owner_words(candidate)} {reason}")


def router(candidate: Candidate) -> Verdict | None:
    """Layers whose outputs choose experts."""
    if candidate.param.ndim != 2:
        return None
    around = [type(module).__name__ for module in candidate.modules[1:3]]
    if candidate.owner_is("Router", "TopKGate") or any(kind.endswith("Router") for kind in around):
        return Verdict("router", "matrix", f"{owner_words(candidate)}: one row for each expert")
    inside = [part for part in candidate.path if part in naming.ROUTERS]
    if inside == ["gate"] and candidate.last == "gate" and candidate.shape[0] >= candidate.shape[1]:
        return None  # a gate of features: there are fewer experts than features
    if attention_layer(candidate) is not None and "router" not in inside:
        return None
    is_mlp_gate = any(candidate.beside(up) == candidate.shape for up in ("up", "up_proj", "w_up", "value"))
    if inside and not (inside == ["gate"] and is_mlp_gate):
        return Verdict("router", "matrix", f"{owner_words(candidate)} {inside[-1]}: one row for each expert")
    gates = "gate" in naming.words(candidate.last) and candidate.last not in naming.MLP_IN and not is_mlp_gate
    if gates and min(candidate.shape) <= 8 and candidate.last not in naming.PAIRS_IN:
        return Verdict("router", "matrix", f"{owner_words(candidate)} {candidate.last}: a gate with few outputs")
    return None


def shape_alone(candidate: Candidate) -> Verdict | None:
    """What is left for parameters without a module: the shape."""
    if candidate.owner is not None:
        return None
    shape, ndim = candidate.shape, candidate.param.ndim
    kernel = ndim in (4, 5) or (ndim == 3 and any("conv" in word for word in naming.words(candidate.last)))
    if kernel:
        if shape[1] == 1:
            return Verdict("vector", "vector", "by shape: a kernel over one channel, depthwise as far as can be seen")
        return Verdict("conv", "flatten", f"by shape: {ndim} dimensions are a convolution kernel")
    if ndim != 2:
        return Verdict(
            "unknown",
            _matrix_or_vector(candidate),
            f"{ndim} dimensions: a stack of experts or a kernel, the shape cannot tell",
        )
    if naming.may_be_embedding(candidate.last) and candidate.name is not None:
        return Verdict("unknown", "matrix", f"by name {candidate.last} may be a table or a layer")
    long, short = max(shape), min(shape)
    if long >= 2048 and long >= 16 * short:
        return Verdict("unknown", "matrix", f"by shape: {long} against {short} looks like an embedding or a head")
    said = "by shape: a matrix" if candidate.name is None else "by shape: a matrix whose name says nothing known"
    return Verdict("hidden", "matrix", said)


def nothing_known(candidate: Candidate) -> Verdict | None:
    """The last resort, never a guess."""
    what = f"{candidate.leaf} of {owner_words(candidate)}"
    reason = f"{what}: neither a known layer nor a known name; elementwise until an override says more"
    return Verdict("unknown", _matrix_or_vector(candidate), reason)


DECISIONS: tuple[Callable[[Candidate], Verdict | None], ...] = (
    parametrized,
    adapter,
    bias,
    norm,
    position,
    raw,
    state_space,
    thin,
    broadcast,
    embedding,
    adaptive_softmax,
    modulation,
    denoiser_output,
    head,
    router,
    expert,
    convolution,
    conv1d,
    fused_attention,
    recurrent,
    bilinear,
    selective_state_space,
    listed_blocks,
    gated,
    head_groups,
    key_value,
    dense,
    shape_alone,
    nothing_known,
)
