"""The biases of fused linear maps: taken apart as their weights are, for rules that measure a vector as a whole."""

from __future__ import annotations

import re

from orthoopt import naming
from orthoopt.census import Candidate
from orthoopt.layers import Verdict
from orthoopt.layouts import blocks
from orthoopt.views import parse_view

# What a weight's view says of its rows, which are the bias's entries.
_OF_ROWS = re.compile(r"(?:matrix|transpose|flatten)?(?: ?(?P<rows>(?:split|interleave|heads)\(.*\)(?: join)?))?")


def weight_of(candidate: Candidate) -> str | None:
    """The full cleaned name of the weight beside a bias: ``c_attn.bias``, ``experts.up_proj_bias``, ``bias_ih_l0``."""
    leaf = candidate.leaf
    if not naming.is_bias(leaf):
        return None
    names = [leaf.replace("bias", "weight"), leaf.removesuffix("_bias"), leaf.removesuffix("_biases")]
    name = next((name for name in names if name != leaf and candidate.within(name)), None)
    return None if name is None else ".".join((*candidate.path, name))


def per_vector(candidate: Candidate, weight: Verdict | None) -> str | None:
    """The view of a bias as the vectors that are fused or stacked in it; None for one vector, or where not known.

    ``weight`` is the verdict on the weight that :func:`weight_of` names, ``candidate`` the bias itself.
    """
    if candidate.leaf == "in_proj_bias" and candidate.within("q_proj_weight"):  # nn.MultiheadAttention
        return f"column {blocks([candidate.shape[0] // 3] * 3)}"
    name = weight_of(candidate)
    if weight is None or name is None or weight.view == "vector":
        return None
    match = _OF_ROWS.fullmatch(weight.view)
    if match is None or (match["rows"] is None and candidate.param.ndim == 1):
        return None
    spec = " ".join(("column", *([match["rows"]] if match["rows"] else [])))
    of_weight = parse_view(weight.view).piece_shapes(candidate.census.shapes[name])
    try:
        of_bias = parse_view(spec).piece_shapes(candidate.shape)
    except ValueError:
        return None
    return spec if [shape[:-1] for shape in of_bias] == [shape[:-1] for shape in of_weight] else None
