"""Plans: role -> rule, options, learning-rate multiplier and weight decay; plain data.

A plan's entry is a dict: ``rule``; the rule's options; ``scale`` (matrix rules); ``lr_multiplier`` (default 1), which
lands in the group's ``lr`` so that every scheduler works; ``weight_decay``, absent where the user's value holds.
"""

from __future__ import annotations

import copy
import difflib
from collections.abc import Mapping
from typing import Any, TypeAlias

from orthoopt import rules
from orthoopt.roles import ROLES
from orthoopt.scale import check_scale
from orthoopt.weight_decay import check_mode

Entry: TypeAlias = dict[str, Any]
Plan: TypeAlias = dict[str, Entry]

MATRIX_ROLES = ("attention", "mlp_in", "mlp_out", "expert_in", "expert_out", "conv", "hidden")
"""Roles whose gradient is a linear map between two feature spaces: orthogonal on both sides."""

_SHELL_KEYS = ("rule", "scale", "lr_multiplier", "lr", "weight_decay", "weight_decay_mode")

_ADAMW: Entry = {"rule": "adamw"}
# Norms, biases and scalars are not decayed: their scale means something.
_VECTOR: Entry = {"rule": "adamw", "weight_decay": 0.0}
_SPECTRAL: Entry = {"rule": "spectral"}
# From scratch an embedding wants a larger rate than matrices; bench/results/pretrain_cpu.json shows it for AdamW too.
_EMBEDDING_RATE: Entry = {"lr_multiplier": 10.0}


def _everywhere(entry: Entry, **exceptions: Entry) -> Plan:
    plan = {role: entry for role in ROLES}
    plan |= {"vector": _VECTOR, "unknown": _ADAMW}
    return plan | exceptions


PLANS: dict[str, Plan] = {
    # torch.optim.AdamW, except that vectors are not decayed.
    "adamw": _everywhere(_ADAMW),
    # Muon on the linear maps, AdamW elsewhere, as its authors use it.
    "muon": _everywhere(_ADAMW, **dict.fromkeys(MATRIX_ROLES, _SPECTRAL), embedding=_ADAMW | _EMBEDDING_RATE),
    # Muon on the linear maps after clipping at a quantile, with coefficients fitted to shapes (arXiv 2511.20626).
    "root": _everywhere(_ADAMW, **dict.fromkeys(MATRIX_ROLES, {"rule": "root"}), embedding=_ADAMW | _EMBEDDING_RATE),
    # One rule per symmetry (arXiv 2605.18106). Embedding and head have exchangeable rows (tokens) and a rotation-
    # invariant feature space. A softmax head's logits may all shift together, hence the centring; a tied embedding is
    # looked up too, and lookup is not shift-invariant. A router's scores may pass a sigmoid: not centred.
    "symmetry": _everywhere(
        _SPECTRAL,
        embedding={"rule": "row_norm", "weight_decay": 0.0} | _EMBEDDING_RATE,
        tied_embedding={"rule": "row_norm", "weight_decay": 0.0},
        lm_head={"rule": "row_norm", "centre": "both", "weight_decay": 0.0},
        router={"rule": "row_norm", "weight_decay": 0.0},
    ),
    # Every matrix by rows: linear time, no matrix products.
    "row_norm": _everywhere(
        {"rule": "row_norm"},
        embedding={"rule": "row_norm", "weight_decay": 0.0} | _EMBEDDING_RATE,
        tied_embedding={"rule": "row_norm", "weight_decay": 0.0},
        lm_head={"rule": "row_norm", "weight_decay": 0.0},
        router={"rule": "row_norm", "weight_decay": 0.0},
    ),
}


def names() -> list[str]:
    """The names of the ready plans."""
    return sorted(PLANS)


def get(plan: str | Mapping[str, Mapping[str, Any]]) -> Plan:
    """A plan by name, or the user's own completed and checked; always a copy.

    Args:
        plan: a name, or role -> entry. Roles that the user's plan leaves out get ``adamw``, vectors undecayed.

    Raises:
        TypeError: an option that an entry's rule does not know.
        ValueError: an unknown plan, role or rule, or a bad value.
    """
    if isinstance(plan, str):
        if plan not in PLANS:
            raise ValueError(f"unknown plan {plan!r}{_near(plan, PLANS)} Known plans: {', '.join(names())}")
        return copy.deepcopy(PLANS[plan])
    complete = copy.deepcopy(PLANS["adamw"])
    for role, entry in plan.items():
        if role not in ROLES:
            raise ValueError(f"unknown role {role!r} in the plan{_near(role, ROLES)} Roles: {', '.join(ROLES)}")
        complete[role] = check_entry(entry, f"role {role!r} of the plan")
    return complete


def check_entry(entry: Mapping[str, Any], where: str) -> Entry:
    """A copy of a plan's entry, checked; ``where`` says whose it is."""
    if "rule" not in entry:
        raise ValueError(f"{where} has no 'rule'; known rules: {', '.join(rules.names())}")
    rule = rules.get(entry["rule"])
    rule.reject_unknown(list(entry), _SHELL_KEYS, where)
    if "scale" in entry:
        if not rule.is_matrix:
            raise TypeError(f"{where}: 'scale' is for matrix rules, the rule is {rule.name!r}")
        check_scale(entry["scale"], where)
    check_mode(entry.get("weight_decay_mode", "decoupled"), where)
    rule.validate({**rule.defaults, **entry}, where)
    return copy.deepcopy(dict(entry))


def with_options(plan: Plan, options: Mapping[str, Any]) -> Plan:
    """The plan with each option given to every entry whose rule has it.

    ``scale`` goes to matrix rules, ``weight_decay_mode`` to all.

    Raises:
        TypeError: an option that no rule of the plan knows.
    """
    changed = {role: dict(entry) for role, entry in plan.items()}
    taken: set[str] = set()
    for role, entry in changed.items():
        rule = rules.get(entry["rule"])
        known = {*rule.defaults, "weight_decay_mode"} | ({"scale"} if rule.is_matrix else set())
        mine = {name: value for name, value in options.items() if name in known}
        taken |= mine.keys()
        changed[role] = check_entry({**entry, **mine}, f"role {role!r}")
    for name in options:
        if name not in taken:
            known = {o for entry in plan.values() for o in rules.get(entry["rule"]).defaults}
            known |= {"scale", "weight_decay_mode"}
            raise TypeError(f"no rule of the plan has an option {name!r}{_near(name, known)} Options: {sorted(known)}")
    return changed


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
    return {**shell, **own}


def _near(word: Any, known: Any) -> str:
    near = difflib.get_close_matches(str(word), list(known), 1)
    return f"; did you mean {near[0]!r}?" if near else "."
