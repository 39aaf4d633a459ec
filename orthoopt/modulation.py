"""Layers that turn a condition into shifts, scales and gates of other layers: several maps above each other in one.

All blocks have the width of the features they modulate, so the number of blocks is known as soon as that width is;
which of them is a shift and which a gate makes no difference.
"""

from __future__ import annotations

import re

from torch import nn

from orthoopt import naming
from orthoopt.census import Candidate, children, stated
from orthoopt.fused import fused_outputs
from orthoopt.heads import is_dense
from orthoopt.layers import Verdict, owner_words
from orthoopt.layouts import blocks

# diffusers' adaptive norms, flux's and lumina's modulations
_CLASSES = re.compile(r"AdaLayerNorm|AdaLN|AdaNorm|LayerNormZero|RMSNormZero|Modulation$")
# facebook's DiT and its descendants, MMDiTs
_NAMES = re.compile(r"(ada_?ln_)?modulation|(img|txt)_mod", re.IGNORECASE)
# Where nothing beside the layer has the width of the blocks: (class, layer) -> number of blocks
_COUNTS = {
    ("AdaGroupNorm", "linear"): 2,
    ("AuraFlowPreFinalBlock", "linear"): 2,
    ("DiTTransformer2DModel", "proj_out_1"): 2,
}
# Wan's ``time_projection`` and its descendants' ``time_proj`` are unflattened into six
_SIX = re.compile(r"\w*Time\w*Embedding")


def modulation(candidate: Candidate) -> Verdict | None:
    """Shifts, scales and gates: the layers that make them, and the tables that are added to them."""
    if _is_table(candidate.leaf):
        return Verdict("vector", "vector", f"{candidate.leaf} is added to shifts and scales, one row for each")
    if not candidate.modules or not is_dense(candidate):
        return None
    count, rows = _count(candidate), candidate.shape[0]
    if count is None or fused_outputs(candidate, rows) is not None:  # FocalNet's modulation is a mixer
        return None
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
    known = _COUNTS.get((kind, candidate.last)) or _stated_count(candidate, holder)
    rows, cols = candidate.shape
    around = candidate.path[-2:]
    if rows == 6 * cols and (candidate.last == "time_proj" and _SIX.fullmatch(kind) or "time_projection" in around):
        return 6
    if known is not None:
        return known
    # a residual block of a U-Net adds the condition to its features, or scales and shifts them by it
    if stated(holder, "use_scale_shift_norm") is True or stated(holder, "time_embedding_norm") == "scale_shift":
        out = stated(holder, "out_channels")
        return 2 if isinstance(out, int) and rows == 2 * out else None
    named = next((part for part in reversed(around) if not part.isdigit()), "")  # of adaLN_modulation.1 the first
    if not _NAMES.fullmatch(named) and (kind.endswith("Block") or not _CLASSES.search(kind)):
        return None
    width = _norm_width(holder) or cols
    return rows // width if rows % width == 0 else 1


def _stated_count(candidate: Candidate, holder: nn.Module) -> int | None:
    """Blocks of the flow heads of speech models, which say how often they chunk."""
    chunks = stated(holder, "num_chunks")
    return chunks if isinstance(chunks, int) and candidate.last in ("adaln_proj", "linear_1") else None


def _norm_width(holder: nn.Module) -> int | None:
    """Features of the norms that stand beside the layer, which have no gains of their own."""
    for module in children(holder):
        shape = stated(module, "normalized_shape") or stated(module, "dim")
        if isinstance(shape, tuple) and "norm" in type(module).__name__.lower():
            return int(shape[-1])
    return None


_AUTOENCODER = naming.names("autoencoder vae vqvae vqgan")
_CONDITIONS = naming.names(
    "time_embedding timestep_embedder time_embed time_embedder t_embedder time_mlp time_in timestep_proj t_block "
    "adaLN_modulation"
)


def denoiser_output(candidate: Candidate) -> Verdict | None:
    """The last layer of a network that makes pictures or noise, not logits: its outputs are no classes.

    Logits may all shift together, noise may not: a rule for heads would be wrong. Denoisers, known by a layer for the
    time, have as many outputs as an embedding has rows if they do lead to logits, those of discrete tokens.
    """
    census = candidate.census
    may_be_head = id(candidate.param) in census.heads or id(candidate.param) in census.unsure
    if not may_be_head or id(candidate.param) in census.output_ids:
        return None
    if not is_dense(candidate):
        return None
    if any(part in naming.HEADS for part in candidate.path) and not any(map(_modulates, census.shapes)):
        return None
    rows = {c.shape[0] for c in census.everything if isinstance(c.owner, nn.Embedding | nn.EmbeddingBag)}
    why = _makes_no_logits(candidate)
    if why is None or candidate.shape[0] in rows:
        return None
    said = f"{owner_words(candidate)} {candidate.label}".rstrip()
    return Verdict("hidden", "matrix", f"{said}: {why}, its last layer gives no logits")


def _is_table(leaf: str) -> bool:
    """Shifts and scales that are learned beside those that a layer makes of the condition."""
    return leaf == "modulation" or leaf.endswith(("scale_shift_table", "modulate_table"))


def _modulates(name: str) -> bool:
    *path, leaf = name.split(".")
    return _is_table(leaf) or "adaLN_modulation" in path


def _makes_no_logits(candidate: Candidate) -> str | None:
    if any(_CONDITIONS & set(name.split(".")[:-2]) for name in candidate.census.shapes):
        return "the network is conditioned on time"
    for module in candidate.modules:
        if _AUTOENCODER & naming.words(type(module).__name__):
            return f"{type(module).__name__} is an autoencoder"
    return None
