"""Linear layers that hold several maps, where the module that uses them says how they lie.

diffusers lists the blocks on the layer itself; elsewhere the class of the activation, or of the block, tells. What
these do not tell is left to the decisions about names.
"""

from __future__ import annotations

import re

from torch import nn

from orthoopt import naming
from orthoopt.census import Candidate, children, stated
from orthoopt.fused import fused_kernel, fused_outputs
from orthoopt.heads import is_dense
from orthoopt.layers import Verdict, attention_layer, mlp_side, owner_words
from orthoopt.layouts import Layout, blocks, fused_gate_up
from orthoopt.mlp_shapes import is_doubled

# nn.GLU and everybody's GEGLU, SwiGLU, ReGLU split what they get into two halves, never into even and odd
_GATED_ACTIVATION = re.compile(r"\w*(GLU|GatedLinearUnit)")
# timm's gated mlp halves what fc1 gives
_GATED_MLP = ("GluMlp",)
# activations of diffusers that hold the layer before them
_HOLDS_WAY_IN = re.compile(r"(\w*GLU|\w*GatedLinearUnit|GELU|ApproximateGELU|LinearActivation)")
_KEY_VALUE = naming.names("kv to_kv to_added_kv")


def listed_blocks(candidate: Candidate) -> Verdict | None:
    """diffusers' own word: ``_tp_packed_col_blocks`` are rows of the weight, ``_tp_packed_row_blocks`` columns."""
    if not is_dense(candidate) or candidate.owner is None:
        return None
    rows, cols = candidate.shape
    of_rows = getattr(candidate.owner, "_tp_packed_col_blocks", None) or _single_stream(candidate, "rows")
    of_cols = getattr(candidate.owner, "_tp_packed_row_blocks", None) or _single_stream(candidate, "columns")
    shown = f"{owner_words(candidate)} {candidate.label}".rstrip()
    for sizes, total, view, axis in (
        (of_rows, rows, "{}", "rows"),
        (of_cols, cols, "transpose {} transpose", "columns"),
    ):
        if sizes and sum(sizes) == total and min(sizes) >= 2:
            side = mlp_side(candidate)
            role = "hidden" if side is None or attention_layer(candidate) is not None else f"mlp_{side}"
            words = f"{len(sizes)} maps fused in its {axis}, attention and mlp side by side"
            return Verdict(role, view.format(blocks(list(sizes))), f"{shown}: {words}")
    return None


def _single_stream(candidate: Candidate, axis: str) -> list[int] | None:
    """Blocks that read q, k, v and an mlp from one input and write both to one output, attention first."""
    parent = candidate.modules[1] if len(candidate.modules) > 1 else None
    inner = stated(parent, "mlp_hidden_dim")
    if not isinstance(inner, int):
        return None
    rows, cols = candidate.shape
    if axis == "columns":
        writes = candidate.last == "proj_out" and candidate.beside("proj_mlp") is not None
        writes = writes or (candidate.last == "linear2" and type(parent).__name__ == "SingleStreamBlock")
        return [cols - inner, inner] if writes and cols - inner == rows else None
    if candidate.last == "linear1" and type(parent).__name__ == "SingleStreamBlock" and rows == 3 * cols + inner:
        return [cols, cols, cols, inner]
    return None


def gated(candidate: Candidate) -> Verdict | None:
    """The way into an mlp, fused with its gate where the activation after it is a gated one."""
    if not is_dense(candidate) or len(candidate.modules) < 2:
        return None
    holder = candidate.modules[1]
    kind = type(holder).__name__
    rows = candidate.shape[0]
    shown = f"{owner_words(candidate)} {candidate.label}".rstrip()
    if candidate.last == "proj" and _HOLDS_WAY_IN.fullmatch(kind) and len(children(holder)) <= 2:
        if _GATED_ACTIVATION.fullmatch(kind) and rows % 2 == 0:
            return Verdict("mlp_in", blocks([rows // 2] * 2), f"{shown} of {kind}: value and gate fused in its rows")
        return Verdict("mlp_in", "matrix", f"{shown} of {kind}")
    beside = [child for child in children(holder) if isinstance(child, nn.Linear) and child is not candidate.owner]
    if len(beside) == 1 and rows == 2 * beside[0].in_features:  # it reads what the gate lets through
        active = [type(child).__name__ for child in children(holder) if not any(True for _ in child.parameters())]
        said = kind if kind in _GATED_MLP else next(filter(_GATED_ACTIVATION.fullmatch, active), None)
        if said is not None:
            halves = blocks([rows // 2] * 2)
            return Verdict("mlp_in", halves, f"{shown}: value and gate fused in its rows, halved by {said}")
    known = fused_gate_up(candidate, rows) or fused_outputs(candidate, rows)
    if mlp_side(candidate) == "in" and is_doubled(candidate) and known is None:
        return Verdict("mlp_in", "matrix", f"{shown}: gate and up fused in an unknown order, seen as one matrix")
    return None


def head_groups(candidate: Candidate) -> Verdict | None:
    """Queries with their key and value, group after group (earlier lit-gpt) or head after head (GPT-NeoX)."""
    if not is_dense(candidate) or attention_layer(candidate) is None:
        return None
    rows = candidate.shape[0]
    parent = type(candidate.modules[1]).__name__ if len(candidate.modules) > 1 else ""
    if candidate.last == "attn" and parent == "CausalSelfAttention":
        heads, groups = candidate.attribute("n_head"), candidate.attribute("n_query_groups")
        words = "q, k, v fused group after group"
    elif candidate.last == "query_key_value" and parent in ("ParallelSelfAttention", "ParallelAttention"):
        heads = groups = candidate.attribute("num_attention_heads_per_partition")
        words = "q, k, v fused head after head"
    else:
        return None
    if not heads or not groups or heads % groups or rows % (heads + 2 * groups):
        return None
    size = rows // (heads + 2 * groups)
    view = f"heads({groups}) {blocks([heads // groups * size, size, size])} join"
    return Verdict("attention", view, f"{owner_words(candidate)} {candidate.last}: {words}")


def key_value(candidate: Candidate) -> Verdict | None:
    """Key above value, the query apart: ``kv`` as in timm, ``to_kv`` as in lucidrains' and diffusers' attentions."""
    if not is_dense(candidate) or attention_layer(candidate) is None:
        return None
    rows = candidate.shape[0]
    shown = f"{owner_words(candidate)} {candidate.label}".rstrip()
    if candidate.last in _KEY_VALUE and rows % 2 == 0:
        return Verdict("attention", blocks([rows // 2] * 2), f"{shown}: k, v fused in its rows, q apart")
    if candidate.last == "to_added_qkv" and rows % 3 == 0:
        return Verdict("attention", blocks([rows // 3] * 3), f"{shown}: q, k, v fused in its rows")
    return None


def kernel_blocks(candidate: Candidate) -> Layout | None:
    """q, k and v, or value and gate, in one kernel: how they lie, and in words; None for other kernels."""
    known = fused_kernel(candidate)
    if known is not None:
        return known
    if _is_halved(candidate):
        return blocks([candidate.shape[0] // 2] * 2), "value and gate fused in its rows"
    if candidate.last not in ("qkv", "to_qkv") or max(candidate.shape[2:]) > 1 or candidate.shape[0] % 3:
        return None
    rows = candidate.shape[0]
    parent = candidate.modules[1] if len(candidate.modules) > 1 else None
    attention = type(getattr(parent, "attention", None)).__name__
    heads = stated(parent, "num_heads")
    if attention == "QKVAttentionLegacy" and isinstance(heads, int) and rows % (3 * heads) == 0:
        return f"heads({heads}) {blocks([rows // (3 * heads)] * 3)} join", "q, k, v fused head after head"
    if attention == "QKVAttention" or candidate.last == "to_qkv":
        return blocks([rows // 3] * 3), "q, k, v fused in its rows"
    return None


def _is_halved(candidate: Candidate) -> bool:
    """Whether a kernel is followed by a GLU over its channels."""
    if candidate.shape[0] % 2 or len(candidate.modules) < 2:
        return False
    around = children(candidate.modules[1])
    glus = [place for place, child in enumerate(around) if isinstance(child, nn.GLU) and child.dim in (1, -2)]
    if not glus:
        return False
    before = [child for child in around[: glus[0]] if isinstance(child, nn.modules.conv._ConvNd | nn.Linear)]
    return bool(before) and before[-1] is candidate.owner
