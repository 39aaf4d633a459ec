"""Which parameter gets which rule, and why."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from orthoopt import plan_files, rules
from orthoopt.dispatch import Assignment, Overrides, Params, assign
from orthoopt.explanation import Explanation, Row, Share
from orthoopt.flops import Flops, step_flops
from orthoopt.matrix_state import expected_state
from orthoopt.views import parse_view

__all__ = ["Explanation", "Row", "Share", "explain"]


def explain(
    params: Params,
    plan: plan_files.AnyPlan = "symmetry",
    *,
    lr: float | Tensor = 1e-3,
    weight_decay: float = 0.1,
    overrides: Overrides = (),
    options: Mapping[str, Any] | None = None,
) -> Explanation:
    """Say which parameter gets which rule, and why. Arguments and errors are those of ``param_groups``.

    A model on the meta device does; nothing is allocated.
    """
    model = type(params).__name__ if isinstance(params, nn.Module) else ""
    assignments = assign(params, plan, lr=lr, weight_decay=weight_decay, overrides=overrides, options=options)
    rows = [_row(assignment, position) for position, assignment in enumerate(assignments)]
    return Explanation(rows, plan_files.name_of(plan), float(lr), float(weight_decay), model)


def _row(assignment: Assignment, position: int) -> Row:
    """One parameter's row."""
    param, group = assignment.param, assignment.group
    rule, shape = rules.get(group["rule"]), tuple(param.shape)
    view = assignment.view if rule.uses_views else "vector"
    # Of what a step costs, the learning rate and what the group is called decide nothing.
    decisive = {key: value for key, value in group.items() if key not in ("rule", "lr", "initial_lr", "role", "view")}
    state, flops = _costs(rule.name, shape, param.dtype, view, rules.key_of(decisive))
    return Row(
        name=f"params[{position}]" if assignment.name is None else assignment.name,
        shape=shape,
        role=assignment.role,
        view=view,
        rule=rule.name,
        lr=float(group["lr"]),
        weight_decay=float(group["weight_decay"]),
        reason=assignment.reason + _notes(rule, shape, view, group),
        state_bytes=state,
        flops=None if flops is None else flops.total,
        matmul_flops=None if flops is None else flops.matmul,
        options={key: value for key, value in group.items() if key not in ("rule", "lr", "weight_decay")},
    )


@functools.lru_cache(maxsize=4096)
def _costs(rule: str, shape: tuple[int, ...], dtype: torch.dtype, view: str, key: Any) -> tuple[int, Flops | None]:
    """Bytes of the state of one parameter, and FLOPs of a step; remembered, for the parameters of a model are alike."""
    group = {**rules.options_of(key), "rule": rule, "view": view, "lr": 1.0}
    # Low-precision parameters have state in float32.
    state = expected_state(rules.get(rule), torch.empty(shape, dtype=dtype, device="meta"), parse_view(view), group)
    size = sum(v.numel() * v.element_size() for v in state.values() if isinstance(v, Tensor))
    try:
        return size, step_flops(shape, group, dtype)
    except (RuntimeError, NotImplementedError):  # torch's own, for a rule that reads values: here there are none
        return size, None


def _notes(rule: rules.Rule, shape: tuple[int, ...], view: str, options: Mapping[str, Any]) -> str:
    """What the rule has to say about the matrices of a parameter, each thing once, after a semicolon."""
    if not rule.is_matrix:
        return ""
    notes = dict.fromkeys(rule.note(piece[-2], piece[-1], options) for piece in parse_view(view).piece_shapes(shape))
    return "".join(f"; {note}" for note in notes if note)
