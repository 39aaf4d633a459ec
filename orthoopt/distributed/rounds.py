"""Rules that work on shards, many in lockstep: what they ask of other ranks goes into few flat collectives a round.

The rules are generators, see ``Rule.on_shards``. A round takes from each what it asks, and for every process group at
most one all-reduce a dtype and reduction, one all-gather a dtype, and two all-to-alls a dtype: so a step has as many
collectives as one parameter would need, not as there are parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from orthoopt.distributed.parts import Extent as Extent
from orthoopt.distributed.parts import compute, exchange, joined
from orthoopt.rules._exchange import Asked, Gather, Max, OnWhole

R = TypeVar("R")
Rounds = Generator[list[Asked], list[Tensor], R]


@torch.no_grad()
def run(
    generators: Sequence[Rounds[R]],
    groups: Sequence[dist.ProcessGroup | None],
    extents: Sequence[Sequence[Extent] | None] | None = None,
) -> list[R]:
    """Run generators of ``Rule.on_shards`` to their ends; every rank of a group calls it with its parts of the same.

    Results are the same bits on every rank, for gloo and NCCL reduce once and hand out; so what follows from them is.

    Args:
        generators: one for every matrix, or batch of matrices, that is cut; in the same order on all ranks of a group.
        groups: for each the ranks that hold its parts. None: this rank has all of it (not the default group, as
            elsewhere in torch).
        extents: for each the parts of all ranks of its group, in their order. Where it is missing, ranks tell each
            other where their parts begin, a collective more in rounds that gather; accelerators are waited for then.

    Returns:
        What each generator returned.

    Raises:
        ValueError: lists of different lengths.
        Exception: what a generator raised. All are closed then, and no collective is left in flight on this rank.
    """
    extents = [None] * len(generators) if extents is None else extents
    if not len(generators) == len(groups) == len(extents):
        raise ValueError(
            f"{len(generators)} generators need as many groups and extents, got {len(groups)} and {len(extents)}"
        )
    return _in_lockstep(generators, lambda asked: _answer(asked, groups, extents))


@torch.no_grad()
def together(parts: Sequence[Rounds[R]]) -> list[R]:
    """The same in one process: ``parts`` are the generators of all parts of one matrix, or batch of matrices."""
    return _in_lockstep(parts, _answer_here)


def _in_lockstep(
    generators: Sequence[Rounds[R]], answer: Callable[[dict[int, list[Asked]]], dict[int, list[Tensor]]]
) -> list[R]:
    returned: dict[int, R] = {}
    answers: dict[int, list[Tensor] | None] = dict.fromkeys(range(len(generators)))
    try:
        while answers:
            asked: dict[int, list[Asked]] = {}
            for index, sent in answers.items():
                try:
                    asked[index] = next(generators[index]) if sent is None else generators[index].send(sent)
                except StopIteration as end:
                    returned[index] = end.value
            answers = {**answer(asked)} if asked else {}
    finally:
        for generator in generators:
            generator.close()
    return [returned[index] for index in range(len(generators))]


def _answer_here(asked: dict[int, list[Asked]]) -> dict[int, list[Tensor]]:
    """What every part gets when all are at hand."""
    answers: dict[int, list[Tensor]] = {index: [] for index in asked}
    for entries in zip(*asked.values(), strict=True):
        whole = _whole(entries)
        for index, entry in zip(asked, entries, strict=True):
            answers[index].append(_own(whole, entry))
    return answers


def _whole(entries: Sequence[Asked]) -> Tensor:
    first = entries[0]
    if isinstance(first, Tensor):
        return torch.stack([entry for entry in entries if isinstance(entry, Tensor)]).sum(0)
    if isinstance(first, Max):
        return torch.stack([entry.tensor for entry in entries if isinstance(entry, Max)]).amax(0)
    parts = [(entry.start, entry.tensor) for entry in entries if isinstance(entry, Gather | OnWhole)]
    whole = joined(parts, first.dim)
    return compute([(first, whole)])[0] if isinstance(first, OnWhole) else whole


def _own(whole: Tensor, entry: Asked) -> Tensor:
    if not isinstance(entry, OnWhole):
        return whole
    length = entry.tensor.shape[entry.dim]
    return whole.narrow(entry.dim, entry.start if length else 0, length)


class _Place(NamedTuple):
    """Where an answer belongs."""

    generator: int
    entry: int


@dataclass(eq=False)
class _Batch:
    """What one process group is asked for in one round."""

    group: dist.ProcessGroup
    sums: dict[tuple[torch.dtype, torch.device], list[tuple[_Place, Tensor]]]
    maxima: dict[tuple[torch.dtype, torch.device], list[tuple[_Place, Tensor]]]
    parts: list[tuple[_Place, Gather | OnWhole, Sequence[Extent] | None]]


def _answer(
    asked: dict[int, list[Asked]],
    groups: Sequence[dist.ProcessGroup | None],
    extents: Sequence[Sequence[Extent] | None],
) -> dict[int, list[Tensor]]:
    answers: dict[_Place, Tensor] = {}
    batches: dict[dist.ProcessGroup, _Batch] = {}
    for index, entries in asked.items():
        group = groups[index]
        if group is None:
            answers |= {_Place(index, i): one for i, one in enumerate(_answer_here({0: entries})[0])}
            continue
        batch = batches.setdefault(group, _Batch(group, {}, {}, []))
        for i, entry in enumerate(entries):
            place = _Place(index, i)
            if isinstance(entry, Gather | OnWhole):
                batch.parts.append((place, entry, extents[index]))
                continue
            tensor, lists = (entry.tensor, batch.maxima) if isinstance(entry, Max) else (entry, batch.sums)
            lists.setdefault((tensor.dtype, tensor.device), []).append((place, tensor))
    waiting = []
    try:
        for batch in batches.values():
            for lists, operation in ((batch.sums, dist.ReduceOp.SUM), (batch.maxima, dist.ReduceOp.MAX)):
                for pairs in lists.values():
                    flat = torch.cat([tensor.reshape(-1) for _, tensor in pairs])
                    waiting.append((dist.all_reduce(flat, operation, batch.group, async_op=True), flat, pairs))
        for batch in batches.values():
            if batch.parts:
                found = exchange([(entry, known) for _, entry, known in batch.parts], batch.group)
                answers |= zip([place for place, _, _ in batch.parts], found, strict=True)
    finally:
        for work, _, _ in waiting:
            work.wait()
    for _, flat, pairs in waiting:
        for (place, tensor), result in zip(pairs, flat.split([t.numel() for _, t in pairs]), strict=True):
            answers[place] = result.view(tensor.shape)
    return {index: [answers[_Place(index, i)] for i in range(len(entries))] for index, entries in asked.items()}
