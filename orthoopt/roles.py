"""What each parameter is in the network: its role, the view that shows it as matrices, and the evidence.

Structure decides first (owner module, embedding accessors, identity of tied tensors, configs), names second,
shape last. The decisions stand in one ordered table, and the first that applies wins. What nothing speaks for
is ``unknown``, with the reason, and never gets a guessed view.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from orthoopt.bias_views import per_vector, weight_of
from orthoopt.census import Candidate, Parameters, take_census
from orthoopt.decisions import DECISIONS
from orthoopt.head_views import per_head
from orthoopt.heads import find_heads
from orthoopt.layers import Verdict
from orthoopt.layouts import Layout
from orthoopt.views import parse_view

ROLES: tuple[str, ...] = (
    "embedding",
    "tied_embedding",
    "lm_head",
    "attention",
    "mlp_in",
    "mlp_out",
    "expert_in",
    "expert_out",
    "router",
    "conv",
    "hidden",
    "vector",
    "unknown",
)


class ParameterRole(NamedTuple):
    """The classification of one parameter, for people."""

    name: str
    role: str
    view: str
    reason: str


class Classified(NamedTuple):
    """The classification of one parameter, with the parameter."""

    name: str | None
    param: Tensor
    role: str
    view: str
    reason: str
    per_head: Layout | None = None
    """For attention, where its heads are known: the view head by head, and how that is said."""
    per_vector: str | None = None
    """For the bias of a fused or stacked linear map: the view that shows it as a vector for each matrix."""
    padding_row: int | None = None
    """For an embedding, the row whose gradient is zero by its module's ``padding_idx``."""
    aliases: tuple[str, ...] = ()
    """The other names of the same tensor."""


def roles(params: Parameters) -> list[ParameterRole]:
    """Role, view and reason of every trainable parameter, each tensor once.

    ``params`` is a module (its structure decides), (name, tensor) pairs (names and shapes decide) or tensors
    (shapes decide; they are listed as ``params[i]``). TypeError naming the first item that is none of these.
    """
    return [
        ParameterRole(f"params[{i}]" if name is None else name, role, view, reason)
        for i, (name, _, role, view, reason, *_) in enumerate(classify(params))
    ]


def classify(params: Parameters) -> list[Classified]:
    """Like ``roles``, with the tensors and with name None for bare ones."""
    census = take_census(params)
    find_heads(census)
    verdicts = [(candidate, _decide(candidate)) for candidate in census.candidates]
    named = {".".join((*c.path, c.leaf)): c for c in census.everything}
    return [
        Classified(
            c.name,
            c.param,
            *verdict,
            per_head(c, verdict),
            _per_vector(c, named),
            _padding_row(c) if verdict.role == "embedding" else None,
            tuple(alias.name for alias in c.aliases if alias.name is not None and alias.name != c.name),
        )
        for c, verdict in verdicts
    ]


def _per_vector(bias: Candidate, named: dict[str, Candidate]) -> str | None:
    weight = named.get(weight_of(bias) or "")  # a frozen one too
    return per_vector(bias, None if weight is None else _decide(weight))


def _padding_row(candidate: Candidate) -> int | None:
    """The row that no lookup trains; None where tables share the tensor and do not agree on it."""
    rows = {getattr(table.owner, "padding_idx", None) for table in (candidate, *candidate.aliases)}
    row = rows.pop()
    return row if not rows and isinstance(row, int) else None


def _decide(candidate: Candidate) -> Verdict:
    for decision in DECISIONS:
        verdict = decision(candidate)
        if verdict is not None:
            return _refuse_thin(candidate, verdict)
    raise AssertionError(f"no decision for {candidate.name}")  # the last one always decides


def _refuse_thin(candidate: Candidate, verdict: Verdict) -> Verdict:
    """A matrix with a side below 2 is a vector, whatever it does: matrix rules have nothing to act on."""
    view = parse_view(verdict.view)
    if view.is_matrix and any(min(shape[-2:]) < 2 for shape in view.piece_shapes(candidate.shape)):
        return Verdict("vector", "vector", f"{verdict.reason}; but a side is below 2")
    return verdict
