"""What the ranks of test_rounds.py run."""

from __future__ import annotations

import random
from collections.abc import Generator, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from orthoopt.distributed.rounds import Extent, run, together
from orthoopt.rules._exchange import Asked, Gather, Max, OnWhole

Toy = Generator[list[Asked], list[Tensor], list[Tensor]]


def _times_gram(x: Tensor) -> Tensor:
    """Every part of the result depends on every part of the whole."""
    return x @ x.mT @ x


def _edges(source: random.Random, whole: int, size: int) -> list[int]:
    return [0, *sorted(source.randint(0, whole) for _ in range(size - 1)), whole]


def toy(seed: int, rank: int, size: int) -> Toy:
    """Asks for a few rounds of what ``seed`` says, with values of this rank; returns all answers."""
    source = random.Random(seed)
    received: list[Tensor] = []
    for _ in range(source.randint(0, 4)):
        asked: list[Asked] = []
        for _ in range(source.randint(1, 4)):
            dtype = source.choice([torch.float32, torch.float64])
            shape = [source.randint(1, 5) for _ in range(source.randint(2, 3))]
            kind, dim, edges = source.choice("smgo"), source.choice([-2, -1]), _edges(source, 7, size)
            values = torch.Generator().manual_seed(source.randint(0, 2**31) * size + rank)
            if kind in "go":
                shape[dim] = edges[rank + 1] - edges[rank]
            # Whole numbers: sums are exact in whatever order a collective adds.
            tensor = torch.randint(-9, 10, shape, generator=values).to(dtype)
            if kind == "s":
                asked.append(tensor)
            elif kind == "m":
                asked.append(Max(tensor))
            elif kind == "g":
                asked.append(Gather(tensor, dim, edges[rank], 7))
            else:
                asked.append(OnWhole(tensor, dim, edges[rank], 7, _times_gram, follows_cut=False))
        before = [one.clone() if isinstance(one, Tensor) else one.tensor.clone() for one in asked]
        answers = yield asked
        received += answers
        after = [one if isinstance(one, Tensor) else one.tensor for one in asked]
        assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    return received


def lockstep_equals_by_hand(cases: int) -> None:
    """Many generators, in groups of all ranks, of pairs and of none, ending at different rounds."""
    rank, size = dist.get_rank(), dist.get_world_size()
    every = dist.group.WORLD
    pairs = [dist.new_group([2 * i, 2 * i + 1]) for i in range(size // 2)]
    pair = pairs[rank // 2] if rank // 2 < len(pairs) else None
    for case in range(cases):
        source = random.Random(case)
        wanted: list[tuple[Toy, Any, list[Toy], int]] = []
        for index in range(source.randint(0, 6)):
            seed, kind = 1000 * case + index, source.choice(["every", "pair", "alone"])
            if kind == "every":
                wanted.append((toy(seed, rank, size), every, [toy(seed, r, size) for r in range(size)], rank))
            elif kind == "pair" and pair is not None:
                wanted.append((toy(seed, rank % 2, 2), pair, [toy(seed, r, 2) for r in range(2)], rank % 2))
            else:
                wanted.append((toy(seed, 0, 1), None, [toy(seed, 0, 1)], 0))
        found = run([one for one, *_ in wanted], [group for _, group, *_ in wanted])
        for answers, (_, _, parts, mine) in zip(found, wanted, strict=True):
            expected = together(parts)[mine]
            assert len(answers) == len(expected)
            for actual, value in zip(answers, expected, strict=True):
                # Whole numbers below 2²⁴ but for x xᵀ x, whose sums of up to 35 products may round in float32.
                torch.testing.assert_close(actual, value, rtol=1e-5, atol=1e-2)


def as_few_collectives_as_kinds() -> list[int]:
    """How many collectives a step of 1 and of 50 matrices has."""
    rank, size = dist.get_rank(), dist.get_world_size()

    def three_rounds() -> Toy:
        (total,) = yield [torch.ones(3)]
        part = torch.full((2, 4), float(rank))
        total, _, whole = yield [total, Max(total), Gather(part, -2, 2 * rank, 2 * size)]
        (own,) = yield [OnWhole(part, -2, 2 * rank, 2 * size, _times_gram)]
        return [total, whole, own]

    counts = []
    for number in (1, 50):
        with counted() as calls:
            extents = [[Extent(2 * r, 2, 0, 4) for r in range(size)]] * number
            run([three_rounds() for _ in range(number)], [dist.group.WORLD] * number, extents)
        counts.append(sum(calls.values()))
    return counts


class counted:  # noqa: N801  # used as a function
    """How often each collective is called within a ``with``."""

    GATHER = "all_gather_single" if hasattr(dist, "all_gather_single") else "all_gather_into_tensor"
    NAMES = ("all_reduce", GATHER, "all_to_all_single")

    def __enter__(self) -> dict[str, int]:
        self.calls = dict.fromkeys(self.NAMES, 0)
        self._own = {name: getattr(dist, name) for name in self.NAMES}

        def counting(name: str, own: Any) -> Any:
            def call(*args: Any, **kwargs: Any) -> Any:
                self.calls[name] += 1
                return own(*args, **kwargs)

            return call

        for name, own in self._own.items():
            setattr(dist, name, counting(name, own))
        return self.calls

    def __exit__(self, *error: Any) -> None:
        for name, own in self._own.items():
            setattr(dist, name, own)


def an_error_closes_everything() -> None:
    """The error of one generator comes out, the others end, and the next collective finds nothing left over."""
    closed = []

    def patient() -> Toy:
        try:
            for _ in range(5):
                yield [torch.ones(4)]
        finally:
            closed.append(True)
        return []

    def failing() -> Iterator[Any]:
        yield [torch.ones(2)]
        raise ArithmeticError("no such root")

    try:
        run([patient(), failing(), patient()], [dist.group.WORLD] * 3)  # type: ignore[list-item]
    except ArithmeticError as error:
        assert str(error) == "no such root"
    else:
        raise AssertionError("the error was swallowed")
    assert closed == [True, True]
    check = torch.ones(())
    dist.all_reduce(check)
    assert check == dist.get_world_size()
