"""Steps over shards and replicas equal those of one process: every plan, drawn models, worlds of 2, 3 and 4."""

from __future__ import annotations

import engine_ranks
import pytest
from ranks import Ranks

from orthoopt import plans

pytestmark = pytest.mark.dist


@pytest.mark.parametrize("size", [2, 3, 4])
def test_ten_steps_of_fsdp2_equal_one_process(ranks: Ranks, size: int) -> None:
    ranks.run(size, engine_ranks.every_plan_under_fsdp2, plans.names(), 2)


@pytest.mark.parametrize("size", [2, 3, 4])
def test_ten_steps_of_ddp_equal_one_process(ranks: Ranks, size: int) -> None:
    ranks.run(size, engine_ranks.every_plan_under_ddp, plans.names(), 2)
