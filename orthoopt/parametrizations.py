"""Parameters that a layer does not use as they are: what torch's parametrizations start from, and FSDP's flat ones.

Weight norm and spectral norm divide a tensor by a norm: it still acts as the layer's matrix, up to lengths. Others
compute the matrix from something of another kind, whose rows and columns are no features.
"""

from __future__ import annotations

import re

from torch import nn

from orthoopt.census import Candidate
from orthoopt.layers import Verdict, owner_words

_ORIGINAL = re.compile(r"(?:^|\.)parametrizations\.(?P<tensor>\w+)\.original(?P<number>\d*)$")
_TORCH = "torch.nn.utils.parametrizations"
_NORMS = ("_WeightNorm", "_SpectralNorm")
_WITH_MATRICES = (nn.Linear, nn.Embedding, nn.EmbeddingBag, nn.modules.conv._ConvNd)


def parametrized(candidate: Candidate) -> Verdict | None:
    """Lengths of weight norm, coordinates of rotations, and whatever an unknown parametrization starts from."""
    if candidate.leaf == "_flat_param":
        return Verdict(
            "unknown",
            "vector",
            "_flat_param is many parameters in one, flattened by FSDP: wrap with use_orig_params=True, or fully_shard",
        )
    if candidate.param.ndim == 1 and candidate.leaf == "weight" and isinstance(candidate.owner, _WITH_MATRICES):
        words = (
            "its weight has one dimension: a shard that FSDP flattened, or a packed weight; fully_shard keeps shapes"
        )
        return Verdict("unknown", "vector", f"{owner_words(candidate)}: {words}")
    original = _ORIGINAL.search(candidate.name or "")
    if original is None or candidate.owner is None or candidate.param.ndim < 2:
        return None
    steps = list(candidate.owner.get_submodule(f"parametrizations.{original['tensor']}").children())
    kinds = [type(step).__name__ if type(step).__module__ == _TORCH else "" for step in steps]
    tensor = f"{owner_words(candidate)} {original['tensor']}"
    if all(kind in _NORMS for kind in kinds):
        lengths = "_WeightNorm" in kinds and original["number"] == "0"
        return Verdict("vector", "vector", f"{tensor}: the lengths that weight norm learns") if lengths else None
    if all(kind in (*_NORMS, "_Orthogonal") for kind in kinds):
        return Verdict("vector", "vector", f"{tensor}: coordinates of an orthogonal matrix, used entry by entry")
    named = " after ".join(type(step).__name__ for step in reversed(steps))
    return Verdict("unknown", "matrix", f"{tensor} is computed from it by {named}, in no way known here")
