"""Finding the output layers: by accessor, by name, by vocabulary, or as the last layer after convolutions."""

from __future__ import annotations

from torch import nn

from orthoopt import naming
from orthoopt.census import Candidate, Census


def is_dense(candidate: Candidate) -> bool:
    """Whether the parameter is the weight of a Linear layer, or could be one as far as its name tells."""
    if candidate.leaf != "weight" or candidate.param.ndim != 2:
        return False
    if candidate.owner is None:
        return not naming.is_embedding(candidate.last) and not naming.is_position(candidate.last)
    return isinstance(candidate.owner, nn.Linear) or "Linear" in type(candidate.owner).__name__


def find_heads(census: Census) -> None:
    """Write the reason for every output layer that is not tied to an embedding into ``census.heads``."""
    everything = census.everything
    for candidate in everything:
        if id(candidate.param) in census.output_ids:
            census.heads[id(candidate.param)] = "returned by get_output_embeddings(), not tied"
    if census.output_ids:  # the model says what its head is, the names of other layers do not count
        return
    layers = [c for c in everything if is_dense(c) and not naming.is_lora(c.path)]
    for key, candidate in _last_below_a_head_name(layers).items():
        census.heads.setdefault(
            id(candidate.param),
            f"{candidate.label or key.rpartition('.')[0]}: the last layer of that name, it leads to logits",
        )
    if census.heads or not layers:
        return
    tables = [c for c in everything if _is_table(c)]
    outer = [c for c in layers if not naming.in_a_stack(c.path)]
    if tables:
        vocabulary = max(table.shape[0] for table in tables)
        fitting = [c for c in outer if c.shape[0] == vocabulary and naming.block(c.path) is None]
        if fitting:
            reason = f"{fitting[-1].label}, the last layer with the vocabulary ({vocabulary}) as outputs"
            census.heads[id(fitting[-1].param)] = reason.lstrip(", ")
    elif census.first_kernel is not None and layers[-1] in outer:
        census.heads[id(layers[-1].param)] = (
            f"{layers[-1].label}, the last layer after convolutions, it leads to logits".lstrip(", ")
        )


def _is_table(candidate: Candidate) -> bool:
    if candidate.param.ndim != 2 or naming.is_position(candidate.last):
        return False
    if candidate.owner is None:
        return candidate.leaf == "weight" and naming.is_embedding(candidate.last)
    return isinstance(candidate.owner, nn.Embedding | nn.EmbeddingBag)


def _last_below_a_head_name(layers: list[Candidate]) -> dict[str, Candidate]:
    """The last layer below every component such as ``classifier`` that stands outside stacks and blocks."""
    found: dict[str, Candidate] = {}
    for candidate in layers:
        for depth, part in enumerate(candidate.path):
            if part.isdigit():
                break
            if part in naming.HEADS and naming.block(candidate.path) is None:
                parallel = part.endswith("s") and len(candidate.path) == depth + 2  # lm_heads.0, lm_heads.1
                found[".".join(candidate.path[: depth + 1 + parallel])] = candidate
                break
    return found
