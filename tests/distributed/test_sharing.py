"""Two processes: DDP equals one process; one rank's bad gradient is everybody's."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import sharing_ranks
from ranks import Ranks

pytestmark = pytest.mark.dist


@pytest.mark.parametrize(
    "check",
    [
        sharing_ranks.ddp_equals_one_process,
        sharing_ranks.a_bad_gradient_on_one_rank_skips_on_every_rank,
    ],
)
def test_two_ranks(ranks: Ranks, check: Callable[[], None]) -> None:
    ranks.run(2, check)
