"""One check for all routing tests: expectations written by hand, against what is said of a model."""

from __future__ import annotations

import re
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from orthoopt.roles import ROLES, ParameterRole, classify, roles
from orthoopt.views import parse_view

Expected = dict[str, tuple[str, str]]

VECTOR = ("vector", "vector")
MATRIX = ("hidden", "matrix")
CONV = ("conv", "flatten")
HEAD = ("lm_head", "matrix")
ATTENTION = ("attention", "matrix")
MLP_IN = ("mlp_in", "matrix")
MLP_OUT = ("mlp_out", "matrix")


def check(
    params: nn.Module | Iterable[tuple[str, Tensor]], expected: Expected, common: Expected | None = None
) -> dict[str, ParameterRole]:
    """Assert role and view of every parameter; the first pattern that matches counts, and every one must serve.

    Only those in ``common``, which networks of a kind share, may find nothing. Returns what is said, by name.
    """
    patterns = {**expected, **(common or {})}
    if not isinstance(params, nn.Module):
        params = list(params)
    listed = roles(params)
    unused, wrong = set(expected), []
    for entry in listed:
        pattern = next((p for p in patterns if re.fullmatch(p, entry.name)), None)
        assert pattern is not None, f"no expectation for {entry}"
        unused.discard(pattern)
        if (entry.role, entry.view) != patterns[pattern]:
            wrong.append(f"{entry}, not {patterns[pattern]}")
    assert not wrong, "\n".join(wrong)
    assert not unused, f"patterns that match nothing: {unused}"
    for _, param, role, view, reason, *_ in classify(params):
        assert role in ROLES and reason
        if parse_view(view).is_matrix:
            assert all(min(shape[-2:]) >= 2 for shape in parse_view(view).piece_shapes(tuple(param.shape)))
    return {entry.name: entry for entry in listed}


def runs(model: nn.Module, *shapes: tuple[int, ...]) -> Tensor:
    """The model's output for inputs of these shapes, both on the meta device: that its modules fit together."""
    return model(*(torch.empty(shape, device="meta") for shape in shapes))
