"""Plan files: a plan as YAML or TOML, a ready plan changed by role and by pattern.

.. code-block:: yaml

    base: symmetry            # a ready plan; without it every role must be given
    options: {momentum: 0.9}  # to every entry of the base whose rule has them
    roles:
      embedding: {lr_multiplier: 5}
      router: {rule: adamw}
    patterns:                 # tried in order before the roles; the first that is found in a name wins
      - {match: 'lm_head', rule: adamw, lr: 1e-4}

A file has no learning rate and no weight decay of its own: these are the caller's, and a file only multiplies or
replaces them for a role or a pattern that it names.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, TypeGuard

from orthoopt import entries, overriding, plan_source, plans
from orthoopt.entries import Entry
from orthoopt.plan_source import SUFFIXES
from orthoopt.roles import ROLES
from orthoopt.spelling import near

_KEYS = ("base", "options", "roles", "patterns")
_CALLERS = ("lr", "weight_decay")


@dataclass(frozen=True)
class PlanFile:
    """What a plan file says, completed from its base and checked."""

    path: str
    """As it was given."""
    text: str
    """The file's content."""
    base: str | None
    """The ready plan that it starts from."""
    plan: plans.Plan
    """Every role's entry, with the file's options in them."""
    overrides: tuple[tuple[str, Entry], ...]
    """The patterns, as ``param_groups(overrides=...)`` takes them."""

    @property
    def name(self) -> str:
        """The file's name without its folder."""
        return Path(self.path).name


AnyPlan: TypeAlias = str | os.PathLike[str] | Mapping[str, Mapping[str, Any]] | PlanFile
"""A ready plan's name, a plan file's path, role -> entry, or a plan file that was read."""


class Resolved(NamedTuple):
    """A plan of any kind, ready to be applied."""

    plan: plans.Plan
    overrides: list[overriding.Override]
    """A file's patterns."""
    absent: frozenset[str]
    """Roles that a plan given as a dict leaves out."""


def resolve(plan: AnyPlan, options: Mapping[str, Any] | None = None) -> Resolved:
    """Whatever was given as a plan, checked and with the caller's options in every entry whose rule has them.

    Raises:
        TypeError: an option unknown to its rule, or something that is no plan.
        ValueError: an unknown plan, role or rule, or a bad value.
        OSError: a plan file that cannot be read.
    """
    absent: frozenset[str] = frozenset()
    of, patterns = "the plan", []
    source = load_plan(plan) if is_file(plan) else plan
    if isinstance(source, PlanFile):
        of, chosen, patterns = source.path, source.plan, overriding.read(source.overrides, source.path)
    else:
        assert not isinstance(source, os.PathLike)  # is_file takes them all
        chosen = plans.get(source)
        absent = frozenset(ROLES).difference(source) if isinstance(source, Mapping) else absent
    return Resolved(plans.with_options(chosen, options, of) if options else chosen, patterns, absent)


def name_of(plan: AnyPlan) -> str:
    """What a plan is called: a name or a path; "custom" for a dict."""
    if isinstance(plan, PlanFile):
        return plan.path
    return "custom" if isinstance(plan, Mapping) else os.fspath(plan)


def is_file(plan: Any) -> TypeGuard[str | os.PathLike[str]]:
    """Whether a plan is given as the path of a file: any ``os.PathLike``, and a string that ends in a known suffix."""
    return isinstance(plan, os.PathLike) or (isinstance(plan, str) and plan.lower().endswith(SUFFIXES))


def load_plan(path: str | os.PathLike[str]) -> PlanFile:
    """Read a plan file. It stands wherever a plan's name stands; a path alone does too.

    Args:
        path: ends in ``.yaml`` or ``.yml``, which needs PyYAML, or in ``.toml``.

    Raises:
        TypeError: an option that no rule of its entry knows, or a value of the wrong kind.
        ValueError: not UTF-8, YAML or TOML; a key, role, rule, value or pattern that is none; roles left out.
        OSError: the file is not there or cannot be read.
        ModuleNotFoundError: a YAML file without PyYAML.
    """
    name = os.fspath(path)
    suffix = Path(name).suffix.lower()
    if suffix not in SUFFIXES:
        raise ValueError(f"plan file {name}: its name must end in {', '.join(SUFFIXES)} to say how it is written")
    text = plan_source.read(name)
    content = plan_source.parse(text, suffix, name)
    if content is None or content == {}:
        raise ValueError(f"plan file {name} is empty: give a 'base', 'roles', or both")
    _check_keys(content, name)
    base = content.get("base")
    plan = _plan(base, _section(content, "roles", name), _section(content, "options", name), name)
    return PlanFile(name, text, base, plan, _patterns(content.get("patterns", []), plan, name))


def _check_keys(content: Any, name: str) -> None:
    if not isinstance(content, Mapping):
        raise TypeError(f"plan file {name} must be a mapping with {', '.join(_KEYS)}, got a {type(content).__name__}")
    for key in content:
        if key in _KEYS:
            continue
        if key in ROLES:
            raise ValueError(f"plan file {name}: the role {key!r} stands at the top; put it under 'roles'")
        if key in _CALLERS:
            raise ValueError(
                f"plan file {name}: {key!r} at the top; the caller gives it, and a role or a pattern may have its own"
            )
        raise ValueError(f"plan file {name}: unknown key {key!r}{near(key, _KEYS)} Keys: {', '.join(_KEYS)}")


def _section(content: Mapping[str, Any], key: str, name: str) -> dict[str, Any]:
    """A part of the file that maps to values or to entries."""
    part = content.get(key, {})
    if not isinstance(part, Mapping):
        raise TypeError(f"{key!r} of {name} must be a mapping, got {_kind(part)}")
    if key == "options":
        return {option: _value(value, f"option {option!r} of {name}") for option, value in part.items()}
    return {role: _entry(entry, f"role {role!r} of {name}") for role, entry in part.items()}


def _entry(entry: Any, where: str) -> Entry:
    if not isinstance(entry, Mapping):
        raise TypeError(f"{where} must map options to values, such as {{rule: adamw}}, got {_kind(entry)}")
    return {key: _value(value, f"{where}: {key!r}") for key, value in entry.items()}


def _value(value: Any, where: str, depth: int = 0) -> Any:
    """A value as Python code would have it: lists as tuples; a table of coefficients is a list of lists."""
    if isinstance(value, list) and depth < 2:
        return tuple(_value(item, where, depth + 1) for item in value)
    if value is not None and not isinstance(value, str | bool | int | float):
        raise TypeError(f"{where} must be a text, a number, true, false, or a list of these, got {_kind(value)}")
    return value


def _kind(value: Any) -> str:
    """What a value is, in words; its content may be endless where anchors refer to each other."""
    if value is None:
        return "nothing"
    words = {dict: "a mapping", list: "a list", bool: f"{value!r}" if isinstance(value, bool) else ""}
    return words.get(type(value)) or (repr(value) if isinstance(value, str | int | float) else type(value).__name__)


def _plan(base: Any, roles: Mapping[str, Entry], options: Mapping[str, Any], name: str) -> plans.Plan:
    """Every role's entry: the base's, or what its rule takes of the options, or the role's own, the last one first."""
    for role in roles:
        entries.check_role(role, name)
    if base is None:
        missing = [role for role in ROLES if role not in roles]
        if missing:
            raise ValueError(
                f"plan file {name} has no 'base', so it must give every role; it leaves out {', '.join(missing)}. "
                f"Give them, or start from a ready plan with 'base'. Ready plans: {', '.join(plans.names())}"
            )
        start = {role: entries.check_entry(roles[role], f"role {role!r} of {name}") for role in ROLES}
    elif not isinstance(base, str):
        raise TypeError(f"'base' of {name} must be the name of a ready plan, got {_kind(base)}")
    else:
        if base not in plans.PLANS:
            raise ValueError(
                f"'base' of {name}: unknown plan {base!r}{near(base, plans.PLANS)} "
                f"Ready plans: {', '.join(plans.names())}"
            )
        start = plans.get(base)
        for role, given in roles.items():
            start[role] = entries.changed(start[role], given, f"role {role!r} of {name}")
    return plans.with_options(start, options, name, own=roles) if options else start


def _patterns(listed: Any, plan: plans.Plan, name: str) -> tuple[tuple[str, Entry], ...]:
    if not isinstance(listed, list):
        raise TypeError(f"'patterns' of {name} must be a list of {{match: PATTERN, ...}}, got {_kind(listed)}")
    pairs: list[tuple[str, Entry]] = []
    for number, item in enumerate(listed, 1):
        where = f"pattern {number} of {name}"
        entry = _entry(item, where)
        if "match" not in entry:
            raise ValueError(f"{where} has no 'match'; it has {', '.join(map(repr, entry)) or 'nothing'}")
        pairs.append((entry.pop("match"), entry))
    for override in overriding.read(pairs, name):
        _check_pattern(override, plan)
    return tuple(pairs)


def _check_pattern(override: overriding.Override, plan: plans.Plan) -> None:
    """Raise what is wrong with a pattern's entry whatever role its parameters turn out to have."""
    own = {key: value for key, value in override.entry.items() if key not in ("role", "view")}
    bases: Sequence[Entry] = [plan[override.entry["role"]]] if "role" in override.entry else list(plan.values())
    errors: list[TypeError | ValueError] = []
    for base in bases:
        try:
            entries.changed(base, own, override.where)
            return
        except (TypeError, ValueError) as error:
            errors.append(error)
    # A bad value says more than that another rule has no such option, and of these the one with a near word.
    raise min(errors, key=lambda error: (not isinstance(error, ValueError), "did you mean" not in str(error)))
