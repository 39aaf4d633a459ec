"""What a rule's step on shards sends, by asking it: nothing here knows a formula that a rule could outgrow."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from orthoopt.distributed.rounds import answer_here, in_lockstep
from orthoopt.distributed.shard_views import cut_of
from orthoopt.rules import Rule
from orthoopt.rules._exchange import Asked, Gather, OnWhole
from orthoopt.views import parse_view


class Traffic(NamedTuple):
    """Bytes of the tensors that one matrix' step exchanges."""

    ranks: int
    """How many have a part."""
    rounds: int
    """How often they exchange something."""
    reduced: int
    """Summed, or the largest taken: what each rank gives to all-reduces."""
    gathered: int
    """Wholes of which every rank gets all."""
    moved: int
    """Wholes that go to one rank, and come back."""

    @property
    def sent(self) -> float:
        """Bytes that all ranks together send, by ring collectives: 2(p−1)·reduced + (p−1)·gathered + 2(p−1)/p·moved.

        Gathering the matrix at one rank and scattering its update is 2(p−1)/p·matrix.
        """
        others = self.ranks - 1
        return 2 * others * self.reduced + others * self.gathered + 2 * others / self.ranks * self.moved


def traffic(rule: Rule, rows: int, cols: int, ranks: int, along: str = "rows", **options: Any) -> Traffic | None:
    """What one step of a float32 matrix exchanges when it is cut as evenly as torch does; None if it is needed whole.

    It runs the rule on zeros of that shape, without the iteration.

    Args:
        rule: with ``on_shards``; None for one without.
        rows: of the matrix.
        cols: of the matrix.
        ranks: into how many parts it is cut.
        along: ``"rows"`` or ``"cols"``: what is cut.
        options: of the rule; the rest take their defaults.

    Raises:
        ValueError: ``along`` or an option is none of what is allowed.
        TypeError: an option that the rule does not have.
    """
    if along not in ("rows", "cols"):
        raise ValueError(f"along={along!r} must be 'rows' or 'cols'")
    rule.reject_unknown(list(options))
    options = {**rule.defaults, **options}
    rule.validate(options)
    length = rows if along == "rows" else cols
    edges = [min(rank * -(-length // ranks), length) for rank in range(ranks + 1)]
    spans = [(begin, end - begin) for begin, end in zip(edges, edges[1:], strict=False)]
    cut_rows = along == "rows"
    boxes = [((begin, 0), (size, cols)) if cut_rows else ((0, begin), (rows, size)) for begin, size in spans]
    cut = cut_of(parse_view("matrix"), (rows, cols), boxes)
    assert cut is not None
    whole = torch.zeros(rows, cols)
    state = {**rule.init(whole, options), **rule.init_matrix(whole, options)}
    generators = []
    for (part,) in cut.parts:
        place = tuple(slice(*span) for span in part.ranges)
        own = {key: value[place] if key in rule.viewed else value for key, value in state.items()}
        generator = rule.move_part(whole[place], part.shard, options, own)
        if generator is None:
            return None
        generators.append(generator)
    seen = Traffic(ranks, 0, 0, 0, 0)

    def measure(asked: dict[int, list[Asked]]) -> dict[int, list[Tensor]]:
        nonlocal seen
        seen = _added(seen, list(asked.values()))
        idle = {i: [_idle(one) for one in entries] for i, entries in asked.items()}
        return answer_here(idle)

    in_lockstep(generators, measure)
    return seen


def _idle(entry: Asked) -> Asked:
    return entry._replace(function=_same) if isinstance(entry, OnWhole) else entry


def _same(x: Tensor) -> Tensor:
    return x


def _added(seen: Traffic, asked: list[list[Asked]]) -> Traffic:
    reduced, gathered, moved = seen.reduced, seen.gathered, seen.moved
    for parts in zip(*asked, strict=True):
        sizes = [_bytes(part if isinstance(part, Tensor) else part.tensor) for part in parts]
        if isinstance(parts[0], Gather):
            gathered += sum(sizes)
        elif isinstance(parts[0], OnWhole):
            moved += sum(sizes)
        else:
            reduced += sizes[0]
    return Traffic(seen.ranks, seen.rounds + 1, reduced, gathered, moved)


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
