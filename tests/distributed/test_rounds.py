"""Generators in lockstep over real processes get what they get by hand."""

from __future__ import annotations

import pytest
import rounds_ranks
import torch
from ranks import Ranks

from orthoopt.distributed.parts import owners
from orthoopt.distributed.rounds import run

pytestmark = pytest.mark.dist


@pytest.mark.parametrize("size", [3, 4])
def test_lockstep_equals_by_hand(ranks: Ranks, size: int) -> None:
    ranks.run(size, rounds_ranks.lockstep_equals_by_hand, 25)


def test_collectives_do_not_grow_with_matrices(ranks: Ranks) -> None:
    """All-reduce; all-reduce of sums and of maxima and all-gather; two all-to-alls: 6, of one matrix or of 50."""
    assert ranks.run(3, rounds_ranks.as_few_collectives_as_kinds) == [[6, 6]] * 3


def test_an_error_closes_everything(ranks: Ranks) -> None:
    ranks.run(2, rounds_ranks.an_error_closes_everything)


def test_lists_of_different_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="1 generators need as many groups and extents, got 2 and 1"):
        run([rounds_ranks.toy(0, 0, 1)], [None, None])


def test_owners_share_the_work() -> None:
    """Largest first: no rank has more than the mean and one whole beside it; the same for the same shapes."""
    source = torch.Generator().manual_seed(0)
    shapes = [[*torch.randint(1, 64, (2,), generator=source).tolist()] for _ in range(40)]
    chosen = owners(shapes, 4)
    costs = [rows * cols * min(rows, cols) for rows, cols in shapes]
    busy = [sum(cost for cost, rank in zip(costs, chosen, strict=True) if rank == r) for r in range(4)]
    assert max(busy) <= sum(costs) / 4 + max(costs)
    assert set(owners([[5, 5]] * 8, 4)) == {0, 1, 2, 3}
