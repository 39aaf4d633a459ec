"""Where the classifier and a forward pass disagree: the rules that ``orthoopt.roles`` must keep, on one model."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from forward_witness import Evidence, Linear

from orthoopt.roles import ParameterRole
from orthoopt.views import parse_view

MATRIX_ROLES = frozenset(
    ["attention", "mlp_in", "mlp_out", "expert_in", "expert_out", "conv", "hidden", "router", "lm_head"]
)


def disagreements(listed: Iterable[ParameterRole], evidence: dict[str, Evidence]) -> list[str]:
    """One sentence for each parameter and rule, "name (role, view): what the pass did"; empty when all agree.

    Parameters that the pass did not touch are not judged.
    """
    return [
        f"{entry.name} ({entry.role}, {entry.view}): {what}"
        for entry in listed
        if evidence[entry.name].used
        for what in _disagreements(entry, evidence[entry.name])
    ]


def _disagreements(entry: ParameterRole, seen: Evidence) -> Iterable[str]:
    yield from _ends(entry.role, seen)
    yield from _kind(entry.role, seen)
    for use in seen.maps:
        if parse_view(entry.view).is_matrix and entry.role != "unknown":
            yield from _orientation(entry, use)
            yield from _pieces(entry.view, use)


def _ends(role: str, seen: Evidence) -> Iterable[str]:
    """Embeddings and heads: what is looked up by the input ids, and what makes the logits."""
    logits = [use for use in seen.linear if use.logits]
    sites = ", ".join(sorted(use.site for use in logits))
    if seen.by_input_ids and logits and role != "tied_embedding":
        yield f"is looked up by the input ids and makes the logits ({sites}), so it is tied_embedding"
    elif seen.by_input_ids and not logits and role != "embedding":
        yield f"is looked up by the input ids ({_sites(seen.lookups)}) and makes no logits, so it is embedding"
    elif logits and not seen.by_input_ids and role not in ("lm_head", "tied_embedding"):  # a pass may start after it
        yield f"makes the logits ({sites}), so it is lm_head"
    if role == "lm_head" and seen.linear and not logits:
        yield f"makes no logits (linear map at {seen.linear[0].site})"
    if seen.lookups and {by for by, _ in seen.lookups} == {"positions"} and not seen.linear and role != "vector":
        yield f"is looked up by positions alone ({_sites(seen.lookups)}), so it is vector"


def _kind(role: str, seen: Evidence) -> Iterable[str]:
    """Matrices, vectors and routers: whether it mixes features, and whether its outputs choose."""
    if role in MATRIX_ROLES and not seen.maps and not seen.other:
        uses = _sites(seen.entrywise | seen.lookups) or f"a depthwise convolution at {seen.linear[0].site}"
        yield f"is no linear map: only {uses}"
    if (role == "conv") != any(use.convolution for use in seen.maps) and role != "unknown" and seen.maps:
        yield f"{'is' if role != 'conv' else 'is no'} convolution ({seen.maps[0].site})"
    thick = [use for use in seen.maps if min(use.sides) >= 2]
    if role in ("vector", "unknown") and thick and not seen.lookups:
        rows, cols = thick[0].sides
        yield f"is a linear map from {cols} to {rows} features ({thick[0].site})"
    chooses = [use for use in seen.maps if use.chooses and not use.logits]
    if chooses and min(chooses[0].sides) >= 2 and role != "router":
        yield f"makes scores that are sorted ({chooses[0].site}), so it is router"
    if role == "router" and seen.maps and not any(use.chooses or use.picked for use in seen.maps):
        yield f"makes no scores that are sorted or picked from ({seen.maps[0].site})"


def _orientation(entry: ParameterRole, use: Linear) -> Iterable[str]:
    transposed = "transpose" in entry.view.split(" ")
    if use.in_out is not None and not use.convolution and min(use.sides) >= 2 and transposed != use.in_out:
        yield f"is stored {'(in, out)' if use.in_out else '(out, in)'} ({use.site})"


def _pieces(view: str, use: Linear) -> Iterable[str]:
    """No matrix of the view may hold rows that the pass keeps apart, and no piece of the pass may be cut by a split.

    Matrices are compared one by one, since heads and experts may stand apart or as one stack.
    """
    used = frozenset().union(*use.pieces)
    given = [[matrix & used for matrix in stack] for stack in view_rows(view, use)]
    mixed = any(not any(matrix <= piece for piece in use.pieces) for stack in given for matrix in stack if matrix)
    cut = any(not any(piece <= frozenset().union(*stack) for stack in given) for piece in use.pieces)
    if mixed or cut:
        sizes = ", ".join(_words(piece) for piece in sorted(use.pieces, key=min))
        yield f"has outputs that go apart as rows {sizes} ({use.site})"


def view_rows(view: str, use: Linear) -> list[list[frozenset[int]]]:
    """The rows of the linear map that the view's matrices hold, for each piece the matrices of its stack."""
    entries = torch.arange(math.prod(use.shape)).view(use.shape)
    found = []
    for piece in parse_view(view).pieces(entries):
        rows = use.rows(torch.unravel_index(piece, use.shape))
        found.append([frozenset(matrix.unique().tolist()) for matrix in rows.reshape(-1, *rows.shape[-2:])])
    return found


def _words(rows: frozenset[int]) -> str:
    """Rows in short: ``0-31``, ``0-7 (first of 4 runs)``, ``0::2``."""
    ordered = sorted(rows)
    steps = {b - a for a, b in zip(ordered, ordered[1:], strict=False)}
    if len(steps) <= 1:
        step = steps.pop() if steps else 1
        return f"{ordered[0]}-{ordered[-1]}" + (f" by {step}" if step > 1 else "")
    ends = [i for i, (a, b) in enumerate(zip(ordered, ordered[1:], strict=False)) if b != a + 1]
    return f"{ordered[0]}-{ordered[ends[0]]} and so on in {len(ends) + 1} runs, {len(ordered)} in all"


def _sites(uses: Iterable[tuple[str, str]]) -> str:
    return ", ".join(f"{what} at {site}" for what, site in sorted(uses))
