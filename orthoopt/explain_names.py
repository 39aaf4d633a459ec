"""Rows that differ by the numbers in their names alone, brought together: ``layers.{0..27}.mlp``."""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import TypeVar

Item = TypeVar("Item")

NUMBER = re.compile(r"(?<![^.\[])\d+(?=[.\]]|$)")
"""A component of a path that is a number, or the index of a bare tensor."""


def collapse(
    items: Iterable[Item], name: Callable[[Item], str], rest: Callable[[Item], Hashable]
) -> Iterator[tuple[str, list[Item]]]:
    """Items that are alike but for the numbers in their names, and the name that stands for all of them.

    Args:
        items: in the order in which names should appear.
        name: of an item.
        rest: everything else about it; only items with equal rests come together.
    """
    alike: dict[tuple[str, Hashable], list[Item]] = {}
    for item in items:
        alike.setdefault((NUMBER.sub("#", name(item)), rest(item)), []).append(item)
    for members in alike.values():
        yield from _together(members, name)


def _together(members: list[Item], name: Callable[[Item], str]) -> Iterator[tuple[str, list[Item]]]:
    numbers = [tuple(map(int, NUMBER.findall(name(item)))) for item in members]
    slots = [sorted(set(values)) for values in zip(*numbers, strict=True)]
    product = 1
    for values in slots:
        product *= len(values)
    if product == len(members):  # every combination is there
        spelled = iter([_spell(values) for values in slots])
        yield NUMBER.sub(lambda _: next(spelled), name(members[0])), members
        return
    apart: dict[tuple[int, ...], list[Item]] = {}
    for item, own in zip(members, numbers, strict=True):
        apart.setdefault(own[1:], []).append(item)
    if len(apart) == 1:  # the same name twice: nothing tells them apart
        for item in members:
            yield name(item), [item]
        return
    for rest in apart.values():
        yield from _together(rest, name)


def _spell(values: Sequence[int]) -> str:
    """Numbers as runs: 3, {0..27}, {0,1,4}, {0..4,6..10}; many of them as {3,7,..,47}."""
    if len(values) == 1:
        return str(values[0])
    runs: list[list[int]] = []
    for value in values:
        if runs and value == runs[-1][-1] + 1:
            runs[-1].append(value)
        else:
            runs.append([value])
    spelled = [",".join(map(str, run)) if len(run) < 3 else f"{run[0]}..{run[-1]}" for run in runs]
    if len(spelled) > 4:
        spelled = [*spelled[:2], "..", spelled[-1]]
    return "{" + ",".join(spelled) + "}"


def pattern_of(name: str) -> str:
    """A regular expression for overrides: the parameters of this name in all layers."""
    return r"\.".join(r"\d+" if part.isdigit() else re.escape(part) for part in name.split("."))
