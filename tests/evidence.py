"""What a forward pass is seen to do with parameters, and which features of a linear map it keeps together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from shadow import features, index_of, owner_of
from torch import Tensor

Axes = tuple[int, ...]


@dataclass(eq=False)
class Linear:
    """One parameter as the weight of a linear map."""

    name: str
    outputs: Axes  # the axes of the parameter that run along the map's outputs
    inputs: Axes
    shape: tuple[int, ...]
    site: str
    convolution: bool = False
    depthwise: bool = False
    chooses: bool = False  # its outputs arrive at topk, sort or argmax
    picked: bool = False  # some of its outputs are picked by a gather
    logits: bool = False
    pieces: list[frozenset[int]] = field(default_factory=list)  # output features that are used together
    blocks: list[frozenset[int]] = field(default_factory=list)  # input features that are read together

    @property
    def sides(self) -> tuple[int, int]:
        """How many output and input features the map has."""
        return (
            math.prod(self.shape[axis] for axis in self.outputs),
            math.prod(self.shape[axis] for axis in self.inputs),
        )

    def rows(self, coordinates: Sequence[Tensor]) -> Tensor:
        """Which output the entries of these coordinates, one tensor for each axis, belong to."""
        return self._number(self.outputs, coordinates)

    def cols(self, coordinates: Sequence[Tensor]) -> Tensor:
        """Which input the entries of these coordinates belong to."""
        return self._number(self.inputs, coordinates)

    def _number(self, axes: Axes, coordinates: Sequence[Tensor]) -> Tensor:
        found = torch.zeros_like(coordinates[0])
        for axis in axes:
            found = found * self.shape[axis] + coordinates[axis]
        return found

    @property
    def in_out(self) -> bool | None:
        """Whether the parameter is stored (in, out); None where its axes are not two."""
        if len(self.outputs) != 1 or len(self.inputs) != 1:
            return None
        return self.outputs[0] > self.inputs[0]


@dataclass
class Evidence:
    """What the pass did with one parameter."""

    name: str
    linear: list[Linear] = field(default_factory=list)
    lookups: set[tuple[str, str]] = field(default_factory=set)  # ("input ids" or "positions" or "other", site)
    entrywise: set[tuple[str, str]] = field(default_factory=set)  # (operation, site)
    other: set[tuple[str, str]] = field(default_factory=set)  # operations that nothing here knows

    @property
    def maps(self) -> list[Linear]:
        """Its uses as a linear map that mixes features."""
        return [use for use in self.linear if not use.depthwise]

    @property
    def by_input_ids(self) -> bool:
        """Whether it was looked up by the input ids."""
        return any(by == "input ids" for by, _ in self.lookups)

    @property
    def used(self) -> bool:
        """Whether anything happened to it at all."""
        return bool(self.linear or self.lookups or self.entrywise or self.other)


class Meetings:
    """Which features of which linear maps have met: a partition of all features of all maps."""

    def __init__(self) -> None:
        self.starts: list[int] = []  # of each map's features, in the two below
        self.counts: list[int] = []
        self.piece = torch.zeros(0, dtype=torch.int64)
        self.met = torch.zeros(0, dtype=torch.bool)

    def add(self, count: int) -> None:
        """Another map, with this many features."""
        start = len(self.piece)
        self.starts.append(start)
        self.counts.append(count)
        self.piece = torch.cat([self.piece, torch.arange(start, start + count)])
        self.met = torch.cat([self.met, torch.zeros(count, dtype=torch.bool)])

    def meet(self, number: int, found: Tensor) -> None:
        """These features of one map are taken together."""
        places = self.starts[number] + found.flatten().unique()
        self.met[places] = True
        self._join(places)

    def together(self, labels: Tensor | None) -> None:
        """Labelled features are taken together: those of each map among them meet."""
        if labels is not None:
            found = labels[features(labels)].unique()
            for number in owner_of(found).unique().tolist():
                self.meet(number, index_of(found[owner_of(found) == number]))

    def one_by_one(self, first: Tensor, second: Tensor) -> None:
        """Labelled features are added: each of the first is one with its counterpart from now on."""
        starts = torch.tensor(self.starts)
        pairs = torch.stack([starts[owner_of(labels)] + index_of(labels) for labels in (first, second)]).unique(dim=1)
        for pair in pairs[:, self.piece[pairs[0]] != self.piece[pairs[1]]].T:
            self._join(pair)

    def pieces(self, number: int) -> list[frozenset[int]]:
        """The features of a map, by piece, without those that met none, themselves or by what they are one with."""
        start = self.starts[number]
        piece = self.piece[start : start + self.counts[number]]
        met = piece[torch.isin(piece, self.piece[self.met])]
        return [frozenset((piece == p).nonzero().flatten().tolist()) for p in met.unique()]

    def _join(self, places: Tensor) -> None:
        pieces = self.piece[places].unique()
        if len(pieces) > 1:
            self.piece[torch.isin(self.piece, pieces)] = pieces[0]
