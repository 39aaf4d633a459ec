"""The reference of public names: signatures and docstrings as Markdown."""

from __future__ import annotations

import importlib
import inspect
import re
from typing import Any

_WIDTH = 100
_QUOTED = re.compile(r"(?<=: )'([^']*)'")
"""An annotation, which is text where annotations are not evaluated."""
_ROLE = re.compile(r":(?:\w+:)?\w+:`~?([^`]+)`")
_ENTRY = re.compile(r"^    (?P<name>\S[^:]*): (?P<text>.*(?:\n(?:     .*|\s*(?=\n     )))*)", re.M)
_SECTION = re.compile(r"^(?P<title>Args|Attributes|Raises|Returns|Yields):\n(?P<body>(?: {4}.*\n?|\n)*)", re.M)


def reference(name: str) -> str:
    """Heading, signature and docstring of `name`, such as ``orthoopt.Muon``; of a class, its own methods too."""
    value = _find(name)
    parts = [f"### {name} {{ #{name} }}", _signature(name, value), markdown(inspect.getdoc(value) or "")]
    if inspect.isclass(value):
        for method, function in vars(value).items():
            if inspect.isfunction(function) and not method.startswith("_") and function.__doc__:
                parts += [f"#### {name}.{method} {{ #{name}.{method} }}", _signature(f"{name}.{method}", function)]
                parts += [markdown(inspect.getdoc(function) or "")]
    return "\n\n".join(part for part in parts if part)


def markdown(docstring: str) -> str:
    """A docstring as Markdown: roles and double backticks become code, sections become lists."""
    text = _ROLE.sub(r"`\1`", docstring).replace("``", "`")
    return _SECTION.sub(_section, text)


def _section(section: re.Match[str]) -> str:
    entries = list(_ENTRY.finditer(section["body"]))
    lines = [f"- `{entry['name']}`: {' '.join(entry['text'].split())}" for entry in entries]
    body = "\n".join(lines) if lines else " ".join(section["body"].split())
    return f"**{section['title']}**\n\n{body}\n\n"


def _find(name: str) -> Any:
    """The value of a dotted name, whose first parts are modules."""
    module, _, rest = name.partition(".")
    value: Any = importlib.import_module(module)
    for part in rest.split(".") if rest else []:
        module = f"{module}.{part}"
        value = getattr(value, part) if hasattr(value, part) else importlib.import_module(module)
    return value


def _signature(name: str, value: Any) -> str:
    """The call in a Python block, on one line where it fits."""
    if not callable(value):
        return ""
    signature = inspect.signature(value)
    parameters = [item for item in signature.parameters.values() if item.name != "self"]
    shown, star, positional = [], False, False
    for item in parameters:
        if item.kind is item.POSITIONAL_ONLY:
            positional = True
        elif positional:
            shown.append("/")
            positional = False
        if item.kind is item.VAR_POSITIONAL:
            star = True
        elif item.kind is item.KEYWORD_ONLY and not star:
            shown.append("*")
            star = True
        shown.append(_QUOTED.sub(r"\1", str(item)))
    returns = signature.return_annotation
    arrow = "" if inspect.isclass(value) or returns in (signature.empty, None, "None") else f" -> {returns}"
    line = f"{name}({', '.join(shown)}){arrow}"
    if len(line) > _WIDTH:
        line = f"{name}(\n" + "".join(f"    {item},\n" for item in shown) + f"){arrow}"
    return f"```python\n{line}\n```"
