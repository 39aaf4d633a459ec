"""What a layer is called, and where it stands: in an attention or in an mlp, and on which side of it."""

from __future__ import annotations

from typing import NamedTuple

from torch import nn

from orthoopt import naming
from orthoopt.census import Candidate
from orthoopt.mlp_shapes import plain_mlp_side, side_by_shapes, side_together


class Verdict(NamedTuple):
    """What one decision says."""

    role: str
    view: str
    reason: str


def is_conv1d(candidate: Candidate) -> bool:
    """Transformers' Conv1D is a Linear that stores (in, out); recognised without importing it."""
    if candidate.owner is not None:
        return type(candidate.owner).__name__ == "Conv1D" and hasattr(candidate.owner, "nf")
    return candidate.census.names_show_conv1d and candidate.last in ("c_attn", "q_attn", "c_proj", "c_fc")


def owner_words(candidate: Candidate) -> str:
    """The owner's class for people, ``nn.Linear`` or ``GptOssTopKRouter``; with its name when it has one."""
    if candidate.owner is None:
        return "by name, owner unknown:"
    kind = type(candidate.owner)
    if is_conv1d(candidate):
        return "transformers Conv1D"
    if not kind.__module__.startswith("torch.nn."):
        return kind.__name__
    public = next((base for base in kind.__mro__ if getattr(nn, base.__name__, None) is base), kind)
    return f"nn.{public.__name__}"


def place(candidate: Candidate) -> tuple[str, str] | None:
    """The block a layer belongs to, ("attention", "mlp" or "other", words): the parent's class, else a name."""
    if len(candidate.modules) > 1:
        parent = type(candidate.modules[1])
        kind = naming.block_kind(parent.__name__)
        if kind is not None:
            around = candidate.path[-2:-1]
            return kind, f"in {around[0]}" if around and not around[0].isdigit() else f"in {parent.__name__}"
    named = naming.block(candidate.path)
    if named is None:
        return _holder(candidate)
    return named[0], f"in {named[1]}" if named[1] != candidate.last else ""


def _holder(candidate: Candidate) -> tuple[str, str] | None:
    """The class of the innermost module that is no mere container: diffusers' ``to_out.0`` is in an Attention."""
    held = (m for m in candidate.modules[1:] if not isinstance(m, nn.ModuleList | nn.ModuleDict | nn.Sequential))
    kind = type(next(held, None)).__name__
    said = naming.block_kind(kind)
    return None if said is None else (said, f"in {kind}")


def attention_layer(candidate: Candidate) -> str | None:
    """Words for the attention the layer belongs to, "in self_attn" or ""; None when it belongs to none."""
    where = place(candidate)
    if where is not None:
        return where[1] if where[0] == "attention" else None
    return "" if candidate.last in naming.ATTENTION | naming.FUSED_QKV else None


_PROJECTORS = ("Projector", "AlignerMLP")


def mlp_side(candidate: Candidate) -> str | None:
    """Whether the layer leads into an mlp ("in": gate, up, fc1) or out of it ("out": down, fc2)."""
    name = candidate.leaf if candidate.leaf != "weight" else candidate.last
    if name in naming.MLP_IN:
        return "in"
    if name in naming.MLP_OUT:
        return "out"
    where = place(candidate)
    if len(candidate.modules) > 1 and type(candidate.modules[1]).__name__.endswith(_PROJECTORS):
        return None  # layers between towers, whose widths may make them look like an mlp
    inside = (where is not None and where[0] == "mlp") or naming.expert_component(candidate.path) is not None
    if name == "dense" and (side := _dense_side(candidate)) is not None:
        return side
    if candidate.leaf == "weight":
        shaped = (side_together(candidate) or side_by_shapes(candidate)) if inside else plain_mlp_side(candidate)
        if shaped is not None:
            return shaped
    if name in ("fc1", "fc2") and candidate.beside("fc3") == candidate.shape:
        return None  # three layers one after another
    if name in naming.PAIRS_IN and (inside or _opposite(candidate, naming.PAIRS_IN[name], is_in=True)):
        return "in"
    if name in naming.PAIRS_OUT and (inside or _opposite(candidate, naming.PAIRS_OUT[name], is_in=False)):
        return "out"
    return _numbered_side(candidate) if inside and name.isdigit() else None


def _dense_side(candidate: Candidate) -> str | None:
    """The side of a layer called dense, as BERT and its line call all of theirs: by the class or the name around it."""
    kind = type(candidate.modules[1]).__name__ if len(candidate.modules) > 1 else ""
    around = candidate.path[-2] if len(candidate.path) > 1 else ""
    other = ".".join((*candidate.path[:-2], "output", "dense", "weight"))
    if (
        kind.endswith("Intermediate")
        or around == "intermediate"
        or (around == "dense" and other in candidate.census.shapes)
    ):
        return "in"
    of_attention = kind.endswith(("SelfOutput", "AttentionOutput", "CrossOutput"))
    return "out" if around == "output" or (kind.endswith("Output") and not of_attention) else None


def mlp_words(candidate: Candidate) -> str:
    """How it is known that the layer belongs to an mlp: " in mlp", or the name of its other half."""
    where = place(candidate)
    if where is not None:
        return f" {where[1]}"
    other = {**naming.PAIRS_IN, **naming.PAIRS_OUT}.get(candidate.last)
    if other is not None and candidate.beside(other) is not None:
        return f", the other half of {other}"
    return f" in {candidate.path[-2]}" if candidate.last == "dense" else ""


def _opposite(candidate: Candidate, other: str, is_in: bool) -> bool:
    """Whether the sibling of this name is the other half of an mlp: (I, H) or (2 I, H), and (H, I)."""
    shape = candidate.beside(other)
    if shape is None or len(shape) != 2 or candidate.param.ndim != 2:
        return False
    (inner, width), (back, inner_back) = (candidate.shape, shape) if is_in else (shape, candidate.shape)
    return width == back and inner in (inner_back, 2 * inner_back)


def _numbered_side(candidate: Candidate) -> str | None:
    """The side of a layer in an nn.Sequential: of ``mlp.0`` and ``mlp.2`` the first leads in."""
    number = int(candidate.last)
    linear = [other for other in range(number + 8) if len(candidate.beside(str(other)) or ()) == 2]
    if len(linear) > 2 and candidate.shape[0] == candidate.shape[1]:
        return None  # one of several hidden layers, which fits any other
    for other in range(number + 8):
        if other != number and _opposite(candidate, str(other), is_in=other > number):
            return "in" if other > number else "out"
    return None
