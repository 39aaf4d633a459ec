"""Many processes in trouble: they neither hang nor mix, and say what is wrong."""

from __future__ import annotations

from collections.abc import Callable

import engine_trouble_ranks
import pytest
from ranks import Ranks

pytestmark = pytest.mark.dist


@pytest.mark.parametrize(
    "check",
    [
        engine_trouble_ranks.one_bad_gradient_skips_on_every_rank,
        engine_trouble_ranks.gates_and_tensor_rates_equal_one_process,
        engine_trouble_ranks.a_missing_gradient_is_named,
        engine_trouble_ranks.other_orders_and_models_do_not_mix,
        engine_trouble_ranks.replicas_share_only_what_is_the_same,
        engine_trouble_ranks.zero_redundancy_passes_whole_parameters,
    ],
)
def test_two_ranks(ranks: Ranks, check: Callable[[], None]) -> None:
    ranks.run(2, check, seconds=400.0)


def test_what_cannot_be_done_right_raises(ranks: Ranks) -> None:
    for said in ranks.run(2, engine_trouble_ranks.what_cannot_be_done_right_raises):
        assert len(said) == 2
        assert "weight has placements" in said[0] and "shards and replicas" in said[0]
        assert "_flat_param" in said[1] and "fully_shard" in said[1]
