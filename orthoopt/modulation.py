"""Layers that turn a condition into shifts, scales and gates of other layers: several maps above each other in one.

All blocks have the width of the features they modulate, so the number of blocks is known as soon as that width is;
which of them is a shift and which a gate makes no difference.
"""

from __future__ import annotations

import re

from torch import nn

from orthoopt import naming
from orthoopt.census import Candidate, children
from orthoopt.heads import is_dense
from orthoopt.layers import Verdict, owner_words
from orthoopt.layouts import blocks

# diffusers' adaptive norms, flux's and lumina's modulations
_CLASSES = re.compile(r"AdaLayerNorm|LayerNormZero|RMSNormZero|Modulation$")
# facebook's DiT and its descendants, MMDiTs
_NAMES = re.compile(r"ada_?ln_modulation|modulation|(\w+_)?mod", re.IGNORECASE)
# Where nothing beside the layer has the width of the blocks: (class, layer) -> number of blocks
_COUNTS = {
    ("AdaGroupNorm", "linear"): 2,
    ("DiTTransformer2DModel", "proj_out_1"): 2,
    ("WanTimeTextImageEmbedding", "time_proj"): 6,
}


def modulation(candidate: Candidate) -> Verdict | None:
    """Shifts, scales and gates: the layers that make them, and the tables that are added to them."""
    if candidate.leaf == "scale_shift_table":
        return Verdict("vector", "vector", "scale_shift_table is added to shifts and scales, one row for each")
    if not candidate.modules or not is_dense(candidate):
        return None
    count = _count(candidate)
    if count is None:
        return None
    rows = candidate.shape[0]
    shown = f"{owner_words(candidate)} {candidate.label}".rstrip()
    if count < 2 or rows % count:
        return Verdict("hidden", "matrix", f"{shown} modulates other layers")
    words = f"{shown} modulates other layers: {count} shifts, scales or gates fused in its rows"
    return Verdict("hidden", blocks([rows // count] * count), words)


def _count(candidate: Candidate) -> int | None:
    """Number of fused blocks, 1 where it cannot be known; None for a layer that modulates nothing."""
    above = [module for module in candidate.modules[1:] if not isinstance(module, nn.ModuleList | nn.Sequential)]
    if not above:
        return None
    holder = above[0]
    kind = type(holder).__name__
    known = _COUNTS.get((kind, candidate.last))
    if known is not None:
        return known
    rows, cols = candidate.shape
    # a residual block of a U-Net adds the condition to its features, or scales and shifts them by it
    scales = getattr(holder, "use_scale_shift_norm", None) is True
    if scales or getattr(holder, "time_embedding_norm", None) == "scale_shift":
        return 2 if rows == 2 * (getattr(holder, "out_channels", None) or 0) else None
    named = any(_NAMES.fullmatch(part) for part in candidate.path[-2:])
    if not (named or _CLASSES.search(kind)):
        return None
    width = _norm_width(holder) or cols
    return rows // width if rows % width == 0 else 1


def _norm_width(holder: nn.Module) -> int | None:
    """Features of the norms that stand beside the layer, which have no gains of their own."""
    for module in children(holder):
        shape = getattr(module, "normalized_shape", None) or getattr(module, "dim", None)
        if isinstance(shape, tuple) and "norm" in type(module).__name__.lower():
            return int(shape[-1])
    return None


_CONDITIONS = naming.names(
    "time_embedding timestep_embedder time_embed time_embedder t_embedder time_mlp time_in t_block adaLN_modulation"
)


def denoiser_output(candidate: Candidate) -> Verdict | None:
    """The last layer of a network conditioned on time predicts noise, not logits: its outputs are no classes.

    Logits may all shift together, noise may not: a rule for heads would be wrong. Denoisers of discrete tokens have
    as many outputs as an embedding has rows, and do lead to logits.
    """
    census = candidate.census
    if id(candidate.param) not in census.heads or id(candidate.param) in census.output_ids:
        return None
    if not is_dense(candidate) or any(part in naming.HEADS for part in candidate.path):
        return None
    conditioned = any(_CONDITIONS & set(name.split(".")[:-2]) for name in census.shapes)
    rows = {c.shape[0] for c in census.everything if isinstance(c.owner, nn.Embedding | nn.EmbeddingBag)}
    if not conditioned or candidate.shape[0] in rows:
        return None
    said = f"{owner_words(candidate)} {candidate.label}".rstrip()
    return Verdict("hidden", "matrix", f"{said}: the network is conditioned on time, its last layer gives no logits")
