"""What the ranks of test_rounds.py run."""

from __future__ import annotations

import itertools
import random
from collections.abc import Generator, Iterator
from typing import Any

import torch
import torch.distributed as dist
from cuts import extent_of, inside, parts_of
from torch import Tensor

from orthoopt import rules
from orthoopt.distributed.rounds import Extent, run, together
from orthoopt.distributed.traffic import traffic
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


RULES: list[tuple[str, dict[str, Any]]] = [
    ("row_norm", {"centre": "both"}),
    ("row_norm", {"axis": "cols", "eps_mode": "add"}),
    ("auon", {}),
    ("auon", {"variant": "paper"}),
    ("scion", {"norm": "col_norm", "transposed": True}),
    ("trion", {"side": "right"}),
    ("trion", {"side": "left"}),
    ("dion2", {}),
    ("dct_adamw", {"side": "right", "error_feedback": True}),
    ("right_spectral", {"centre": "both"}),
    ("hybrid", {"nu_mode": "nuclear"}),
]


def rules_equal_the_whole() -> list[tuple[str, float, float]]:
    """Four steps of all rules, in lockstep over parts of uneven matrices: the whole matrix' steps.

    Returns, for each rule that works on such parts, its name, the bytes that this rank sends in a step, and those that
    :func:`traffic` says all ranks send.
    """
    rank, size = dist.get_rank(), dist.get_world_size()
    jobs = []
    for (name, options), shape in itertools.product(RULES, [(10, 7), (3, 9), (16, 16), (50, 3)]):
        rule = rules.get(name)
        options = {**rule.defaults, **options}
        edges = [min(r * -(-shape[0] // size), shape[0]) for r in range(size + 1)]
        parts = parts_of(shape, (edges, [0, shape[1]]))
        like = torch.zeros(shape, dtype=torch.float64)
        state = {**rule.init(like, options), **rule.init_matrix(like, options)}
        mine = {k: v[inside(parts[rank])] if k in rule.viewed else v for k, v in state.items()}
        if rule.move_part(like[inside(parts[rank])], parts[rank].shard, options, mine) is not None:
            jobs.append((rule, options, shape, parts, [state], [mine]))
    assert len(jobs) > 20
    for step in range(4):
        source = torch.Generator().manual_seed(step)
        grads = [torch.randn(job[2], dtype=torch.float64, generator=source) for job in jobs]
        rounds = [
            rule.move_part(grad[inside(parts[rank])], parts[rank].shard, options, mine[0])
            for grad, (rule, options, _, parts, _, mine) in zip(grads, jobs, strict=True)
        ]
        extents = [[extent_of(part) for part in job[3]] for job in jobs]
        running = [one for one in rounds if one is not None]
        found = run(running, [dist.group.WORLD] * len(jobs), extents if step % 2 else None)
        for grad, (update, moved), (rule, options, _, parts, state, mine) in zip(grads, found, jobs, strict=True):
            whole, state[0] = rule.move(grad, state[0], options)
            # float64 sums in another order, magnified at most 1e3 by an iteration.
            torch.testing.assert_close(update, whole[inside(parts[rank])], rtol=1e-10, atol=1e-10)
            mine[0] = moved
            for key, value in moved.items():
                expected = state[0][key][inside(parts[rank])] if key in rule.viewed else state[0][key]
                torch.testing.assert_close(value, expected, rtol=1e-10, atol=1e-10)
                if key not in rule.viewed:
                    others = [torch.empty_like(value) for _ in range(size)]
                    dist.all_gather(others, value.contiguous())
                    assert all(torch.equal(one, value) for one in others), (rule.name, key)
    return [_bytes_of(name, options) for name, options in RULES if _runs(name, options)]


def _runs(name: str, options: dict[str, Any]) -> bool:
    return traffic(rules.get(name), 64, 64, dist.get_world_size(), **options) is not None


def _bytes_of(name: str, options: dict[str, Any]) -> tuple[str, float, float]:
    rank, size, rule = dist.get_rank(), dist.get_world_size(), rules.get(name)
    stated = traffic(rule, 64, 64, size, **options)
    options = {**rule.defaults, **options}
    parts = parts_of((64, 64), ([64 * r // size for r in range(size + 1)], [0, 64]))
    x = torch.randn(64, 64)
    state = {**rule.init(x, options), **rule.init_matrix(x, options)}
    mine = {k: v[inside(parts[rank])] if k in rule.viewed else v for k, v in state.items()}
    rounds = rule.move_part(x[inside(parts[rank])], parts[rank].shard, options, mine)
    assert rounds is not None and stated is not None
    meter = counted()
    with meter:
        run([rounds], [dist.group.WORLD], [[extent_of(part) for part in parts]])
    return name, meter.sent, stated.sent


class counted:  # noqa: N801  # used as a function
    """How often each collective is called within a ``with``, and the bytes this rank sends if it is done in a ring."""

    GATHER = "all_gather_single" if hasattr(dist, "all_gather_single") else "all_gather_into_tensor"
    NAMES = ("all_reduce", GATHER, "all_to_all_single")

    def __enter__(self) -> dict[str, int]:
        self.calls = dict.fromkeys(self.NAMES, 0)
        self.sent = 0.0
        self._own = {name: getattr(dist, name) for name in self.NAMES}

        def counting(name: str, own: Any) -> Any:
            def call(*args: Any, **kwargs: Any) -> Any:
                self.calls[name] += 1
                self.sent += self._sent(name, *args)
                return own(*args, **kwargs)

            return call

        for name, own in self._own.items():
            setattr(dist, name, counting(name, own))
        return self.calls

    def _sent(self, name: str, first: Tensor, second: Any, *splits: Any) -> float:
        rank, size = dist.get_rank(), dist.get_world_size()
        if name == "all_reduce":
            return 2 * (size - 1) / size * first.nbytes
        if name == self.GATHER:
            return (size - 1) * second.nbytes
        away = sum(n for to, n in enumerate(splits[1]) if to != rank)
        return away * second.element_size()

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
