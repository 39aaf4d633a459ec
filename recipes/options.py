"""How an option is declared, options whose values are mappings, and which ones somebody gave."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import field
from typing import Any

import yaml
from transformers import HfArgumentParser

from orthoopt.recipes.errors import RecipeError


def option(default: Any, text: str) -> Any:
    """A dataclass field with its help text."""
    return field(default=default, metadata={"help": text})


def parse_mapping(value: Mapping[str, Any] | str | None, option: str) -> dict[str, Any]:
    """Turn a mapping option into a dict: as it is from YAML, or from a string, JSON or `a=1,b=2`.

    Numbers such as `1e-3`, which YAML reads as text, become numbers. Raises `RecipeError` naming `option`.
    """
    if isinstance(value, str):
        text = value.strip()
        try:
            value = json.loads(text) if text.startswith("{") else _pairs(text)
        except ValueError as error:
            raise RecipeError(f"--{option} must be JSON or key=value,key=value, got {value!r} ({error})") from error
    if value is not None and not isinstance(value, Mapping):
        raise RecipeError(f"--{option} must be a mapping, got {value!r}")
    return {str(key): _number(item) for key, item in (value or {}).items()}


def _pairs(text: str) -> dict[str, Any]:
    pairs = [item.partition("=") for item in text.split(",") if item.strip()]
    for key, equals, _ in pairs:
        if not equals:
            raise ValueError(f"{key!r} has no '='")
    return {key.strip(): yaml.safe_load(item) for key, _, item in pairs}


def _number(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _number(item) for key, item in value.items()}
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def typed_options(parser: HfArgumentParser, argv: Sequence[str]) -> set[str]:
    """The options that a command line has, by the names they have in a config."""
    actions = parser._option_string_actions
    words = (word.partition("=")[0] for word in argv)
    return {actions[word].dest for word in words if word in actions}


def given_options(parser: HfArgumentParser, argv: Sequence[str], settings: Mapping[str, Any]) -> dict[str, Any]:
    """What the config and the command line say, and no default, with the values that the parser made of it."""
    known = vars(parser.parse_known_args(list(argv))[0])
    return {key: known[key] for key in sorted(typed_options(parser, argv) | set(settings))}
