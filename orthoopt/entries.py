"""A plan's entries: what one role, or the parameters of one pattern, get; plain data.

An entry is a dict: ``rule``; the rule's options; ``scale`` (matrix rules); ``lr_multiplier`` (default 1), which lands
in the group's ``lr`` so that every scheduler works; ``lr`` in place of the caller's; ``weight_decay``, absent where the
caller's value holds; ``weight_decay_mode``; the options of :mod:`orthoopt.step_options`; ``per_head`` (matrix rules):
attention is seen head by head where its head counts are known.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, TypeAlias

from torch import Tensor

from orthoopt import rules
from orthoopt.roles import ROLES
from orthoopt.rules._options import check_nonnegative
from orthoopt.scale import check_scale
from orthoopt.spelling import near
from orthoopt.step_options import DEFAULTS, check_options
from orthoopt.weight_decay import check_mode

Entry: TypeAlias = dict[str, Any]

_SHELL_KEYS = ("rule", "scale", "lr_multiplier", "lr", "weight_decay", "weight_decay_mode", "per_head", *DEFAULTS)


def check_role(role: Any, where: str) -> None:
    """Raise ValueError unless ``role`` is one of ``orthoopt.roles.ROLES``; ``where`` says who names it."""
    if role not in ROLES:
        raise ValueError(f"unknown role {role!r} in {where}{near(role, ROLES)} Roles: {', '.join(ROLES)}")


def check_mapping(entry: Any, where: str) -> None:
    """Raise TypeError unless ``entry`` maps options to values."""
    if not isinstance(entry, Mapping):
        raise TypeError(f"{where} must map options to values, such as {{'rule': 'adamw'}}, got {entry!r}")


def check_entry(entry: Mapping[str, Any], where: str) -> Entry:
    """A copy of a plan's entry, checked; ``where`` says whose it is."""
    check_mapping(entry, where)
    if "rule" not in entry:
        raise ValueError(f"{where} has no 'rule'; known rules: {', '.join(rules.names())}")
    rule = _rule_of(entry, where)
    rule.reject_unknown(list(entry), _SHELL_KEYS, where)
    if "scale" in entry:
        if not rule.is_matrix:
            raise TypeError(f"{where}: 'scale' is for matrix rules, the rule is {rule.name!r}")
        check_scale(entry["scale"], where)
    per_head = entry.get("per_head", False)
    if not isinstance(per_head, bool):
        raise ValueError(f"{where}: per_head must be True or False, got {per_head!r}")
    if per_head and not rule.is_matrix:
        raise TypeError(f"{where}: 'per_head' is for matrix rules, the rule is {rule.name!r}")
    check_mode(entry.get("weight_decay_mode", "decoupled"), where)
    check_options(entry, where)
    for key in ("lr", "lr_multiplier", "weight_decay"):
        if key in entry and not (key == "lr" and isinstance(entry[key], Tensor)):
            check_nonnegative(key, entry[key], where)
    rule.validate({**rule.defaults, **entry}, where)
    # A tensor learning rate stays the very tensor, so that filling it moves the group.
    return {key: value if isinstance(value, Tensor) else copy.deepcopy(value) for key, value in entry.items()}


def changed(entry: Entry, given: Mapping[str, Any], where: str) -> Entry:
    """The entry with what is given instead; of the rest all stays while the rule is the same, else nothing."""
    rule = given.get("rule", entry["rule"])
    kept = entry if rule == entry["rule"] else {}
    return check_entry({**kept, "rule": rule, **given}, where)


def _rule_of(entry: Mapping[str, Any], where: str) -> rules.Rule:
    name = entry["rule"]
    if not isinstance(name, str):
        raise TypeError(f"{where}: a rule must be a string, got {name!r}. Known rules: {', '.join(rules.names())}")
    try:
        return rules.get(name)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def group_options(entry: Mapping[str, Any], lr: Any, weight_decay: float) -> dict[str, Any]:
    """What a plan's entry comes to in a param group: rule, lr, weight_decay, and every option of the rule."""
    rule = rules.get(entry["rule"])
    own = {name: entry.get(name, default) for name, default in rule.defaults.items()}
    lr, multiplier = entry.get("lr", lr), entry.get("lr_multiplier", 1.0)
    shell = {
        "rule": rule.name,
        # A tensor learning rate stays the very tensor, so that filling it moves the group.
        "lr": lr if multiplier == 1 else lr * multiplier,
        "weight_decay": entry.get("weight_decay", weight_decay),
        "weight_decay_mode": entry.get("weight_decay_mode", "decoupled"),
    }
    if rule.is_matrix:
        shell["scale"] = entry.get("scale", rule.default_scale)
    # What an entry leaves out is the optimizer's.
    shell |= {name: entry[name] for name in DEFAULTS if name in entry}
    return {**shell, **own}
