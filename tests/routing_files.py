"""The frozen routing, one file for each model type: a line for each parameter, the numbers of like layers collapsed.

A line is ``pattern  role  view``, two or more spaces between. In a pattern ``#`` stands for any number and ``{0,2}``
for one of these. Lines that begin with ``#`` and a space are comments.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from routing_rules import Expected

FOLDER = Path(__file__).parent / "data" / "routing"


class Line(NamedTuple):
    """One line of a file: which parameters, and what they should be."""

    pattern: str
    role: str
    view: str

    def matches(self, name: str) -> bool:
        """Whether the pattern stands for the parameter of this name."""
        pattern = re.escape(self.pattern).replace(r"\#", r"\d+")
        return (
            re.fullmatch(re.sub(r"\\{([\d,]+)\\}", lambda m: f"(?:{m[1].replace(',', '|')})", pattern), name)
            is not None
        )


def file_of(family: str, name: str) -> Path:
    """The file of a model type."""
    return FOLDER / family / f"{name}.txt"


def read(path: Path) -> list[Line]:
    """The lines of a file; ValueError naming the line that is none."""
    lines = []
    for number, text in enumerate(path.read_text().splitlines(), 1):
        if text.startswith("# ") or not text:
            continue
        parts = re.split(r" {2,}", text)
        if len(parts) != 3:
            raise ValueError(f"{path.name}, line {number}: {text!r} is not 'pattern  role  view'")
        lines.append(Line(*parts))
    return lines


def write(class_name: str, expected: Iterable[Expected]) -> str:
    """The text of a file."""
    lines = collapse(expected)
    width, roles = (max(len(line[i]) for line in lines) + 2 for i in (0, 1))
    return f"# {class_name}\n" + "".join(f"{p:{width}}{role:{roles}}{view}\n" for p, role, view in lines)


def collapse(expected: Iterable[Expected]) -> list[Line]:
    """One line for all layers that agree; where they do not, as few numbers as tell them apart."""
    alike: dict[str, list[Expected]] = {}
    for entry in expected:
        alike.setdefault(re.sub(r"(?<![^.])\d+(?![^.])", "#", entry.name), []).append(entry)
    return [line for pattern, entries in alike.items() for line in _lines(pattern, entries)]


def _lines(pattern: str, entries: list[Expected]) -> list[Line]:
    numbers = [tuple(part for part in entry.name.split(".") if part.isdigit()) for entry in entries]
    said = [(entry.role, entry.view) for entry in entries]
    places = range(len(numbers[0]))
    for kept in itertools.chain.from_iterable(itertools.combinations(places, size) for size in range(len(places) + 1)):
        found: dict[tuple[str, ...], set[tuple[str, str]]] = {}
        for number, verdict in zip(numbers, said, strict=True):
            found.setdefault(tuple(number[place] for place in kept), set()).add(verdict)
        if all(len(verdicts) == 1 for verdicts in found.values()):
            break
    by_verdict: dict[tuple[str, str], list[tuple[str, ...]]] = {}
    for key, (verdict,) in found.items():
        by_verdict.setdefault(verdict, []).append(key)
    lines = []
    for verdict, keys in by_verdict.items():
        merged = [(f"{{{','.join(key[0] for key in keys)}}}",)] if len(kept) == 1 and len(keys) > 1 else keys
        lines += [Line(_numbered(pattern, kept, key), *verdict) for key in merged]
    return lines


def _numbered(pattern: str, kept: tuple[int, ...], key: tuple[str, ...]) -> str:
    parts = pattern.split(".")
    holes = [i for i, part in enumerate(parts) if part == "#"]
    for place, number in zip(kept, key, strict=True):
        parts[holes[place]] = number
    return ".".join(parts)
