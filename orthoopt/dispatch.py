"""The dispatcher: model + plan -> torch param groups, every trainable parameter in exactly one."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

from torch import Tensor, nn

from orthoopt import entries, overriding, plan_files, plans, rules
from orthoopt.groups import check_rates
from orthoopt.roles import ROLES, Classified, classify
from orthoopt.views import parse_view

Params: TypeAlias = nn.Module | Iterable[tuple[str, Tensor]] | Iterable[Tensor]
Overrides: TypeAlias = overriding.Overrides

_ROLE_ORDER = {role: place for place, role in enumerate(dict.fromkeys((*plans.MATRIX_ROLES, *ROLES)))}


class Assignment(NamedTuple):
    """One parameter and what a plan makes of it."""

    name: str | None
    param: Tensor
    role: str
    view: str
    reason: str
    group: dict[str, Any]
    """rule, lr, weight_decay, scale and the rule's options."""


def param_groups(
    params: Params,
    plan: plan_files.AnyPlan = "symmetry",
    *,
    lr: float | Tensor = 1e-3,
    weight_decay: float = 0.1,
    overrides: Overrides = (),
    options: Mapping[str, Any] | None = None,
    elsewhere: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """Param groups of strings and numbers for :class:`orthoopt.OrthoOpt`, matrices first.

    Args:
        params: a model (structure decides), named parameters (names and shapes decide), or bare parameters (shapes
            decide, with a warning saying what cannot be seen).
        plan: a ready plan's name (``orthoopt.plans.names()``), role -> entry, or a plan file: its path, which ends in
            .yaml, .yml or .toml, or what ``orthoopt.load_plan`` returned.
        lr: learning rate; a plan's multipliers land in each group's ``lr``.
        weight_decay: for the roles whose plan entry has none of its own.
        overrides: (pattern, entry) pairs or a dict, tried in order before the plan and a plan file's own patterns;
            ``re.search`` on the name, and the first match wins. An entry may hold ``rule``, its options,
            ``lr_multiplier``, ``lr``, ``weight_decay``, ``scale``, ``per_head``, ``role`` and ``view``; what it leaves
            out comes from the plan while the rule stays the same.
        options: given to every entry whose rule has them, such as ``{"momentum": 0.9}``.
        elsewhere: names of parameters that other calls group: a pattern may match these alone.

    Returns:
        Groups with ``params`` as (name, tensor) pairs where there are names.

    Raises:
        TypeError: an option unknown to its rule.
        ValueError: no parameters, an unknown plan, role or rule, or an override pattern that matches nothing.
        OSError: a plan file that cannot be read.
    """
    assignments = assign(
        params, plan, lr=lr, weight_decay=weight_decay, overrides=overrides, options=options, elsewhere=elsewhere
    )
    groups: dict[tuple[Any, ...], dict[str, Any]] = {}
    for name, param, role, seen, _, group in sorted(assignments, key=lambda a: _ROLE_ORDER[a.role]):
        view = seen if rules.get(group["rule"]).uses_views else "vector"
        key = (role, view, *(repr(item) for item in group.items()))
        entry = groups.setdefault(key, {"params": [], "role": role, "view": view, **group})
        entry["params"].append(param if name is None else (name, param))
    return list(groups.values())


def assign(
    params: Params,
    plan: plan_files.AnyPlan = "symmetry",
    *,
    lr: float | Tensor = 1e-3,
    weight_decay: float = 0.1,
    overrides: Overrides = (),
    options: Mapping[str, Any] | None = None,
    elsewhere: Sequence[str] = (),
) -> list[Assignment]:
    """Role, view and group options of every trainable parameter, in the model's order; see :func:`param_groups`."""
    check_rates(lr, weight_decay, "param_groups")  # as they were given, before multipliers
    chosen = plan_files.resolve(plan, options)
    classified = classify(params)
    if not classified:
        raise ValueError("no trainable parameters: the model is frozen or the iterable of parameters is empty")
    if classified[0].name is None:
        _warn_of_bare_parameters(classified)
    patterns = [*overriding.read(overrides), *chosen.overrides]
    aliases = {alias: str(item.name) for item in classified for alias in item.aliases}
    changes = overriding.match([item.name for item in classified], patterns, elsewhere, aliases)
    return [
        _assignment(item, chosen, change, lr, weight_decay) for item, change in zip(classified, changes, strict=True)
    ]


def _assignment(
    item: Classified,
    chosen: plan_files.Resolved,
    change: overriding.Override | None,
    lr: float | Tensor,
    weight_decay: float,
) -> Assignment:
    role, view, reason = item.role, item.view, item.reason
    entry: dict[str, Any] = chosen.plan[role]
    given: Mapping[str, Any] = {} if change is None else change.entry
    if change is not None:
        role, view = given.get("role", role), given.get("view", view)
        own = {key: value for key, value in given.items() if key not in ("role", "view")}
        entry = entries.changed(chosen.plan[role], own, change.where)
        reason = f"{change.where}; by itself: {reason}"
    elif role in chosen.absent:
        reason = f"{reason}; the plan has no {role!r}, so {entry['rule']}"
    if entry.get("per_head") and role == item.role == "attention" and "view" not in given:
        view, words = item.per_head or (view, "not per head: its heads are not known, seen whole")
        reason = f"{reason}; {words}"
    if rules.get(entry["rule"]).measure is not None and role == item.role and "view" not in given:
        view = item.per_vector or view
    if rules.get(entry["rule"]).is_matrix and not parse_view(view).is_matrix:
        # A matrix rule on something seen as a vector can only come from the user; the optimizer checks the shape.
        view = "flatten" if item.param.ndim > 3 else "matrix"
    group = entries.group_options(entry, lr, weight_decay)
    of_shape = rules.get(entry["rule"]).of_shape(tuple(item.param.shape), group)
    group |= {key: value for key, value in of_shape.items() if key not in entry}
    if item.padding_row is not None and role == "embedding" and view == "matrix":
        # An elementwise rule leaves a row without gradients alone by itself.
        group |= {"padding_row": item.padding_row} if rules.get(entry["rule"]).is_matrix else {}
    return Assignment(item.name, item.param, role, view, reason, group)


_warned_of_bare_parameters = False


def _warn_of_bare_parameters(classified: Sequence[Classified]) -> None:
    """Say once what parameters without names hide."""
    global _warned_of_bare_parameters
    if _warned_of_bare_parameters:
        return
    _warned_of_bare_parameters = True
    matrices = sum(item.role in plans.MATRIX_ROLES for item in classified)
    unknown = sum(item.role == "unknown" for item in classified)
    warnings.warn(
        f"bare parameters: shapes alone decided, {matrices} of {len(classified)} are treated as hidden matrices and "
        f"{unknown} as unknown. Embeddings, heads, routers, fused and transposed matrices cannot be told apart "
        "without names: pass the model itself, or model.named_parameters()",
        UserWarning,
        stacklevel=4,
    )
