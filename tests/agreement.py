"""Where the classifier and a forward pass disagree: the rules that ``orthoopt.roles`` must keep, on one model."""

from __future__ import annotations

import itertools
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
    if role in MATRIX_ROLES and not seen.maps:
        uses = _sites(seen.entrywise | seen.lookups | seen.other) or f"a depthwise convolution at {seen.linear[0].site}"
        yield f"is no linear map: only {uses}"
    if (role == "conv") != any(use.convolution for use in seen.maps) and role != "unknown" and seen.maps:
        yield f"{'is' if role != 'conv' else 'is no'} convolution ({seen.maps[0].site})"
    thick = [use for use in seen.maps if min(use.sides) >= 2]
    if role in ("vector", "unknown") and thick and not seen.lookups:
        rows, cols = thick[0].sides
        yield f"is a linear map from {cols} to {rows} features ({thick[0].site}), as in {fitting_view(thick[0])}"
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
    """No matrix of the view holds features that the pass keeps apart, and no split cuts what it keeps together.

    Matrices are compared one by one, since heads and experts may stand apart or as one stack.
    """
    stacks = view_features(view, use)
    used = frozenset().union(*use.pieces)
    matrices = [matrix for stack in stacks for matrix in stack]
    mixed = any(not any(rows & used <= piece for piece in use.pieces) for rows, _ in matrices if rows & used)
    mixed |= any(not any(cols <= block for block in use.blocks) for _, cols in matrices)
    cut = any(not any(piece <= frozenset().union(*(r for r, _ in stack)) for stack in stacks) for piece in use.pieces)
    if mixed or cut:
        fitting = f" ({use.site}), as in {fitting_view(use) or 'no view'}"
        if len(use.pieces) > 1 or cut:
            yield f"has outputs that go apart as rows {_listed(use.pieces)}{fitting}"
        else:
            yield f"has inputs that are read apart as columns {_listed(use.blocks)}{fitting}"


def view_features(view: str, use: Linear) -> list[list[tuple[frozenset[int], frozenset[int]]]]:
    """The output and input features of the matrices that the view has, for each piece those of its stack."""
    entries = torch.arange(math.prod(use.shape)).view(use.shape)
    found = []
    for piece in parse_view(view).pieces(entries):
        coordinates = torch.unravel_index(piece.reshape(-1, *piece.shape[-2:]), use.shape)
        sides = zip(use.rows(coordinates), use.cols(coordinates), strict=True)
        found.append([tuple(frozenset(side.unique().tolist()) for side in both) for both in sides])
    return found


def fitting_view(use: Linear) -> str | None:
    """The view that cuts where the pass does; None when no chain of known steps does."""
    rest = tuple(range(1, len(use.shape)))
    if use.in_out is not None:
        ends = ["transpose"] if use.in_out else []
    elif rest in (use.inputs, use.outputs):
        ends = ["flatten"] if rest == use.inputs else ["flatten", "transpose"]
    else:
        return None
    if len(use.blocks) > 1:
        return " ".join([f"heads({len(use.blocks)})", *ends]) if use.in_out else f"heads_in({len(use.blocks)})"
    count = len(use.pieces)
    kinds = [next((i for i, piece in enumerate(use.pieces) if row in piece), -1) for row in range(use.sides[0])]
    runs = [(kind, len(list(run))) for kind, run in itertools.groupby(kinds)]
    repeats, left = divmod(len(runs), max(count, 1))
    if count <= 1:
        return " ".join(ends) or "matrix"
    if left or runs != runs[:count] * repeats:
        return None
    sizes = [size for _, size in runs[:count]]
    if set(sizes) == {1}:
        return " ".join([*ends, f"interleave({count})"])
    if repeats == 1 and count > 4 and len(set(sizes)) == 1:
        return " ".join([*ends, f"heads({count})"])
    return " ".join([*ends, *[f"heads({repeats})"] * (repeats > 1), f"split({','.join(map(str, sizes))})"])


def _listed(pieces: list[frozenset[int]]) -> str:
    return ", ".join(_words(piece) for piece in sorted(pieces, key=min))


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
