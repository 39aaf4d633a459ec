"""torch's recurrent layers: their gates are blocks of rows, all of the hidden size."""

from __future__ import annotations

import re

from torch import nn

from orthoopt.census import Candidate
from orthoopt.layers import Verdict, owner_words
from orthoopt.layouts import blocks

_NAME = re.compile(r"weight_(ih|hh|hr)(?P<layer>(_l\d+(_reverse)?)?)")


def recurrent(candidate: Candidate) -> Verdict | None:
    """nn.RNN, nn.GRU, nn.LSTM and their cells; by name too, where the recurrent weights show the hidden size."""
    name = _NAME.fullmatch(candidate.leaf)
    if name is None or candidate.param.ndim != 2:
        return None
    owner = candidate.owner
    if owner is None:
        hidden = _hidden_size(candidate, name["layer"])
    elif isinstance(owner, nn.RNNBase | nn.RNNCellBase):
        hidden = owner.hidden_size
    else:
        return None
    if name[1] == "hr":
        return Verdict("hidden", "matrix", f"{owner_words(candidate)} projects its hidden state")
    gates, left = divmod(candidate.shape[0], hidden) if hidden else (1, 0)
    if gates > 1 and not left:
        return Verdict("hidden", blocks([hidden] * gates), f"{owner_words(candidate)} {gates} gates fused in its rows")
    return Verdict("hidden", "matrix", f"{owner_words(candidate)} recurrent weights")


def _hidden_size(candidate: Candidate, layer: str) -> int:
    """From the projection (projected, hidden) where there is one, else from the recurrent weights (gates, hidden)."""
    shape = candidate.within(f"weight_hr{layer}") or candidate.within(f"weight_hh{layer}")
    return shape[1] if shape is not None and len(shape) == 2 else 0
