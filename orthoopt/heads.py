"""Finding the output layers, and on which evidence.

In this order: the model's accessor, a name outside blocks, as many outputs as the vocabulary or as the config has
labels, the last layer after convolutions. What stands last in a model that says nothing of the kind may be an output
layer all the same: it is noted as unsure, for a matrix rule on an output layer is the worse mistake.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from orthoopt import naming
from orthoopt.census import Candidate, Census, stated
from orthoopt.layers import attention_layer, mlp_side


def is_dense(candidate: Candidate) -> bool:
    """Whether the parameter is the weight of a Linear layer, or could be one as far as its name tells."""
    if candidate.leaf != "weight" or candidate.param.ndim != 2:
        return False
    if candidate.owner is None:
        return not naming.is_embedding(candidate.last) and not naming.is_position(candidate.last)
    return isinstance(candidate.owner, nn.Linear) or "Linear" in type(candidate.owner).__name__


def find_heads(census: Census) -> None:
    """Write the reason for every output layer that is not tied to an embedding into ``census.heads``.

    A last layer that may be one goes to ``census.unsure``.
    """
    for candidate in census.everything:
        if id(candidate.param) in census.output_ids:
            census.heads[id(candidate.param)] = "returned by get_output_embeddings(), not tied"
    layers = [c for c in census.everything if is_dense(c) and not naming.is_lora(c.path)]
    outer = [c for c in layers if not naming.in_a_stack(c.path) and naming.block(c.path) is None]
    _by_labels(census, layers, outer)
    # Where the model says what its head is, other layers count by unambiguous names alone.
    said = naming.is_classifier if census.output_ids else naming.is_head
    for key, candidate in _last_below(said, layers).items():
        census.heads.setdefault(
            id(candidate.param),
            f"{candidate.label or key.rpartition('.')[0]}: the last layer of that name, it leads to logits",
        )
    if census.heads or census.output_ids or not layers:
        return
    tables = [c for c in census.everything if _is_table(c)]
    if _has_accessors(census.root):  # which say what the tokens' table is
        tables = [c for c in tables if id(c.param) in census.input_ids]
    vocabularies = {c.shape[0] for c in tables}
    fitting = [c for c in outer if c.shape[0] in vocabularies]
    if fitting:
        reason = f"{fitting[-1].label}, the last layer with the vocabulary ({fitting[-1].shape[0]}) as outputs"
        census.heads[id(fitting[-1].param)] = reason.lstrip(", ")
    elif layers[-1] not in outer or not _stands_last(layers) or _is_inside_a_base_model(layers[-1]):
        return
    elif not vocabularies and census.first_kernel is not None and not _has_accessors(census.root):
        reason = f"{layers[-1].label}, the last layer after convolutions, it leads to logits"
        census.heads[id(layers[-1].param)] = reason.lstrip(", ")
    elif len(layers) > 1:
        census.unsure[id(layers[-1].param)] = (
            f"{layers[-1].label}, the last layer: an output layer or a hidden one, neither accessor, name nor number "
            "of outputs tells"
        ).lstrip(", ")


def _stands_last(layers: list[Candidate]) -> bool:
    """Whether the last layer is the last to run and no half of a block, as far as modules tell."""
    around = layers[-1].modules[1:2]
    if not around or mlp_side(layers[-1]) is not None or attention_layer(layers[-1]) is not None:
        return False
    # Lists and dicts of modules have no forward pass, and so no order.
    return not isinstance(around[0], nn.ModuleList | nn.ModuleDict)


def _has_accessors(root: nn.Module | None) -> bool:
    """Whether it is a model of transformers."""
    return callable(stated(root, "get_input_embeddings"))


def _is_inside_a_base_model(candidate: Candidate) -> bool:
    """Whether the layer belongs to the part of a transformers model that has no output layers."""
    base = stated(candidate.census.root, "base_model")
    return isinstance(base, nn.Module) and any(module is base for module in candidate.modules)


_CLASSES = naming.names("class classes cls score scores classifier predictor")


def _by_labels(census: Census, layers: list[Candidate], outer: list[Candidate]) -> None:
    """Layers of a transformers model with as many outputs as its config has labels, kernels of size 1 among them.

    They stand outside blocks and beside the base model, come last, or are called after classes and scores.
    """
    labels = stated(stated(census.root, "config"), "num_labels")
    if not isinstance(labels, int) or not _has_accessors(census.root):
        return
    kernels = [c for c in census.everything if c.param.ndim == 4 and max(c.shape[2:]) == 1 and c.leaf == "weight"]
    for candidate in (*layers, *kernels):
        if candidate.shape[0] not in (labels, labels + 1):  # detectors have one class more, for no object
            continue
        where = "beside the base model" if candidate in outer and not _is_inside_a_base_model(candidate) else ""
        where = where or ("the last layer" if candidate in outer and candidate is layers[-1] else "")
        named = set().union(*map(naming.words, candidate.path[-2:])) & _CLASSES
        if where or named:
            told = [candidate.label, where, f"with the config's {labels} labels as outputs"]
            census.heads.setdefault(id(candidate.param), ", ".join(filter(None, told)))


def _is_table(candidate: Candidate) -> bool:
    if candidate.param.ndim != 2 or naming.is_no_vocabulary(candidate.last):
        return False
    if candidate.owner is None:
        return candidate.leaf == "weight" and naming.is_embedding(candidate.last)
    return isinstance(candidate.owner, nn.Embedding | nn.EmbeddingBag)


def _is_of_a_tower(candidate: Candidate, depth: int) -> bool:
    """Whether a component with an ambiguous name, ``head``, belongs to a part of a transformers model.

    ``text_model.head`` of CLIP-like models projects features; so do layers of a list below a ``head``.
    """
    inside_head = candidate.path[depth + 1 :]
    if candidate.path[depth] == "lm_head" and candidate.census.output_ids and inside_head:
        return not all(part.isdigit() for part in inside_head)  # what leads to the logits that the accessor knows
    if not _has_accessors(candidate.census.root) or naming.is_classifier(candidate.path[depth]):
        return False
    return depth > 0 or any(part.isdigit() for part in candidate.path[depth:-1])


def _last_below(is_head: Callable[[str], bool], layers: list[Candidate]) -> dict[str, Candidate]:
    """The last layer below every component such as ``classifier`` that stands outside stacks and blocks."""
    found: dict[str, Candidate] = {}
    for candidate in layers:
        for depth, part in enumerate(candidate.path):
            if part.isdigit():
                break
            if is_head(part) and naming.block(candidate.path) is None and not _is_of_a_tower(candidate, depth):
                parallel = part.endswith("s") and len(candidate.path) == depth + 2  # lm_heads.0, lm_heads.1
                found[".".join(candidate.path[: depth + 1 + parallel])] = candidate
                break
    return found
