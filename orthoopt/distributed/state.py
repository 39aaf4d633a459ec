"""State of distributed parameters: where it lies, and this rank's part of it.

What is shaped as the parameter is a DTensor like it. What belongs to matrices is a plain tensor with the same values on
every rank, unless the parameter's batch dimension alone is cut: there a rank has whole matrices, and their state is cut
like them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.distributed.tensor import DTensor

from orthoopt.distributed.layout import keeps_batch, layout_of, plain
from orthoopt.rules import Options, Rule
from orthoopt.views import View


def new_state(rule: Rule, param: DTensor, view: View, options: Options) -> dict[str, Any]:
    """As :func:`orthoopt.matrix_state.new_state`, of a distributed parameter."""
    state = rule.init(param, options)
    if not rule.is_matrix:
        return state
    local = plain(param)
    in_batches = is_cut_into_batches(param, view)
    like = local if in_batches else local.new_empty(param.shape, device="meta")
    shapes = view.piece_shapes(tuple(like.shape))
    for index, shape in enumerate(shapes):
        own = rule.init_matrix(local.new_empty(shape), options)
        suffix = "" if len(shapes) == 1 else f".{index}"
        for key, value in own.items():
            whole = _spread(value, param) if in_batches and isinstance(value, Tensor) else value
            state[key + suffix] = whole
    return state


def is_cut_into_batches(param: DTensor, view: View) -> bool:
    """Whether every rank has whole matrices: the first dimension is their batch, and alone is cut."""
    cut = layout_of("a parameter", param).sharded
    return cut == {0} and keeps_batch(view, tuple(param.shape))


def local_state(state: Mapping[str, Any]) -> dict[str, Any]:
    """This rank's parts of a parameter's state."""
    return {key: plain(value) if isinstance(value, DTensor) else value for key, value in state.items()}


def write_back(state: dict[str, Any], local: Mapping[str, Any]) -> None:
    """Take over what a rule has put in the place of what :func:`local_state` gave."""
    for key, value in local.items():
        before = state.get(key)
        if not isinstance(before, DTensor):
            state[key] = value
        elif plain(before) is not value:
            state[key] = DTensor.from_local(
                value, before.device_mesh, before.placements, run_check=False,
                shape=before.shape, stride=before.stride(),
            )  # fmt: skip


def _spread(local: Tensor, param: DTensor) -> DTensor:
    """State of the matrices that this rank has, as part of all of them."""
    shape = (param.shape[0], *local.shape[1:])
    stride = tuple(local.new_empty(shape, device="meta").stride())
    return DTensor.from_local(
        local, param.device_mesh, param.placements, run_check=False, shape=local.new_empty(shape, device="meta").shape,
        stride=stride,
    )  # fmt: skip
