"""Param groups: what is wrong with one is said with its name, value and options."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from orthoopt import OrthoOpt


@pytest.mark.parametrize(
    ("group", "error", "message"),
    [
        ({}, ValueError, "has no 'rule'; known rules: adamw"),
        ({"rule": "spectrl"}, ValueError, "did you mean 'spectral'"),
        ({"rule": "spectral", "momentun": 0.9}, TypeError, "did you mean 'momentum'"),
        ({"rule": "spectral", "momentum": 1.5}, ValueError, "param group 0.*momentum must be .* got 1.5"),
        ({"rule": "spectral", "ns_steps": 0}, ValueError, "steps must be"),
        ({"rule": "spectral", "ns_coefficients": "nope"}, ValueError, "unknown coefficients 'nope'"),
        ({"rule": "spectral", "scale": "big"}, ValueError, "scale='big'.*match_rms_adamw"),
        ({"rule": "spectral", "view": "vector"}, ValueError, "needs matrices"),
        ({"rule": "spectral", "view": "split(3,3)"}, ValueError, "w: view 'split"),
        ({"rule": "spectral", "view": "transposed"}, ValueError, "did you mean 'transpose'"),
        ({"rule": "adamw", "betas": (0.9,)}, ValueError, "betas"),
        ({"rule": "adamw", "betas": (0.9, 1.0)}, ValueError, r"betas\[1\]"),
        ({"rule": "adamw", "eps": -1.0}, ValueError, "eps must not be negative"),
        ({"rule": "adamw", "scale": "none"}, TypeError, "'scale' is for matrix rules"),
        ({"rule": "adamw", "lr": -1.0}, ValueError, "lr must be .* got -1.0"),
        ({"rule": "adamw", "lr": math.nan}, ValueError, "lr must be"),
        ({"rule": "adamw", "lr": torch.tensor([1.0, 2.0])}, ValueError, "Tensor lr must be 1-element"),
        ({"rule": "adamw", "weight_decay": "x"}, ValueError, "weight_decay must be .* got 'x'"),
    ],
)
def test_bad_groups_are_named(group: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        OrthoOpt([{"params": [("w", nn.Parameter(torch.randn(4, 5)))], **group}])


def test_a_vector_under_a_matrix_rule_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="bias"):
        OrthoOpt([{"params": [("bias", nn.Parameter(torch.randn(4)))], "rule": "spectral"}])


@pytest.mark.parametrize(
    ("params", "error", "message"),
    [
        ([nn.Parameter(torch.randn(2, 2))], ValueError, "has no 'rule'"),
        (nn.Parameter(torch.randn(2, 2)), TypeError, "should be an iterable|Tensor"),
        ([], ValueError, "empty parameter list"),
        ([{"params": [("a", torch.ones(2)), torch.ones(2)], "rule": "adamw"}], ValueError, "names"),
        ([{"params": [3], "rule": "adamw"}], TypeError, "tensors"),
        ([{"params": [nn.Parameter(torch.zeros(2, dtype=torch.complex64))], "rule": "adamw"}], RuntimeError, "complex"),
    ],
)  # fmt: skip
def test_bad_params_are_answered(params: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        OrthoOpt(params)
