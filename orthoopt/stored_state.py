"""State as it lies between steps, and as a step wants it: momenta in bfloat16 or eight bits against float32.

What is kept small is what ``Rule.init`` makes shaped as the parameter: momenta, moments, error feedback. Counts, and
what belongs to matrices, stay as they are.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from orthoopt import eight_bit, rules
from orthoopt.nonfinite import local_part
from orthoopt.rules import Options, Rule, key_of, options_of
from orthoopt.stochastic_rounding import to_bfloat16

POSITION = "rounding"
"""Key of the 0-d int64 that says where a parameter's noise is, see :mod:`orthoopt.stochastic_rounding`.

It lies in the state of every parameter whose state or self is not kept as a step computes it.
"""
SCALE = ".scale"
"""Behind the key of what is kept in eight bits: its scales."""


def opened(state: Mapping[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """The state as a step wants it: tensors of its own, floating ones in ``dtype`` where they were kept smaller."""
    working: dict[str, Any] = {}
    for key, value in state.items():
        scales = state.get(key + SCALE)
        if scales is not None:
            working[key] = eight_bit.dequantize(value, scales).to(dtype)
        elif isinstance(value, Tensor) and value.dtype in (torch.bfloat16, torch.float16):
            working[key] = value.to(dtype)
        elif not (key.endswith(SCALE) and key.removesuffix(SCALE) in state):
            working[key] = value.clone() if isinstance(value, Tensor) else value
    return working


def closed(
    state: Mapping[str, Any], rule: Rule, options: Options, shape: torch.Size, state_dtype: str
) -> dict[str, Any]:
    """The state as it is to lie: what :func:`opened` gave, moved by a step, in the dtype of its group.

    Args:
        state: with a position if anything has to be rounded stochastically.
        rule: the parameter's rule.
        options: the rule's.
        shape: the parameter's.
        state_dtype: of its group.
    """
    if state_dtype == "auto":
        return dict(state)
    lying: dict[str, Any] = {}
    for key, value in state.items():
        if key not in _small_keys(rule.name, key_of(options)) or value.shape != shape:
            lying[key] = value
        elif state_dtype == "float32":
            lying[key] = value.to(torch.float32)
        elif state_dtype == "bfloat16":
            lying[key] = rounded(value, state[POSITION], key)
        elif key.endswith("_sq") or value.numel() < eight_bit.MIN_ELEMENTS:
            # A square that is rounded to zero would be divided by.
            lying[key] = value.to(torch.float32)
        else:
            lying[key], lying[key + SCALE] = eight_bit.quantize(value)
    return lying


def rounded(x: Tensor, position: Tensor, salt: str) -> Tensor:
    """``x`` in bfloat16, rounded stochastically; a shard as its part of the whole is."""
    local = local_part(x)
    if local is x:
        return to_bfloat16(x, position, salt)
    # A private name, the same from 2.9 to 2.13; the public ways to a shard's place communicate.
    from torch.distributed.tensor import DTensor
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    assert isinstance(x, DTensor)
    _, offset = compute_local_shape_and_global_offset(x.shape, x.device_mesh, x.placements)
    low = to_bfloat16(local, position, salt, offset, x.shape)
    return DTensor.from_local(low, x.device_mesh, x.placements, run_check=False, shape=x.shape, stride=x.stride())


@functools.cache
def _small_keys(rule: str, options: Any) -> frozenset[str]:
    """The keys of what is shaped as the parameter."""
    like = torch.empty(1, 2, device="meta")
    made = rules.get(rule).init(like, options_of(options))
    return frozenset(key for key, value in made.items() if isinstance(value, Tensor) and value.shape == like.shape)
