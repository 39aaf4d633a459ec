"""State that belongs to matrices: how it lies in an optimizer's state, and how the matrices of a parameter reach it.

A rule with an ``advance`` remembers something about every matrix. What is shaped as the parameter lies in its state as
one tensor and is seen through the parameter's view. What has a shape of its own lies there under its key, or, where a
view takes a parameter apart, once a piece: ``exp_avg.0``, ``exp_avg.1``, ...
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from orthoopt import rules
from orthoopt.rules import Options, Rule, key_of, options_of
from orthoopt.views import View, parse_view


def new_state(rule: Rule, param: Tensor, view: View, options: Options) -> dict[str, Any]:
    """The whole state of one parameter before its first step.

    Args:
        rule: its rule.
        param: shape, device and dtype to follow.
        view: how the parameter is seen as matrices.
        options: the rule's options.
    """
    if hasattr(param, "placements"):
        from torch.distributed.tensor import DTensor

        from orthoopt.distributed import state as distributed_state

        assert isinstance(param, DTensor)
        return distributed_state.new_state(rule, param, view, options)
    state = rule.init(param, options)
    if not rule.is_matrix:
        return state
    for key in rule.viewed:
        if key in state and not view.shares_memory(state[key]):
            state[key] = state[key].contiguous()  # so that its targets are views, and writing them writes it
    shapes = view.piece_shapes(tuple(param.shape))
    for index, shape in enumerate(shapes):
        own = rule.init_matrix(param.new_empty(shape), options)
        state |= {_numbered(key, index, len(shapes)): value for key, value in own.items()}
    return state


def expected_state(rule: Rule, param: Tensor, view: View, options: Options) -> dict[str, Any]:
    """Like :func:`new_state`, as tensors without memory: which keys there are, and of which shapes and dtypes."""
    wide = torch.promote_types(param.dtype, torch.float32)
    return new_state(rule, torch.empty(param.shape, dtype=wide, device="meta"), view, options)


def state_keys(rule: Rule, shape: tuple[int, ...], view: View, options: Options) -> frozenset[str]:
    """The keys of :func:`new_state`; remembered, for it is asked at every step."""
    return _state_keys(rule.name, shape, view.spec, key_of(options))


@functools.lru_cache(maxsize=4096)
def _state_keys(rule: str, shape: tuple[int, ...], view: str, options: Any) -> frozenset[str]:
    like = torch.empty(shape, device="meta")
    return frozenset(expected_state(rules.get(rule), like, parse_view(view), options_of(options)))


def of_pieces(
    rule: Rule, state: Mapping[str, Any], param: Tensor, view: View, options: Options
) -> list[dict[str, Any]]:
    """For each piece of a parameter the state that ``rule.advance`` moves: tensors that share memory with ``state``.

    What is seen through the view has the elements of the piece in their order, see :meth:`View.targets`.
    """
    if rule.advance is None:
        return [{} for _ in view.piece_shapes(tuple(param.shape))]
    shapes = view.piece_shapes(tuple(param.shape))
    own = rule.init_matrix(torch.empty(shapes[0], device="meta"), options)
    pieces: list[dict[str, Any]] = [
        {key: state[_numbered(key, index, len(shapes))] for key in own} for index in range(len(shapes))
    ]
    for key in rule.viewed:
        if key in state:
            for piece, part in zip(pieces, view.targets(state[key]), strict=True):
                piece[key] = part
    return pieces


def _numbered(key: str, index: int, count: int) -> str:
    return key if count == 1 else f"{key}.{index}"
