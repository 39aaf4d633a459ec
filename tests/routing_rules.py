"""The role and the view that every parameter of a transformers model should get: rules that know nothing of orthoopt.

They read the modules: who owns a tensor, what the enclosing classes are, which tensors are the same. What is fused,
transposed or raw stands in ``routing_table``, written from the forward passes. ``data/routing/README.md`` says the
rules in prose. What no rule speaks for raises: a gap is to be filled by reading, never by a guess.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import routing_table_classifiers  # noqa: F401 - it fills the table
import routing_table_mixers  # noqa: F401 - it fills the table
import routing_table_speech  # noqa: F401 - it fills the table
import routing_table_vision  # noqa: F401 - it fills the table
from routing_table import TABLE, Entry
from torch import Tensor, nn


class Expected(NamedTuple):
    """What one parameter should be."""

    name: str
    role: str
    view: str


class Holder(NamedTuple):
    """One place a tensor is held in: its owner, then the owner's ancestors up to the root, with their names."""

    modules: tuple[nn.Module, ...]
    names: tuple[str, ...]  # the parameter's own name, then its owner's, then its ancestors'

    @property
    def owner(self) -> nn.Module:
        return self.modules[0]

    @property
    def kind(self) -> str:
        return type(self.owner).__name__


VECTOR = ("vector", "vector")
STATE_SPACE = {"A_log", "A", "D", "dt_bias", "time_decay", "time_first"}
ROUTER = re.compile(r"Router(MLP)?$|TopKGating$|MoEV1Gate$")
ATTENTION = re.compile(r"(Attention|Attn|MLA)$", re.IGNORECASE)
MLP = re.compile(
    r"(MLP|FFN|FeedForward\w*|MLPBlock|Intermediate|\w*ActDense|(?<!Self)(?<!Cross)Output|Adapter|DenseGatedACT)$", re.I
)
LIST_OF_LAYERS = re.compile(r"(MLP|MLPPredictionHead|FeedForward)$")
LAYER = re.compile(r"(Layer|Block|Model|Encoder|Decoder|ForCausalLM|ForConditionalGeneration|LMHeadModel|Wrapper)$")
IN = {
    *(
        "gate_proj",
        "up_proj",
        "gate_up_proj",
        "fc1",
        "fc_in",
        "c_fc",
        "lin1",
        "linear1",
        "wi",
        "w1",
        "w3",
        "w_0",
        "w_1",
    ),
    *("Wi", "input_linear", "proj_up", "proj_up_gate", "dense_h_to_4h", "layer_1", "ffw_layer_1", "intermediate"),
    *("dense1", "linear_1", "wi_0", "wi_1", "linear_fc1", "linear_in", "intermediate_dense"),
}
OUT = {
    *(
        "down_proj",
        "fc2",
        "fc_out",
        "c_proj",
        "lin2",
        "linear2",
        "wo",
        "w2",
        "w_out",
        "Wo",
        "output_linear",
        "proj_down",
    ),
    *("dense_4h_to_h", "layer_2", "ffw_layer_2", "output", "dense2"),
    *("linear_2", "linear_fc2", "linear_out", "output_dense"),
}

WHOLE_LAYER = {"fc1": "mlp_in", "fc2": "mlp_out", "ffn": "mlp_in", "ffn_output": "mlp_out"}  # OPT's and Albert's


def expected_routing(model: nn.Module) -> list[Expected]:
    """Role and view of every trainable parameter, each tensor once under its first name, in the model's order."""
    holders: dict[int, list[Holder]] = {}
    for _, parameter, holder in _holders(model):
        holders.setdefault(id(parameter), []).append(holder)
    heads = _heads(model)
    return [
        Expected(name, *_two_sides(parameter, *_routing(name, parameter, holders[id(parameter)], heads)))
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    ]


def _holders(model: nn.Module) -> Iterator[tuple[str, Tensor, Holder]]:
    for name, parameter in model.named_parameters(remove_duplicate=False):
        *path, leaf = name.split(".")
        modules = [model]
        for part in path:
            modules.append(modules[-1].get_submodule(part))
        yield name, parameter, _unwrapped(Holder(tuple(reversed(modules)), (leaf, *reversed(path))))


def _unwrapped(holder: Holder) -> Holder:
    """Weight norm's direction, ``parametrizations.weight.original1``, is the layer's ``weight``."""
    if holder.names[2:3] == ("parametrizations",) and holder.names[0] == "original1":
        return Holder(holder.modules[2:], (holder.names[1], *holder.names[3:]))
    return holder


def _heads(model: nn.Module) -> set[int]:
    """The weights that make logits: of get_output_embeddings(), one or a list, and of vocabulary heads inside."""
    output = model.get_output_embeddings()
    layers = list(output) if isinstance(output, nn.ModuleList) else [output]
    layers += [module.lm_head for module in model.modules() if isinstance(getattr(module, "lm_head", None), nn.Linear)]
    # FSMT's accessor gives the decoder's input table even where it is not tied: a lookup makes no logits
    return {id(layer.weight) for layer in layers if layer is not None and not isinstance(layer, nn.Embedding)}


def _two_sides(parameter: Tensor, role: str, view: str) -> tuple[str, str]:
    """A matrix with a side below 2 has no directions to speak of: a vector, whatever it does."""
    thin = parameter.ndim < 2 or sum(size > 1 for size in parameter.shape) < 2 or min(parameter.shape[-2:]) < 2
    return VECTOR if thin and "flatten" not in view else (role, view)


def _routing(name: str, parameter: Tensor, holders: list[Holder], heads: set[int]) -> tuple[str, str]:
    first = holders[0]
    entry = _in_table(first)
    if entry is not None:
        (role, view), module = entry
        return role, _joined(view(module, tuple(parameter.shape)))
    leaf = first.names[0]
    if sum(size > 1 for size in parameter.shape) < 2 or leaf == "bias" or leaf.endswith(("_bias", "_biases")):
        return VECTOR
    if leaf in STATE_SPACE or leaf.startswith("time_mix_") or re.search(r"Norm(1P|Gated)?$", first.kind):
        return VECTOR
    tables = [holder for holder in holders if _is_table(holder)]
    if tables:
        if any(_is_position(holder) for holder in tables):
            return VECTOR
        tied = len(tables) < len(holders) or id(parameter) in heads
        return ("tied_embedding" if tied else "embedding"), "matrix"
    if id(parameter) in heads:
        return "lm_head", "matrix"
    if isinstance(first.owner, nn.modules.conv._ConvNd):
        return _convolution(first.owner)
    if parameter.ndim == 2 and leaf == "weight":
        role = _dense(first)
        if role is not None:
            return role, "transpose" if first.kind == "Conv1D" else "matrix"
    raise LookupError(f"no rule for {name} of {first.kind} {tuple(parameter.shape)}: read its forward pass")


def _joined(view: str) -> str:
    """What is cut inside each of several heads is one matrix again: the heads are of one kind."""
    return f"{view} join" if re.fullmatch(r"heads\(\d+\) split\([\d,]+\)", view) else view


def _in_table(holder: Holder) -> tuple[Entry, nn.Module] | None:
    """The entry of the innermost enclosing class that lists the parameter, and that module."""
    for depth, module in enumerate(holder.modules):
        path = ".".join(reversed(holder.names[: depth + 1]))
        path = re.sub(
            r"(?<![^.])\d+(?=\.(?:.*\.)?\d+(?:\.|$))", "#", path
        )  # in a list of lists, only the last number tells
        entries = TABLE.get(type(module).__name__, {})
        entry = entries.get(path) or entries.get(re.sub(r"(?<![^.])\d+(?![^.])|(?<=_l)\d+$", "#", path))
        if entry is not None:
            return entry, module
    return None


def _is_table(holder: Holder) -> bool:
    """Looked up by index: torch's embeddings and their subclasses."""
    table = isinstance(holder.owner, nn.Embedding | nn.EmbeddingBag) or holder.kind == "QuantEmbedding"
    return table and holder.names[0] == "weight"


def _is_position(holder: Holder) -> bool:
    """A lookup by place or distance: the class of the table or its name in the model says so."""
    said = f"{holder.kind} {holder.names[1]}".lower()
    return re.search(r"position|wpe|relative_attention_bias|rel_pos|rel_embed", said) is not None


def _convolution(layer: Any) -> tuple[str, str]:
    """Kernels as matrices (out, in * k); depthwise ones filter channel by channel and mix none."""
    if layer.groups > 1 and layer.groups == layer.in_channels:
        return VECTOR
    rows, *others = layer.weight.shape
    if min(rows // layer.groups, math.prod(others)) < 2:  # one filter has one direction
        return VECTOR
    groups = f" heads({layer.groups})" if layer.groups > 1 else ""
    return "conv", f"flatten{groups}{' transpose' if layer.transposed else ''}"


def _dense(holder: Holder) -> str | None:
    """The role of a layer that multiplies features by its weight, from the classes around it; None for others."""
    kinds = [type(module).__name__ for module in holder.modules]
    if any(ROUTER.search(kind) for kind in kinds):
        return "router"
    if not isinstance(holder.owner, nn.Linear) and holder.kind not in ("Conv1D", "QuantLinear"):
        return None
    own = holder.names[1]
    inner = kinds[1:]
    for depth, kind in enumerate(inner):
        if ATTENTION.search(kind):
            return "attention"
        if LIST_OF_LAYERS.search(kind) and "layers" in dict(holder.modules[depth + 1].named_children()):
            return _list_of_layers(holder.modules[depth + 1], holder.owner)
        if MLP.search(kind):
            around = holder.names[1 : depth + 2]
            side = _mlp(kind, next((name for name in around if name in IN | OUT), own))
            return f"expert_{side}" if any(kind.endswith("Experts") for kind in inner[depth + 1 :]) else f"mlp_{side}"
        if LAYER.search(kind):
            return WHOLE_LAYER.get(own) or _sequential(holder)
    return "hidden"


def _mlp(kind: str, own: str) -> str:
    """In or out, by the layer's name in a class that is an mlp; BERT's halves are classes of their own."""
    if own == "dense":
        return "in" if kind.endswith(("Intermediate", "FeedForwardDense")) else "out"
    if own in IN or own in OUT:
        return "in" if own in IN else "out"
    raise LookupError(f"{own} of {kind}: read its forward pass to see which side of the mlp it is")


def _list_of_layers(mlp: nn.Module, own: nn.Module) -> str:
    """DETR's and SAM's mlps, with a list of layers: two that return to their width are an mlp, others are hidden."""
    linear = {name: layer for name, layer in mlp.named_modules() if isinstance(layer, nn.Linear)}
    first, *between, last = sorted(linear, key=lambda name: (name == "proj_out", name != "proj_in"))
    if between or linear[first].in_features != linear[last].out_features:
        return "hidden"
    return "mlp_in" if linear[first] is own else "mlp_out"


def _sequential(holder: Holder) -> str:
    """CTRL's mlp is an nn.Sequential called ffn: in, activation, out."""
    if holder.names[2:3] == ("ffn",):
        return "mlp_in" if holder.names[1] == "0" else "mlp_out"
    return "hidden"
