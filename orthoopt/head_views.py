"""Attention head by head: q, k and v cut into heads of output features, o into heads of input features.

Head counts come from the attention's own attributes or the model's config, and sizes must agree with them and with the
head dimensions that are stated there. Where they are not known, or do not agree, there is no such view.
"""

from __future__ import annotations

import re

from orthoopt.census import Candidate
from orthoopt.layers import Verdict
from orthoopt.layouts import HEADS, KEY_VALUE_HEADS, Layout
from orthoopt.naming import FUSED_QKV, names
from orthoopt.views import parse_view

_QUERY = names("q_proj to_q wq q_attn query q q_b_proj q_proj_weight")
_KEY_VALUE = names("k_proj v_proj to_k to_v wk wv key value k v k_proj_weight v_proj_weight")
_OUTPUT = names("o_proj out_proj to_out wo c_proj dense o proj")
_FUSED_HEADS = FUSED_QKV | names("attn in_proj kv to_kv to_added_kv to_added_qkv")
_HEAD_SIZES = ("head_dim", "qk_head_dim", "v_head_dim", "attention_head_size", "head_size", "d_kv")

_FUSED = re.compile(r"(?P<before>transpose |)(?:heads\((?P<groups>\d+)\) )?split\((?P<sizes>\d+(?:,\d+)+)\)(?: join)?")


def per_head(candidate: Candidate, verdict: Verdict) -> Layout | None:
    """The view of an attention parameter head by head, and its words; None for others and where it is not known."""
    heads = candidate.attribute(*HEADS)
    if verdict.role != "attention" or not heads:
        return None
    fused = _FUSED.fullmatch(verdict.view)
    if fused is not None:
        if fused["sizes"].count(",") == 1 and fused["groups"] is None:  # k and v, the query apart
            heads = candidate.attribute(*KEY_VALUE_HEADS) or heads
        return _fused(candidate, fused, verdict.view.removesuffix(" join"), heads)
    if verdict.view not in ("matrix", "transpose") or candidate.param.ndim != 2:
        return None
    ((rows, cols),) = parse_view(verdict.view).piece_shapes(candidate.shape)
    before = "" if verdict.view == "matrix" else f"{verdict.view} "
    known = {candidate.attribute(name) for name in _HEAD_SIZES} - {None}
    query = next((shape for name in _QUERY if (shape := candidate.beside(name) or candidate.within(name))), None)
    if not known and query is not None and verdict.view == "matrix":
        known = {query[0] // heads}

    def fits(size: int, count: int) -> bool:
        return size % count == 0 and size // count >= 2 and (not known or size // count in known)

    name = candidate.leaf if candidate.leaf != "weight" else candidate.last
    key_value = candidate.attribute(*KEY_VALUE_HEADS) or heads
    if name in _QUERY and fits(rows, heads):
        return f"{before}heads({heads})", f"per head, {heads} heads"
    if name in _KEY_VALUE and fits(rows, key_value):
        return f"{before}heads({key_value})", f"per head, {key_value} {'' if key_value == heads else 'key/value '}heads"
    if name in _OUTPUT and fits(cols, heads):
        return f"{before}heads_in({heads})", f"per head, {heads} heads of inputs"
    return None


def _fused(candidate: Candidate, fused: re.Match[str], view: str, heads: int) -> Layout | None:
    """q, k, v in one matrix: every block is cut into heads of one size, the first block's over its head count.

    Other things that attentions fuse have heads only where they are fused head after head.
    """
    sizes = [int(size) for size in fused["sizes"].split(",")]
    groups = int(fused["groups"] or 1)
    if not {candidate.last, candidate.leaf} & _FUSED_HEADS:
        known = groups == heads and min(sizes) >= 2
        return (view, f"per head, {heads} heads") if known else None
    size, left = divmod(sizes[0] * groups, heads)
    if left or size < 2 or any(block % size for block in sizes):
        return None
    counts = [block // size * groups for block in sizes]
    words = f"per head, {heads} heads"
    if counts[-1] != heads:
        words = f"per head, {heads} query and {counts[-1]} key/value heads"
    return view if set(sizes) == {size} else f"{view} head_size({size})", words
