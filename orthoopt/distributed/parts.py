"""Parts of a few columns or rows brought together: on every rank, or on one that computes and sends parts back."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from orthoopt.rules._exchange import Gather, OnWhole

T = TypeVar("T")
Span = tuple[int, int]
"""Beginning and length of a rank's part."""


class Extent(NamedTuple):
    """Where one rank's part of a matrix lies."""

    row: int
    rows: int
    """Of the part."""
    col: int
    cols: int
    """Of the part."""

    def along(self, dim: int) -> Span:
        """Beginning and length along -2 or -1."""
        return (self.row, self.rows) if dim == -2 else (self.col, self.cols)


class Request(NamedTuple):
    """What is asked for, and which part of it every rank has."""

    entry: Gather | OnWhole
    spans: Sequence[Span]

    def shape(self, rank: int) -> list[int]:
        """Of that rank's part."""
        shape = list(self.entry.tensor.shape)
        shape[self.entry.dim] = self.spans[rank][1]
        return shape

    @property
    def whole(self) -> list[int]:
        """Shape of the whole."""
        shape = list(self.entry.tensor.shape)
        shape[self.entry.dim] = self.entry.whole
        return shape

    @property
    def kind(self) -> tuple[torch.dtype, torch.device]:
        """What may travel in one flat tensor."""
        return self.entry.tensor.dtype, self.entry.tensor.device

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """The whole of the parts of all ranks."""
        return joined(((start, part) for (start, _), part in zip(self.spans, parts, strict=True)), self.entry.dim)


def joined(parts: Iterable[tuple[int, Tensor]], dim: int) -> Tensor:
    """The whole of parts and where they begin; empty ones may claim any place."""
    ordered = sorted(parts, key=lambda pair: (pair[0], pair[1].shape[dim]))
    return torch.cat([part for _, part in ordered], dim)


def exchange(
    asked: Sequence[tuple[Gather | OnWhole, Sequence[Extent] | None]], group: dist.ProcessGroup
) -> list[Tensor]:
    """What each entry asks for.

    Args:
        asked: entries, and the parts of all ranks of the group where they are known; the same on all ranks but for
            the parts themselves.
        group: the ranks that have the parts.
    """
    requests = [Request(entry, spans) for (entry, _), spans in zip(asked, _spans(asked, group), strict=True)]
    results: dict[int, Tensor] = {}
    for some in by_key(range(len(requests)), lambda i: (type(requests[i].entry), requests[i].kind)):
        several = [requests[i] for i in some]
        found = _gather(several, group) if isinstance(several[0].entry, Gather) else _on_whole(several, group)
        results |= zip(some, found, strict=True)
    return [results[i] for i in range(len(requests))]


def compute(wholes: Sequence[tuple[OnWhole, Tensor]]) -> list[Tensor]:
    """``entry.function(whole)`` of each, equal functions of equal shapes in one call."""
    results: dict[int, Tensor] = {}
    keys = [(entry.function, whole.shape[-2:], whole.dtype) for entry, whole in wholes]
    for some in by_key(range(len(wholes)), lambda i: keys[i]):
        flat = [wholes[i][1].reshape(-1, *wholes[i][1].shape[-2:]) for i in some]
        result = wholes[some[0]][0].function(torch.cat(flat))
        for i, part in zip(some, result.split([len(one) for one in flat]), strict=True):
            results[i] = part.reshape(wholes[i][1].shape).to(wholes[i][1].dtype)
    return [results[i] for i in range(len(wholes))]


def owners(wholes: Sequence[Sequence[int]], size: int) -> list[int]:
    """Which of ``size`` ranks computes on wholes of these shapes: the largest first, each to the least busy."""
    costs = [math.prod(shape) * min(shape[-2:]) for shape in wholes]
    busy, chosen = [0] * size, [0] * len(wholes)
    for i in sorted(range(len(wholes)), key=lambda i: -costs[i]):
        chosen[i] = min(range(size), key=lambda rank: busy[rank])
        busy[chosen[i]] += costs[i] + 1
    return chosen


def by_key(things: Iterable[T], key: Callable[[T], Hashable]) -> list[list[T]]:
    """Those with equal keys together, in the order of their first."""
    found: dict[Any, list[T]] = {}
    for thing in things:
        found.setdefault(key(thing), []).append(thing)
    return list(found.values())


def _spans(
    asked: Sequence[tuple[Gather | OnWhole, Sequence[Extent] | None]], group: dist.ProcessGroup
) -> list[list[Span]]:
    spans: list[list[Span]] = []
    unknown: list[int] = []
    for i, (entry, extents) in enumerate(asked):
        known = extents is not None and (isinstance(entry, Gather) or entry.follows_cut)
        spans.append([extent.along(entry.dim) for extent in extents] if known and extents is not None else [])
        unknown += [] if known else [i]
    if unknown:
        own = [(asked[i][0].start, asked[i][0].tensor.shape[asked[i][0].dim]) for i in unknown]
        mine = torch.tensor(own, device=asked[unknown[0]][0].tensor.device)
        for rank in _all_gather(mine.reshape(-1), group).view(-1, *mine.shape).tolist():
            for i, (start, length) in zip(unknown, rank, strict=True):
                spans[i].append((start, length))
    return spans


def _gather(requests: Sequence[Request], group: dist.ProcessGroup) -> list[Tensor]:
    size = dist.get_world_size(group)
    numels = [[math.prod(request.shape(rank)) for request in requests] for rank in range(size)]
    # Collectives of equal parts are the fast ones; at most the last ranks have less.
    longest = max(map(sum, numels))
    mine = torch.cat([request.entry.tensor.reshape(-1) for request in requests])
    mine = torch.nn.functional.pad(mine, (0, longest - mine.numel()))
    everything = _all_gather(mine, group)
    parts = [everything[rank * longest :][: sum(numels[rank])].split(numels[rank]) for rank in range(size)]
    return [
        request.join([parts[rank][i].view(request.shape(rank)) for rank in range(size)])
        for i, request in enumerate(requests)
    ]


def _on_whole(requests: Sequence[Request], group: dist.ProcessGroup) -> list[Tensor]:
    size, me, like = dist.get_world_size(group), dist.get_rank(group), requests[0].entry.tensor
    owner = owners([request.whole for request in requests], size)
    theirs = [[request for request, rank in zip(requests, owner, strict=True) if rank == r] for r in range(size)]
    shapes = [[request.shape(rank) for request in theirs[me]] for rank in range(size)]

    arrived = _all_to_all([[request.entry.tensor for request in some] for some in theirs], shapes, like, group)
    wholes = [request.join([arrived[rank][i] for rank in range(size)]) for i, request in enumerate(theirs[me])]
    results = compute([(r.entry, w) for r, w in zip(theirs[me], wholes, strict=True) if isinstance(r.entry, OnWhole)])

    back = [
        [result.narrow(r.entry.dim, *_clamped(r, rank)) for r, result in zip(theirs[me], results, strict=True)]
        for rank in range(size)
    ]
    mine = [[list(request.entry.tensor.shape) for request in some] for some in theirs]
    returned = [iter(some) for some in _all_to_all(back, mine, like, group)]
    return [next(returned[rank]) for rank in owner]


def _all_gather(mine: Tensor, group: dist.ProcessGroup) -> Tensor:
    """The vectors of all ranks, equally long, one after the other."""
    everything = mine.new_empty(dist.get_world_size(group) * mine.numel())
    # torch 2.13 renames it, and warns of the old name.
    gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
    gather(everything, mine, group=group)
    return everything


def _clamped(request: Request, rank: int) -> Span:
    start, length = request.spans[rank]
    return (start if length else 0), length


def _all_to_all(
    sent: Sequence[Sequence[Tensor]],
    shapes: Sequence[Sequence[Sequence[int]]],
    like: Tensor,
    group: dist.ProcessGroup,
) -> list[list[Tensor]]:
    """Tensors for every rank, and the shapes of those that it has for this one."""
    flat = [part.reshape(-1) for some in sent for part in some]
    numels = [[math.prod(shape) for shape in some] for some in shapes]
    source = torch.cat([like.new_empty(0), *flat])  # a rank that owns nothing sends nothing back
    target = source.new_empty(sum(map(sum, numels)))
    dist.all_to_all_single(
        target, source, [sum(some) for some in numels], [sum(p.numel() for p in some) for some in sent], group=group
    )
    parts = iter(target.split([n for some in numels for n in some]))
    return [[next(parts).view(list(shape)) for shape in some] for some in shapes]
