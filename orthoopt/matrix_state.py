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
from orthoopt.rules import Options, Rule, hashable
from orthoopt.views import View, are_views, parse_view


def new_state(rule: Rule, param: Tensor, view: View, options: Options) -> dict[str, Any]:
    """The whole state of one parameter before its first step.

    Args:
        rule: its rule.
        param: shape, device and dtype to follow.
        view: how the parameter is seen as matrices.
        options: the rule's options.
    """
    state = rule.init(param, options)
    if not rule.is_matrix:
        return state
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
    return _state_keys(rule.name, shape, view.spec, hashable(options))


@functools.lru_cache(maxsize=4096)
def _state_keys(rule: str, shape: tuple[int, ...], view: str, options: Any) -> frozenset[str]:
    like = torch.empty(shape, device="meta")
    return frozenset(expected_state(rules.get(rule), like, parse_view(view), dict(options)))


class Pieces:
    """A tensor seen as its matrices, which are to be written in place."""

    def __init__(self, tensor: Tensor, view: View) -> None:
        self.matrices = view.pieces(tensor)
        self._tensor = tensor
        self._view = view
        self._are_views = are_views(self.matrices, tensor)

    def put_back(self) -> None:
        """Write the matrices to the tensor where they are copies of it."""
        if not self._are_views:
            self._tensor.copy_(self._view.merge(self.matrices, tuple(self._tensor.shape)))


def of_pieces(
    rule: Rule, state: Mapping[str, Any], param: Tensor, view: View, options: Options
) -> tuple[list[dict[str, Any]], list[Pieces]]:
    """For each piece of a parameter the state that ``rule.advance`` gets, to be moved in place.

    Returns the states, and what must be put back afterwards.
    """
    shapes = view.piece_shapes(tuple(param.shape))
    if rule.advance is None:
        return [{} for _ in shapes], []
    own = rule.init_matrix(torch.empty(shapes[0], device="meta"), options)
    states: list[dict[str, Any]] = [
        {key: state[_numbered(key, index, len(shapes))] for key in own} for index in range(len(shapes))
    ]
    viewed = {key: Pieces(state[key], view) for key in rule.viewed if key in state}
    for key, pieces in viewed.items():
        for piece, matrix in zip(states, pieces.matrices, strict=True):
            piece[key] = matrix
    return states, list(viewed.values())


def _numbered(key: str, index: int, count: int) -> str:
    return key if count == 1 else f"{key}.{index}"
