"""Small state, limits and clipping where parameters are sharded: what the whole would get."""

from __future__ import annotations

import importlib.util

import pytest
import small_state_ranks
from ranks import Ranks

pytestmark = pytest.mark.dist


def test_shards_round_as_the_whole_does(ranks: Ranks) -> None:
    ranks.run(2, small_state_ranks.shards_round_as_the_whole_does)


def test_limits_and_figures_are_those_of_the_whole(ranks: Ranks) -> None:
    ranks.run(2, small_state_ranks.limits_and_figures_are_those_of_the_whole)


def test_eight_bits_of_a_shard_are_refused(ranks: Ranks) -> None:
    ranks.run(2, small_state_ranks.eight_bits_of_a_shard_are_refused, importlib.util.find_spec("torchao") is not None)


def test_mixed_precision_of_fsdp_leaves_state_alone(ranks: Ranks) -> None:
    ranks.run(2, small_state_ranks.mixed_precision_of_fsdp_leaves_state_alone)


def test_heads_are_clipped_in_shards(ranks: Ranks) -> None:
    ranks.run(2, small_state_ranks.heads_are_clipped_in_shards)
