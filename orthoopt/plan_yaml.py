"""YAML as plan files have it: PyYAML's safe loader, read as YAML 1.2 reads, where keys stand once.

YAML 1.1, PyYAML's own, reads ``1e-3`` as text, ``off`` as a truth value, ``010`` as eight and ``1:30`` as ninety. Of
two equal keys PyYAML silently takes the last. Anchors and merge keys (``<<``) work.
"""

from __future__ import annotations

import re
from typing import Any, ClassVar

import yaml
from yaml.constructor import ConstructorError

_RESOLVED = (
    ("null", r"~|null|Null|NULL|", [*"~nN", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", [*"tTfF"]),
    ("int", r"[-+]?[0-9]+", [*"-+0123456789"]),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        [*"-+.0123456789"],
    ),
    ("merge", r"<<", ["<"]),
)
"""Kind of a plain scalar, what it looks like, and its first characters, "" for an empty one."""


class _Loader(yaml.SafeLoader):
    """Scalars by YAML 1.2's core schema; a key that stands twice is an error."""

    yaml_constructors: ClassVar[Any] = {}
    yaml_implicit_resolvers: Any = {}

    def mapping(self, node: yaml.Node) -> dict[Any, Any]:
        if not isinstance(node, yaml.MappingNode):
            raise ConstructorError(None, None, "this is no mapping", node.start_mark)
        seen: set[tuple[str, str]] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if (key.tag, key.value) in seen:
                    raise ConstructorError(None, None, f"the key {key.value!r} stands twice", key.start_mark)
                seen.add((key.tag, key.value))
        self.flatten_mapping(node)
        return self.construct_mapping(node, deep=True)

    def sequence(self, node: yaml.Node) -> list[Any]:
        if not isinstance(node, yaml.SequenceNode):
            raise ConstructorError(None, None, "this is no list", node.start_mark)
        return self.construct_sequence(node, deep=True)

    def scalar(self, node: yaml.Node) -> Any:
        if not isinstance(node, yaml.ScalarNode):
            raise ConstructorError(None, None, "this is no single value", node.start_mark)
        text = str(node.value)
        kind = node.tag.rpartition(":")[2]
        try:
            if kind == "null":
                return None
            if kind == "bool":
                return {"true": True, "false": False}[text.lower()]
            if kind == "int":
                return int(text)
            if kind == "float":
                return float(text.replace(".inf", "inf").replace(".nan", "nan"))
        except (KeyError, ValueError):
            raise ConstructorError(None, None, f"{text!r} is no {kind}", node.start_mark) from None
        return text

    def undefined(self, node: yaml.Node) -> Any:
        raise ConstructorError(None, None, f"the tag {node.tag!r} has no meaning in a plan file", node.start_mark)


_TAG = "tag:yaml.org,2002:"
for _kind, _pattern, _first in _RESOLVED:
    _Loader.add_implicit_resolver(_TAG + _kind, re.compile(f"(?:{_pattern})\\Z"), _first)
for _kind in ("null", "bool", "int", "float", "str"):
    _Loader.add_constructor(_TAG + _kind, _Loader.scalar)
_Loader.add_constructor(_TAG + "seq", _Loader.sequence)
_Loader.add_constructor(_TAG + "map", _Loader.mapping)
_Loader.add_constructor(None, _Loader.undefined)


def loads(text: str) -> Any:
    """The value of a YAML document.

    Raises:
        ValueError: it is no YAML, or a key stands twice; with line and column.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        at = "" if mark is None else f" (line {mark.line + 1}, column {mark.column + 1})"
        raise ValueError(f"{error.problem or error.context}{at}") from None
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from None
