"""Param groups: completed with defaults and checked, before an optimizer takes them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from orthoopt import rules
from orthoopt.nonfinite import check_policy, host_can_read
from orthoopt.rules._options import check_nonnegative
from orthoopt.scale import check_scale
from orthoopt.state_format import STATE_FORMAT, check_format
from orthoopt.step_options import DEFAULTS, check_dtype, check_options
from orthoopt.views import parse_view
from orthoopt.weight_decay import check_mode

OPTIMIZER_KEYS = (
    "params",
    "param_names",
    "role",
    "rule",
    "view",
    "padding_row",
    "scale",
    "lr",
    "weight_decay",
    "weight_decay_mode",
    "maximize",
    "nonfinite",
    "state_format",
    *DEFAULTS,
)

# What schedulers and frameworks write into groups; none of it means anything to a step.
FOREIGN_KEYS = (
    "name", "initial_lr", "max_lr", "min_lr", "base_lr", "swa_lr", "lr_scale", "lr_multiplier",
    "momentum", "betas", "max_momentum", "base_momentum",
)  # fmt: skip


def complete_group(group: Mapping[str, Any], defaults: Mapping[str, Any], number: int) -> dict[str, Any]:
    """A param group with every option filled in and checked.

    Args:
        group: what the user or :func:`orthoopt.param_groups` wrote; left as it is.
        defaults: the optimizer's defaults (lr, weight_decay, ...).
        number: the group's place, for messages.

    Returns:
        A new dict, ``params`` a list.

    Raises:
        TypeError: an unknown key, or params that are neither tensors nor (name, tensor) pairs.
        ValueError: no or an unknown rule, a bad value, or a view that does not fit a parameter.
    """
    if not isinstance(group, Mapping):
        raise TypeError(
            f"OrthoOpt takes param groups, dicts with a 'rule', got {type(group).__name__}; "
            "orthoopt.param_groups(model) makes them, and constructors such as orthoopt.Muon take bare parameters"
        )
    where = f"param group {number}"
    if "rule" not in group:
        raise ValueError(
            f"{where} has no 'rule'; known rules: {', '.join(rules.names())}. orthoopt.param_groups(model) makes "
            "groups with rules; without the model's names a rule cannot be guessed"
        )
    if "params" not in group:
        raise ValueError(f"{where} has no 'params'; its keys: {', '.join(map(str, group))}")
    rule = _rule_of(group, where)
    rule.reject_unknown(list(group), (*OPTIMIZER_KEYS, *FOREIGN_KEYS), where)
    complete = {**defaults, **rule.defaults, **group}
    pairs = _named(group["params"], group.get("param_names"), where)
    complete |= _of_shapes(rule, group, complete, pairs, where)
    complete["params"] = [pair if pair[0] is not None else pair[1] for pair in pairs]
    complete.pop("param_names", None)
    check_format([complete])
    complete["state_format"] = STATE_FORMAT
    if rule.is_matrix:
        complete.setdefault("view", _default_view(tensor for _, tensor in pairs))
        complete.setdefault("scale", rule.default_scale)
    else:
        complete["view"] = complete.get("view", "vector") if rule.uses_views else "vector"
        if "scale" in group:
            raise TypeError(f"{where}: 'scale' is for matrix rules, the rule is {rule.name!r}")
    _check_numbers(complete, where)
    check_values(complete, where)
    view = parse_view(complete["view"])
    for name, tensor in pairs:
        check_dtype(complete, tensor, name, where)
        if view.is_matrix:
            _check_fits(view.spec, tensor, name, where)
        if "padding_row" in complete:
            _check_padding_row(complete, tensor, name, where)
    return complete


def check_values(group: Mapping[str, Any], where: str) -> None:
    """Raise unless every value of a complete group, but lr and weight decay, is one that its key may have.

    Raises:
        TypeError: a rule that is no string.
        ValueError: naming the key, the value and what is allowed.
    """
    rule = _rule_of(group, where)
    for key in (*rule.defaults, *(("scale",) if rule.is_matrix else ())):
        if key not in group:
            raise ValueError(f"{where} has no {key!r} any more, an option of rule {rule.name!r}")
    check_mode(group["weight_decay_mode"], where)
    check_policy(group["nonfinite"], where)
    check_options(group, where)
    if not isinstance(group["maximize"], bool):
        raise ValueError(f"{where}: maximize must be True or False, got {group['maximize']!r}")
    if not isinstance(group.get("role", ""), str):
        raise ValueError(f"{where}: role must be a string, got {group['role']!r}")
    rule.validate(group, where)
    if rule.is_matrix:
        check_scale(group["scale"], where)
    if not isinstance(group["view"], str):
        raise ValueError(f"{where}: view must be a string such as 'matrix', got {group['view']!r}")
    view = parse_view(group["view"])
    if rule.is_matrix and not view.is_matrix:
        raise ValueError(f"{where}: rule {rule.name!r} needs matrices, view={group['view']!r} has none")


def _rule_of(group: Mapping[str, Any], where: str) -> rules.Rule:
    name = group["rule"]
    if not isinstance(name, str):
        raise TypeError(f"{where}: rule must be a string, got {name!r}. Known rules: {', '.join(rules.names())}")
    try:
        return rules.get(name)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def _named(params: Any, names: Any, where: str) -> list[tuple[str | None, Tensor]]:
    if isinstance(params, Tensor):
        params = [params]
    if isinstance(params, set):
        raise TypeError(f"{where}: params must be ordered, got a set")
    if not isinstance(params, Iterable):
        raise TypeError(f"{where}: params must be tensors or (name, tensor) pairs, got {params!r:.80}")
    entries = list(params)
    if names is not None:
        if isinstance(names, str) or not isinstance(names, Sequence) or not all(isinstance(n, str) for n in names):
            raise TypeError(f"{where}: param_names must be a list of strings, got {names!r:.80}")
        if any(isinstance(entry, tuple | list) for entry in entries):
            raise TypeError(f"{where}: params have names already, param_names={names!r:.80} are there too")
        if len(names) != len(entries):
            raise ValueError(f"{where}: {len(entries)} params but {len(names)} param_names")
        entries = list(zip(names, entries, strict=True))
    pairs: list[tuple[str | None, Tensor]] = []
    for entry in entries:
        name, tensor = entry if isinstance(entry, tuple | list) and len(entry) == 2 else (None, entry)
        if not isinstance(tensor, Tensor) or not isinstance(name, str | None):
            raise TypeError(f"{where}: params must be tensors or (name, tensor) pairs, got {entry!r:.80}")
        pairs.append((name, tensor))
    if len({name is None for name, _ in pairs}) > 1:
        raise ValueError(f"{where}: all optimizer params should be with/without names. Some param names are missing")
    seen: dict[Tensor, str | None] = {}
    for name, tensor in pairs:
        if tensor in seen:
            both = f" as {seen[tensor]!r} and {name!r}" if name is not None else ""
            raise ValueError(f"{where}: a parameter of shape {tuple(tensor.shape)} is there twice{both}")
        seen[tensor] = name
    return pairs


def _of_shapes(
    rule: rules.Rule,
    group: Mapping[str, Any],
    options: Mapping[str, Any],
    pairs: Iterable[tuple[str | None, Tensor]],
    where: str,
) -> dict[str, Any]:
    """The options that follow from the shapes of the parameters and that the group leaves out."""
    found: dict[str, Any] = {}
    for _, tensor in pairs:
        for key, value in rule.of_shape(tuple(tensor.shape), options).items():
            if key not in group and found.setdefault(key, value) != value:
                raise ValueError(
                    f"{where}: its parameters need {key}={found[key]!r} and {key}={value!r}: make a group for each"
                )
    return found


def _default_view(tensors: Iterable[Tensor]) -> str:
    return "flatten" if any(tensor.ndim > 3 for tensor in tensors) else "matrix"


def _check_fits(spec: str, tensor: Tensor, name: str | None, where: str) -> None:
    try:
        parse_view(spec).piece_shapes(tuple(tensor.shape))
    except ValueError as error:
        raise ValueError(f"{where}: {name or 'a parameter'}: {error}") from None


def _check_padding_row(group: Mapping[str, Any], tensor: Tensor, name: str | None, where: str) -> None:
    row = group["padding_row"]
    if group["view"] != "matrix":
        raise ValueError(f"{where}: padding_row={row!r} needs view='matrix' and a matrix rule, not {group['view']!r}")
    if isinstance(row, bool) or not isinstance(row, int) or not 0 <= row < tensor.shape[-2]:
        rows = f"a row of {name or 'a parameter'}, from 0 to {tensor.shape[-2] - 1}"
        raise ValueError(f"{where}: padding_row={row!r} must be {rows}")


MOST_RATE = 1e15
"""The largest learning rate and weight decay: what is larger overflows float32 in the course of a step."""


def check_rates(lr: Any, weight_decay: Any, where: str) -> None:
    """Raise ValueError unless both are finite numbers of at least 0; ``lr`` may be a one-element tensor of such."""
    if isinstance(lr, Tensor):
        if lr.numel() != 1:
            raise ValueError(f"{where}: Tensor lr must be 1-element, got shape {tuple(lr.shape)}")
        if not lr.dtype.is_floating_point:
            raise ValueError(f"{where}: Tensor lr must hold a floating point number, got {lr.dtype}")
        if lr.is_meta:
            raise ValueError(f"{where}: Tensor lr must hold a number, got one without memory, on the device meta")
        lr = lr.item() if host_can_read(lr.device) else 0.0  # elsewhere a look would wait for the device
    for key, value in (("lr", lr), ("weight_decay", weight_decay)):
        check_nonnegative(key, value, where)
        if value > MOST_RATE:
            raise ValueError(f"{where}: {key} must be a number from 0 to {MOST_RATE:g}, got {value!r}")


def _check_numbers(group: Mapping[str, Any], where: str) -> None:
    check_rates(group["lr"], group["weight_decay"], where)
    for tensor in group["params"]:
        dtype = (tensor[1] if isinstance(tensor, tuple) else tensor).dtype
        if not (dtype.is_floating_point or dtype.is_complex) or dtype.itemsize < 2:
            raise TypeError(f"{where}: parameters must be float16, bfloat16, float32 or float64, got {dtype}")
        if dtype is torch.complex64 or dtype is torch.complex128:
            raise RuntimeError(f"{where}: orthoopt does not support complex parameters, got {dtype}")
