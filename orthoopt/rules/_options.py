"""Options of rules: read off a function's signature, and checked against its annotations."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, Literal


def keyword_options(function: Callable[..., Any]) -> dict[str, Any]:
    """The keyword-only arguments of a function and their defaults."""
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}


def advance_fields(advance: Callable[..., Any]) -> dict[str, Any]:
    """The fields of a :class:`Rule` that the signature and the docstring of its ``advance`` settle."""
    own, hints = keyword_options(advance), typing.get_type_hints(advance)
    return {
        "summary": first_line(advance),
        "defaults": own,
        "hints": {name: hints[name] for name in own},
        "advance": advance,
        "direction_options": tuple(own),
    }


def first_line(function: Callable[..., Any]) -> str:
    """The first line of a function's docstring."""
    return (inspect.getdoc(function) or "").split("\n", 1)[0]


def matches(value: Any, allowed: Any) -> bool:
    """Whether a value fits a type annotation of the few kinds that options use."""
    origin = typing.get_origin(allowed)
    if origin is Literal:
        return value in typing.get_args(allowed) and isinstance(value, str)
    if origin in (typing.Union, types.UnionType):
        return any(matches(value, option) for option in typing.get_args(allowed))
    if origin is tuple:
        inner = typing.get_args(allowed)
        if not isinstance(value, tuple | list):
            return False
        if len(inner) == 2 and inner[1] is Ellipsis:
            return all(matches(item, inner[0]) for item in value)
        return len(value) == len(inner) and all(matches(v, t) for v, t in zip(value, inner, strict=True))
    if allowed is bool:
        return isinstance(value, bool)
    if allowed is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if allowed is float:
        # torch takes no whole number beyond 64 bits where it wants a number.
        return isinstance(value, float) or (isinstance(value, int) and type(value) is not bool and abs(value) < 2**63)
    return isinstance(value, allowed)


def choices(allowed: Any) -> list[str]:
    """The strings that a type annotation lists."""
    if typing.get_origin(allowed) is Literal:
        return list(typing.get_args(allowed))
    return [name for option in typing.get_args(allowed) for name in choices(option)]


def check_nonnegative(name: str, value: Any, where: str) -> None:
    """Raise ValueError unless the value is a finite number of at least 0."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
        raise ValueError(f"{where}: {name} must be a number of at least 0, got {value!r}")


def spell(allowed: Any) -> str:
    """A type annotation in words."""
    origin = typing.get_origin(allowed)
    if origin is Literal:
        return "one of " + ", ".join(repr(value) for value in typing.get_args(allowed))
    if origin in (typing.Union, types.UnionType):
        return " or ".join(spell(option) for option in typing.get_args(allowed))
    if origin is tuple:
        return "a tuple of numbers"
    words = {bool: "True or False", int: "a whole number", float: "a number", str: "a string", type(None): "None"}
    return words[allowed]


def hashable(value: Any) -> Any:
    """A value of options, or a whole dict of them, as something that can be a key."""
    if isinstance(value, Mapping):
        return tuple((key, hashable(inner)) for key, inner in value.items())
    return tuple(hashable(inner) for inner in value) if isinstance(value, list | tuple) else value


def key_of(options: Mapping[str, Any]) -> tuple[Any, ...]:
    """A key for options, by which values that are equal and mean different things differ.

    A rank of 1 is one column, of 1.0 all of them.
    """
    return tuple((name, type(value), hashable(value)) for name, value in options.items())


def options_of(key: tuple[Any, ...]) -> dict[str, Any]:
    """The options that :func:`key_of` made a key of; lists among them are tuples."""
    return {name: value for name, _, value in key}
