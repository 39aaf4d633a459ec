"""Plans as text: YAML or TOML that ``load_plan`` reads back to the same plan. Written without PyYAML."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from orthoopt.entries import Entry
from orthoopt.plans import Plan

_WIDTH = 100  # a longer entry gets a line an option
_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_NOT_WORDS = ("true", "false", "null", "yes", "no", "on", "off", "y", "n")  # some are values to YAML 1.1


def to_yaml(plan: Plan, overrides: Iterable[tuple[str, Entry]] = (), comments: Sequence[str] = ()) -> str:
    """The plan as YAML, every role in full, so that it needs no base.

    Args:
        plan: role -> entry.
        overrides: patterns with their entries.
        comments: lines to put before it.
    """
    lines = [*_commented(comments), "roles:"]
    for role, entry in plan.items():
        cells = [f"{key}: {_yaml(value)}" for key, value in entry.items()]
        flow = f"  {role}: {{{', '.join(cells)}}}"
        lines += [flow] if len(flow) <= _WIDTH else [f"  {role}:", *(f"    {cell}" for cell in cells)]
    pairs = list(overrides)
    lines += ["patterns:"] if pairs else []
    for pattern, entry in pairs:
        lines.append(f"  - match: {_quoted(pattern)}")
        lines += [f"    {key}: {_yaml(value)}" for key, value in entry.items()]
    return "\n".join(lines) + "\n"


def to_toml(plan: Plan, overrides: Iterable[tuple[str, Entry]] = (), comments: Sequence[str] = ()) -> str:
    """The plan as TOML; see :func:`to_yaml`.

    Raises:
        ValueError: a value that is None, which TOML cannot say.
    """
    tables = [(f"[roles.{role}]", entry) for role, entry in plan.items()]
    tables += [("[[patterns]]", {"match": pattern, **entry}) for pattern, entry in overrides]
    blocks = ["\n".join(_commented(comments))] if comments else []
    blocks += ["\n".join([head, *_assignments(entry)]) for head, entry in tables]
    return "\n\n".join(blocks) + "\n"


def _assignments(entry: Mapping[str, Any]) -> list[str]:
    return [f"{key} = {_toml(value, key)}" for key, value in entry.items()]


def _commented(lines: Sequence[str]) -> list[str]:
    return [f"# {line}" for text in lines for line in text.splitlines()]


def _yaml(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, float) and value in (float("inf"), float("-inf")):
        return ".inf" if value > 0 else "-.inf"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_yaml, value))}]"
    if isinstance(value, str) and _WORD.fullmatch(value) and value.lower() not in _NOT_WORDS:
        return value
    return _scalar(value)


def _toml(value: Any, key: str) -> str:
    if value is None:
        raise ValueError(f"{key} is None, which TOML cannot say: write the plan as YAML")
    if isinstance(value, list | tuple):
        return f"[{', '.join(_toml(item, key) for item in value)}]"
    return _scalar(value)


def _scalar(value: Any) -> str:
    """What YAML and TOML write alike."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        # YAML 1.1 takes 1e-08 for a text, for it has no point.
        return re.sub(r"^(-?\d+)e", r"\1.0e", repr(value))
    if isinstance(value, str):
        return _quoted(value)
    raise TypeError(f"a plan as text has strings, numbers, truth values, None and lists of these, got {value!r}")


def _quoted(text: str) -> str:
    """In single quotes, where a backslash stands for itself; in double quotes where there is no other way."""
    if "'" not in text and text.isprintable():
        return f"'{text}'"
    escapes = {"\\": "\\\\", '"': '\\"'}
    return '"' + "".join(escapes.get(c) or (c if c.isprintable() else f"\\U{ord(c):08x}") for c in text) + '"'
