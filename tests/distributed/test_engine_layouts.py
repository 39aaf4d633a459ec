"""Meshes of two dimensions, tensor parallelism, experts; and how much goes over the wire."""

from __future__ import annotations

import engine_layouts_ranks
import pytest
from ranks import Ranks

from orthoopt import plans

pytestmark = pytest.mark.dist


@pytest.mark.parametrize(
    "plan", ["scion", *(pytest.param(name, marks=pytest.mark.slow) for name in plans.names() if name != "scion")]
)
def test_meshes_of_two_dimensions_equal_one_process(ranks: Ranks, plan: str) -> None:
    ranks.run(4, engine_layouts_ranks.meshes_of_two_dimensions, [plan], seconds=400.0)


def test_tensor_parallel_styles_and_fsdp2_equal_one_process(ranks: Ranks) -> None:
    ranks.run(4, engine_layouts_ranks.tensor_parallel_with_fsdp2)


def test_bytes_are_as_stated_and_collectives_few(ranks: Ranks) -> None:
    size = 4
    results = [{one["name"]: one for one in rank} for rank in ranks.run(size, engine_layouts_ranks.bytes_are_as_stated)]
    for name in ("even", "mixed", "state", "linear", "experts", "ddp"):
        for rank in results:
            stated, sent = rank[name]["stated"], rank[name]["bytes"]
            assert sent.get("alltoall_base_", 0) <= 1.1 * stated["exchanged"], (name, rank[name])
            assert stated["exchanged"] <= 1.1 * sent.get("alltoall_base_", 0), (name, rank[name])
            assert sent["allreduce_"] <= 1.1 * (stated["reduced"] + stated["agreed"]), (name, rank[name])
    elements = 8 * 64 * 48
    total = sum(rank["even"]["bytes"]["alltoall_base_"] for rank in results)
    assert total == pytest.approx(2 * elements * 4 * (1 - 1 / size), rel=1e-3)  # even shards, float32
    total = sum(rank["ddp"]["bytes"]["alltoall_base_"] for rank in results)
    assert total == pytest.approx(elements * 4 * (size - 1), rel=1e-3)
    for rank in results:
        assert rank["experts"]["calls"] == {"allreduce_": 1}, rank["experts"]  # the decision, nothing else
        ours, theirs = (sum(rank[name]["calls"].values()) for name in ("even", "torch"))
        assert 4 * ours <= theirs, (ours, theirs, rank["torch"]["calls"])
