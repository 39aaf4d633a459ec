"""Overrides: (pattern, entry) pairs that are tried in order before the plan, the caller's and a plan file's alike."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

from orthoopt import entries
from orthoopt.spelling import near
from orthoopt.views import parse_view

Overrides: TypeAlias = Sequence[tuple[str, Mapping[str, Any]]] | Mapping[str, Mapping[str, Any]]

_SHOWN = 8  # names of parameters in a message


class Override(NamedTuple):
    """What one pattern gives to the parameters whose names it matches."""

    pattern: re.Pattern[str]
    entry: Mapping[str, Any]
    where: str
    """The pattern and its place, for messages."""
    of: str
    """The plan file it stands in, "" for the caller's own."""


def read(overrides: Overrides, of: str = "") -> list[Override]:
    """The overrides with their patterns compiled, as far as they can be checked without a plan or a model.

    Args:
        overrides: (pattern, entry) pairs or a dict.
        of: the plan file they stand in.

    Raises:
        TypeError: an entry that is no mapping, or a pattern, a role or a view that is no string.
        ValueError: an invalid regular expression, an unknown role or view, or a pattern given twice.
    """
    found: list[Override] = []
    places: dict[str, int] = {}
    pairs = overrides.items() if isinstance(overrides, Mapping) else overrides
    for place, (pattern, entry) in enumerate(pairs, 1):
        where = f"pattern {place} '{pattern}' of {of}" if of else f"override '{pattern}'"
        if not isinstance(pattern, str):
            raise TypeError(f"{where}: a pattern must be a string, got {type(pattern).__name__}")
        entries.check_mapping(entry, where)
        if pattern in places:
            raise ValueError(f"{where} never wins: pattern {places[pattern]} of the same list is the same")
        places[pattern] = place
        if "role" in entry:
            entries.check_role(entry["role"], where)
        if "view" in entry:
            _check_view(entry["view"], where)
        found.append(Override(_compiled(pattern, where), entry, where, of))
    return found


def match(
    names: Sequence[str | None],
    overrides: Sequence[Override],
    elsewhere: Sequence[str] = (),
    aliases: Mapping[str, str] | None = None,
) -> list[Override | None]:
    """For each name the first override whose pattern is found in it; a pattern may match names ``elsewhere`` instead.

    A pattern that never wins because earlier ones of its own list take all it matches is a warning and no error: each
    parameter has what an earlier line says, and on a model of more layers the later one may well win.

    Raises:
        ValueError: a pattern that matches no name, or names that are None.
    """
    if not overrides:
        return [None] * len(names)
    if None in names:
        whose = f"the patterns of {overrides[0].of}" if overrides[0].of else "overrides"
        raise ValueError(f"{whose} match names, and these parameters have none: pass the model or named_parameters()")
    known = [str(name) for name in names]
    winners: list[Override | None] = [None] * len(known)
    hits = [{place for place, name in enumerate(known) if override.pattern.search(name)} for override in overrides]
    for number, override in enumerate(overrides):
        if not hits[number]:
            if any(override.pattern.search(name) for name in elsewhere):
                continue
            tied = next((alias for alias in aliases or {} if override.pattern.search(alias)), None)
            if tied is not None and aliases is not None:
                raise ValueError(
                    f"{override.where} matches no parameter of its own: {tied} is the same tensor as {aliases[tied]}, "
                    "which is listed under that name alone"
                )
            raise ValueError(f"{override.where} matches no parameter{_nearest(override, known)}")
        before = [i for i in range(number) if overrides[i].of == override.of and hits[i] & hits[number]]
        if before and hits[number] <= set().union(*(hits[i] for i in before)):
            warnings.warn(
                f"{override.where} never wins: all that it matches, such as {known[min(hits[number])]}, is taken by "
                f"{', '.join(overrides[i].where for i in before)}; put it before or remove it",
                UserWarning,
                stacklevel=4,
            )
        for place in hits[number]:
            winners[place] = winners[place] or override
    return winners


def _nearest(override: Override, names: Sequence[str]) -> str:
    """The nearest component of a name, and some names."""
    plain = re.sub(r"[\\^$]", "", override.pattern.pattern).strip(".")
    components = {part for name in names for part in name.split(".")}
    hint = near(plain, [*sorted(components), *names])
    shown = ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
    return f"{hint.rstrip('.?')}; names: {shown}"


def _compiled(pattern: str, where: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        at = "" if error.pos is None else f" at position {error.pos}"
        raise ValueError(f"{where} is not a regular expression: {error.msg}{at}") from None
    except (OverflowError, RecursionError) as error:
        raise ValueError(f"{where} is not a regular expression: {error}") from None


def _check_view(view: Any, where: str) -> None:
    if not isinstance(view, str):
        raise TypeError(f"{where}: a view must be a string, got {view!r}")
    try:
        parse_view(view)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
