"""torch.distributed.checkpoint: saved at four ranks, resumed at four, two, one, three and in one process."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import dcp_ranks
import pytest
import torch
from ranks import Ranks

import orthoopt

pytestmark = pytest.mark.dist

HOW = dcp_ranks.WAYS
FLAT, NESTED, FULL = HOW


def assert_equal(one: dict[str, Any], other: dict[str, Any], **tolerances: float) -> None:
    assert one.keys() == other.keys() and one
    for key, value in one.items():
        assert value.dtype == other[key].dtype, key
        torch.testing.assert_close(other[key], value, msg=lambda text, key=key: f"{key}: {text}", **tolerances)


def compare(
    saved: dict[str, Any], resumed: dict[str, Any], plans: Iterable[str], how: list[Any], *, bitwise: bool
) -> None:
    for plan in plans:
        middle, params, state = saved[plan]
        for number in (HOW.index(one) for one in how):
            loaded, later_params, later_state = resumed[f"{plan}-{number}"]
            assert_equal(middle, loaded, atol=0, rtol=0)
            if bitwise:
                assert_equal(params, later_params, atol=0, rtol=0)
                assert_equal(state, later_state, atol=0, rtol=0)
            else:
                # Sums over another number of ranks; ten steps of 0.02 move by about 0.2.
                assert_equal(params, later_params, atol=1e-5, rtol=1e-4)


def alone(folder: str, plans: list[str], how: list[Any]) -> dict[str, Any]:
    with warnings.catch_warnings():  # of torch's, about loading without a process group
        warnings.simplefilter("ignore", UserWarning)
        return dcp_ranks.resume(folder, plans, "plain", how)


def test_saved_at_two_ranks_it_resumes_there_and_in_one_process(ranks: Ranks, tmp_path: Path) -> None:
    """The plan with state of matrices: once a piece where a view takes a parameter apart, with integers, of experts."""
    plans, folder, how = ["dct_adamw"], str(tmp_path), [FLAT, NESTED]
    saved = ranks.run(2, dcp_ranks.save, folder, plans, "fsdp", how)[0]
    compare(saved, ranks.run(2, dcp_ranks.resume, folder, plans, "fsdp", how)[0], plans, how, bitwise=True)
    compare(saved, alone(folder, plans, how[:1]), plans, how[:1], bitwise=False)


def test_shards_take_state_from_everywhere(ranks: Ranks, tmp_path: Path) -> None:
    ranks.run(2, dcp_ranks.shards_take_state_from_everywhere, str(tmp_path), ["dct_adamw", "muon"])
    ranks.run(2, dcp_ranks.shards_of_torchs_adamw_are_taken_over_and_given_back)


@pytest.mark.slow
@pytest.mark.parametrize("plan", orthoopt.plans.names())
def test_shards_of_every_plan_take_state_from_everywhere(ranks: Ranks, tmp_path: Path, plan: str) -> None:
    ranks.run(4, dcp_ranks.shards_take_state_from_everywhere, str(tmp_path), [plan])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["fsdp", "ddp"])
@pytest.mark.parametrize("plan", orthoopt.plans.names())
def test_saved_at_four_ranks_every_plan_resumes_at_any_number(
    ranks: Ranks, tmp_path: Path, plan: str, kind: str
) -> None:
    plans, folder = [plan], str(tmp_path)
    saved = ranks.run(4, dcp_ranks.save, folder, plans, kind, HOW)[0]
    for size in (4, 2, 1, 3):
        resumed = ranks.run(size, dcp_ranks.resume, folder, plans, kind, HOW)[0]
        compare(saved, resumed, plans, HOW, bitwise=size == 4)
    compare(saved, alone(folder, plans, HOW), plans, HOW, bitwise=False)
