"""Steps over shards and replicas equal those of one process: every plan, drawn models, worlds of 2, 3 and 4."""

from __future__ import annotations

import engine_ranks
import pytest
from ranks import Ranks

from orthoopt import plans

pytestmark = pytest.mark.dist
WORLDS = (2, 3, 4)


@pytest.mark.parametrize("size", WORLDS)
def test_ten_steps_equal_one_process(ranks: Ranks, size: int) -> None:
    """Every plan in one of the worlds; those marked slow take every plan in each."""
    ranks.run(size, engine_ranks.every_plan, plans.names()[size - 2 :: len(WORLDS)], 1, seconds=400.0)


@pytest.mark.slow
@pytest.mark.parametrize("size", WORLDS)
def test_ten_steps_equal_one_process_in_many_drawn_models(ranks: Ranks, size: int) -> None:
    ranks.run(size, engine_ranks.every_plan, plans.names(), 8, seconds=2400.0)
