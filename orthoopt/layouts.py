"""Which view shows a fused or transposed parameter as its matrices, and in which words that is explained.

Every function returns ``(view, words)``. A layout is taken from a class known to have it, from flags of the
module, or from sizes that add up; where none speaks, the parameter stays one matrix, and the words say so.
"""

from __future__ import annotations

from orthoopt import naming
from orthoopt.census import Candidate, stated

Layout = tuple[str, str]

HEADS = ("num_attention_heads", "num_heads", "n_head", "n_heads", "heads", "num_attention_heads_per_partition")
KEY_VALUE_HEADS = ("num_key_value_heads", "num_kv_heads", "n_kv_head", "n_kv_heads", "n_query_groups", "kv_heads")
# q, k and v of one head lie together, head after head
_PER_HEAD = ("GPTNeoX", "Bloom", "Persimmon", "MiniMaxLightning")
# x above z
_MAMBA_1 = ("MambaMixer", "FalconMambaMixer", "JambaMambaMixer")


def blocks(sizes: list[int]) -> str:
    """The view that cuts rows into blocks of these sizes."""
    return f"split({','.join(map(str, sizes))})"


def fused_qkv(candidate: Candidate, rows: int, cols: int, axis: str = "rows") -> Layout:
    """Query, key and value in one matrix of (outputs, inputs); ``axis`` says where they are stored."""
    heads = candidate.attribute(*HEADS)
    named = candidate.last or candidate.leaf
    if named == "query_key_value" or candidate.flag("multi_query") is not None or _is_per_head(candidate):
        return _fused_by_heads(candidate, rows, heads)
    if heads:
        key_value = candidate.attribute(*KEY_VALUE_HEADS) or heads
        per_head = candidate.attribute("head_dim", "head_size") or cols // heads
        if rows == (heads + 2 * key_value) * per_head:
            sizes = [heads * per_head, key_value * per_head, key_value * per_head]
            grouped = f", {heads} query and {key_value} key/value heads" if key_value != heads else ""
            return blocks(sizes), f"q, k, v fused in its {axis}{grouped}"
    if rows in (3 * cols, 3 * (candidate.attribute("dim_out") or 0)):  # SAM 2 widens here
        return blocks([rows // 3] * 3), f"q, k, v fused in its {axis}"
    if rows == 2 * cols and candidate.beside("q_attn"):
        return blocks([cols] * 2), f"k, v fused in its {axis}, q apart in q_attn"
    return "matrix", "q, k, v fused in unknown sizes, seen as one matrix"


def _is_per_head(candidate: Candidate) -> bool:
    return any(type(module).__name__.startswith(_PER_HEAD) for module in candidate.modules)


def _fused_by_heads(candidate: Candidate, rows: int, heads: int | None) -> Layout:
    """The layouts where q, k, v lie head after head, or many queries share one key and value."""
    unknown = "matrix", "q, k, v fused in an unknown order, seen as one matrix"
    if not heads or not candidate.modules:
        return unknown
    per_head = f"q, k, v fused head after head, {heads} heads"
    if _is_per_head(candidate) and rows % (3 * heads) == 0:
        return f"heads({heads}) {blocks([rows // (3 * heads)] * 3)} join", per_head
    multi_query = candidate.flag("multi_query")
    if candidate.flag("new_decoder_architecture"):  # Falcon 40B: groups of queries, each with its key and value
        groups = candidate.attribute(*reversed(KEY_VALUE_HEADS)) or heads
        size, left = divmod(rows, heads + 2 * groups)
        if left == 0 and heads % groups == 0:
            words = f"q, k, v fused group after group, {heads} query and {groups} key/value heads"
            return f"heads({groups}) {blocks([heads // groups * size, size, size])} join", words
    elif multi_query is True and rows % (heads + 2) == 0:
        size = rows // (heads + 2)
        return blocks([heads * size, size, size]), f"q, k, v fused in its rows, {heads} query heads share one k, v"
    elif multi_query is False and rows % (3 * heads) == 0:
        return f"heads({heads}) {blocks([rows // (3 * heads)] * 3)} join", per_head
    return unknown


def fused_gate_up(candidate: Candidate, rows: int) -> Layout | None:
    """Gate above up in one Linear of this many rows; None when it holds one matrix only."""
    name = candidate.last
    for partner in (naming.PAIRS_IN.get(name), "down_proj", "Wo", "output_linear", "weights_out", "wo", "w2"):
        shape = candidate.beside(partner) if partner else None
        if shape is not None and len(shape) == 2:
            if rows != 2 * shape[1]:
                return None
            break
    else:
        if name not in naming.FUSED_GATE_UP:
            return None
    if name in naming.FUSED_GATE_UP and rows % 2 == 0:
        return blocks([rows // 2] * 2), "gate and up fused in its rows"
    return "matrix", "gate and up fused in an unknown order, seen as one matrix"


def experts(candidate: Candidate, is_in: bool) -> Layout | None:
    """A stack of experts (experts, ., .); None when it cannot be told whether it is stored transposed."""
    first, second = candidate.shape[-2:]
    transposed, evidence = _transposed_experts(candidate, is_in)
    if transposed is None:
        return None
    count = f"{candidate.shape[0]} experts"
    stored = f"{count} stored (in, out), {evidence}" if transposed else f"{count} stored (out, in), {evidence}"
    rows = second if transposed else first
    prefix = "transpose " if transposed else ""
    whole = "transpose" if transposed else "matrix"
    if not is_in or not _experts_gated(candidate, rows):
        return whole, stored
    axis = "columns" if transposed else "rows"
    if candidate.flag("is_concatenated") is False or candidate.owner_is("GptOssExperts"):
        return f"{prefix}interleave(2)", f"{stored}; gate and up interleaved in the {axis}"
    known = candidate.leaf in naming.FUSED_GATE_UP or candidate.last in naming.FUSED_GATE_UP
    if known and rows % 2 == 0 and (candidate.modules or not transposed):
        return f"{prefix}{blocks([rows // 2] * 2)}", f"{stored}; gate and up fused in the {axis}"
    return whole, f"{stored}; gate and up fused in an unknown order, seen as one matrix each"


def _partner(candidate: Candidate, is_in: bool) -> tuple[int, ...] | None:
    """Shape of the other half of the experts."""
    others = (
        ("down_proj", "w2", "wo", "output_linear") if is_in else ("gate_up_proj", "up_proj", "w1", "wi", "input_linear")
    )
    for other in others:
        shape = candidate.within(other) or candidate.beside(other)
        if shape is not None and len(shape) == 3:
            return shape
    return None


def _experts_gated(candidate: Candidate, rows: int) -> bool:
    if candidate.flag("has_gate") is False or candidate.leaf in ("up_proj", "gate_proj", "w1", "w3"):
        return False
    partner = _partner(candidate, is_in=True)
    if partner is not None:
        return rows in (2 * partner[1], 2 * partner[2])
    return candidate.leaf in naming.FUSED_GATE_UP


def _transposed_experts(candidate: Candidate, is_in: bool) -> tuple[bool | None, str]:
    """Whether the experts are stored (in, out), and how that is known."""
    flag = getattr(candidate.owner, "is_transposed", None)
    if isinstance(flag, bool):
        return flag, f"says is_transposed={flag}"
    if candidate.owner_is("GptOssExperts"):
        return True, "as gpt-oss does"
    if candidate.owner_is("ParallelExperts"):
        return False, "as ScatterMoE does"
    partner = _partner(candidate, is_in)
    if partner is not None:
        (_, a, b), (_, c, d) = (candidate.shape, partner) if is_in else (partner, candidate.shape)
        straight, transposed = b == c and a in (d, 2 * d), a == d and b in (c, 2 * c)
        if straight != transposed:  # both hold for experts without a gate: (I, H) and (H, I) read either way
            return transposed, "as both halves together show"
    width = _embedding_width(candidate) or candidate.attribute("hidden_size", "d_model", "n_embd")
    _, first, second = candidate.shape
    if width is None or (first == width) == (second == width):
        return None, ""
    return (first == width) == is_in, f"as the model's width {width} shows"


def _embedding_width(candidate: Candidate) -> int | None:
    for name, shape in candidate.census.shapes.items():
        parts = name.split(".")
        if len(shape) == 2 and len(parts) > 1 and naming.is_embedding(parts[-2]):
            return shape[1]
    return None


def state_space_input(candidate: Candidate, rows: int) -> Layout | None:
    """Mamba's in_proj: (x, z) in Mamba-1; (z, x and B and C, dt) in Mamba-2."""
    mixer = candidate.modules[1] if len(candidate.modules) > 1 else None
    inner = stated(mixer, "intermediate_size")
    if candidate.last != "in_proj" or mixer is None or not isinstance(inner, int):
        return None
    if type(mixer).__name__ in _MAMBA_1 and rows == 2 * inner:
        return blocks([inner, inner]), "x, z fused in its rows"
    if type(mixer).__name__ == "ZambaMambaMixer" and rows == 2 * inner:
        return "interleave(2)", "x, z interleaved in its rows"
    states = getattr(mixer, "n_groups", 0) * getattr(mixer, "ssm_state_size", 0)
    sizes = [inner, inner, states, states, getattr(mixer, "num_heads", 0)]
    if sum(sizes) == rows and min(sizes) > 0:
        return blocks(sizes), "z, x, B, C, dt fused in its rows"
    return "matrix", "fused in an order of its own, seen as one matrix"
