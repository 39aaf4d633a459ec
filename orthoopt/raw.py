"""Raw parameters, and layers of torch that are used otherwise: what the forward passes of known classes do with them.

An entry speaks for parameters and layers of some names in modules of one class, written as the ending of its name. Each
was read in the forward passes of transformers' models of that kind.
"""

from __future__ import annotations

from orthoopt.census import Candidate
from orthoopt.layers import Verdict, owner_words
from orthoopt.layouts import blocks
from orthoopt.naming import names

_VECTOR = ("vector", "vector")
_HEADS_IN_OUT = "stored (in, heads, head size)"
_SEGMENTS = "two learned tokens for each head: same segment or another"

# ending of the class's name, names -> role and view, words
_RAW: tuple[tuple[str, str, tuple[str, str], str], ...] = (
    # attention
    ("XLNetRelativeAttention", "q k v r", ("attention", "flatten transpose"), _HEADS_IN_OUT),
    ("XLNetRelativeAttention", "o", ("attention", "flatten"), "stored (out, heads, head size)"),
    ("XLNetRelativeAttention", "seg_embed", _VECTOR, _SEGMENTS),
    ("FunnelRelMultiheadAttention", "r_kernel", ("attention", "flatten transpose"), _HEADS_IN_OUT),
    ("FunnelRelMultiheadAttention", "seg_embed", _VECTOR, _SEGMENTS),
    ("Indexer", "index_kpool_compress_gate", ("attention", "matrix"), "stored (out, in)"),
    ("Indexer", "index_kpool_compress_ape", _VECTOR, "a table of positions within a pool"),
    ("RelativeLogits", "proj", _VECTOR, "a table of profiles over distances"),
    ("ScaledL2Clip", "scale", _VECTOR, "a gain for each entry"),
    # recurrences
    ("Rglru", "input_gate_weight recurrent_gate_weight", ("hidden", "transpose"), "a gate a head, stored (in, out)"),
    ("MambaMixer", "dt_proj_weight", ("hidden", "matrix"), "a matrix a head"),
    ("DynamicShortConvolution", "static_weight", _VECTOR, "taps of a depthwise convolution"),
    # learned queries and projections between modalities
    ("BlockAttentionResidual", "query", _VECTOR, "learned queries, the same at every position"),
    ("Projector", "query", _VECTOR, "learned queries"),
    ("OmDetTurboLanguageBackbone", "text_projection", ("hidden", "transpose"), "stored (in, out)"),
    ("MultiModalProjector", "mm_input_projection_weight", ("hidden", "transpose"), "stored (in, out)"),
    ("ProphetNetDecoder", "ngram_embeddings", _VECTOR, "a learned token a stream"),
    ("DabDetrModel", "patterns", _VECTOR, "learned queries, all of them used"),
    ("PegasusXEncoder", "embed_global", _VECTOR, "learned tokens, all of them used"),
    # mlps under other names
    ("WindowAttentionMerger", "linear_1", ("mlp_in", "matrix"), "the way into an mlp"),
    ("WindowAttentionMerger", "linear_2", ("mlp_out", "matrix"), "the way out of an mlp"),
    ("PI0ActionTimeEmbedding", "action_time_mlp_in", ("mlp_in", "matrix"), "the way into an mlp"),
    ("PI0ActionTimeEmbedding", "action_time_mlp_out", ("mlp_out", "matrix"), "the way out of an mlp"),
    # heads
    ("CodebooksHead", "weight", ("lm_head", "transpose"), "a head a codebook, stored (in, out)"),
    ("CTCHead", "weight", ("lm_head", "flatten"), "leads to logits of characters"),
    ("DecoupledLinear", "additional_fc", ("lm_head", "matrix"), "leads to the logits of tokens that were added"),
    ("FSMTDecoder", "output_projection", ("lm_head", "matrix"), "leads to logits"),
    ("Tipsv2DptDecoder", "head", ("lm_head", "matrix"), "leads to logits of bins of depth"),
    ("GraniteSpeech5Encoder", "out", ("lm_head", "matrix"), "leads to logits of characters"),
    ("TalkerForConditionalGeneration", "codec_head", ("lm_head", "matrix"), "leads to logits of codes"),
    ("VQVAEHead", "vision_head", ("lm_head", "matrix"), "leads to logits of image tokens"),
    ("Ovis2VisionModel", "head_linear", ("lm_head", "matrix"), "leads to logits of visual words"),
    ("CTCEncoder", "out", ("lm_head", "matrix"), "leads to logits of characters"),
    ("TranscribeForConditionalGeneration", "word_timestamp_head", ("lm_head", "flatten"), "leads to logits of places"),
    ("ForImageTextRetrieval", "itm_head", ("lm_head", "matrix"), "leads to logits: a match or none"),
    ("MobileBertLMPredictionHead", "dense", ("lm_head", "transpose"), "the rest of the tied head, stored (in, out)"),
    ("PerceiverTextPreprocessor", "embeddings", ("tied_embedding", "matrix"), "the decoder multiplies by it"),
)


def raw(candidate: Candidate) -> Verdict | None:
    """Parameters of classes that are known."""
    if candidate.owner is None:
        return None
    kind = type(candidate.owner).__name__
    around = type(candidate.modules[1]).__name__ if candidate.leaf == "weight" and len(candidate.modules) > 1 else ""
    for ending, named, (role, view), words in _RAW:
        if kind.endswith(ending) and candidate.leaf in names(named):
            return Verdict(role, view, f"{owner_words(candidate)} {candidate.leaf}: {words}")
        if around.endswith(ending) and candidate.last in names(named):
            return Verdict(role, view, f"{owner_words(candidate)} {candidate.last} of {around}: {words}")
    if kind == "DbrxExpertGLU":
        return _dbrx(candidate)
    if kind == "ZambaMambaMixer" and candidate.leaf == "x_proj_weight":
        rank, states = candidate.attribute("time_step_rank") or 0, candidate.attribute("ssm_state_size") or 0
        view = blocks([rank, states, states]) if rank + 2 * states == candidate.shape[1] else "matrix"
        return Verdict("hidden", view, f"{owner_words(candidate)} x_proj_weight: dt, B, C fused, a matrix a head")
    if candidate.leaf in ("fn", "hc_fn") and ("HyperConnection" in kind or "HyperHead" in kind):
        return _hyper_connection(candidate)
    return None


def _dbrx(candidate: Candidate) -> Verdict | None:
    """Experts one above another: w1 and v1 (experts * inner, width), w2 the same, used transposed."""
    experts = candidate.attribute("moe_num_experts") or 0
    if candidate.leaf not in ("w1", "v1", "w2") or experts < 1 or candidate.shape[0] % experts:
        return None
    role, view, stored = ("expert_out", f"heads({experts}) transpose", "(in, out)")
    if candidate.leaf != "w2":
        role, view, stored = ("expert_in", f"heads({experts})", "(out, in)")
    reason = f"{owner_words(candidate)} {candidate.leaf}: {experts} experts one above another, stored {stored}"
    return Verdict(role, view, reason)


def _hyper_connection(candidate: Candidate) -> Verdict:
    """Hyper-connections: one linear map from all streams to the weights that collapse, expand and mix them."""
    streams, rows = candidate.attribute("hc_mult") or 0, candidate.shape[0]
    sizes, words = [rows], "from all streams to their weights"
    if rows == 2 * streams:
        sizes, words = [streams, streams], "collapsing and expanding weights fused in its rows"
    elif rows == streams * (2 + streams):
        sizes, words = [streams, streams, streams**2], "collapsing, expanding and mixing weights fused in its rows"
    view = "matrix" if len(sizes) == 1 or min(sizes) < 2 else blocks(sizes)
    return Verdict("hidden", view, f"{owner_words(candidate)} {candidate.leaf}: {words}")
