"""Param groups from whatever a constructor was given."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from torch import Tensor, nn

from orthoopt import plans
from orthoopt.coefficients import Triple
from orthoopt.dispatch import Overrides, Params, param_groups
from orthoopt.plan_files import AnyPlan

Coefficients: TypeAlias = str | Triple | Sequence[Triple]


def groups_from(
    params: Params | Iterable[Mapping[str, Any]],
    plan: AnyPlan,
    lr: float | Tensor,
    weight_decay: float,
    overrides: Overrides,
    options: Mapping[str, Any],
) -> list[dict[str, Any]]:
    """Param groups under a plan from whatever a constructor was given.

    Groups that have a ``rule`` stay as they are; others are routed by names or shapes, with their own lr and decay.
    """
    if isinstance(params, nn.Module):
        return param_groups(params, plan, lr=lr, weight_decay=weight_decay, overrides=overrides, options=options)
    if isinstance(params, Tensor):
        raise TypeError(
            "params argument given to the optimizer should be an iterable of Tensors or dicts, or a model, "
            "but got a single Tensor"
        )
    entries: list[Any] = list(params)
    if not entries:
        raise ValueError("optimizer got an empty parameter list")
    if not isinstance(entries[0], Mapping):
        return param_groups(entries, plan, lr=lr, weight_decay=weight_decay, overrides=overrides, options=options)
    groups: list[dict[str, Any]] = []
    listed = [{**group, "params": _listed(group["params"])} for group in entries]
    contents = [_named(group) for group in listed]
    names = [item[0] for inner in contents for item in inner if isinstance(item, tuple)]
    for group, inner in zip(listed, contents, strict=True):
        if "rule" in group:
            groups.append(group)
            continue
        rest = {k: v for k, v in group.items() if k not in ("params", "param_names", "lr", "weight_decay")}
        groups += param_groups(
            inner,
            plan,
            lr=group.get("lr", lr),
            weight_decay=group.get("weight_decay", weight_decay),
            overrides=overrides,
            options={**options, **rest},
            elsewhere=names,
        )
    return groups


def _listed(params: Any) -> list[Any]:
    return [params] if isinstance(params, Tensor) else list(params)  # an iterator can be read once


def _named(group: Mapping[str, Any]) -> list[Any]:
    """The parameters of a group, as (name, tensor) pairs where they have names."""
    names = group.get("param_names")
    return group["params"] if names is None else list(zip(names, group["params"], strict=True))


def in_own_units(plan: str, adam_lr: float | Tensor | None, weight_decay: float) -> plans.Plan:
    """A ready plan whose matrix rule has units of its own, brought to them.

    Args:
        plan: its name.
        adam_lr: learning rate of AdamW's groups, so that ``lr`` is the matrix rule's alone, without the plan's
            multiplier. None leaves the multiplier between the two.
        weight_decay: of the matrix rule's groups.
    """
    entries = plans.get(plan)
    for entry in entries.values():
        adamw = entry["rule"] == "adamw"
        if not adamw:
            entry["weight_decay"] = weight_decay
        if adam_lr is not None and adamw:
            entry["lr"] = adam_lr
        elif adam_lr is not None:
            entry.pop("lr_multiplier", None)
    return entries
