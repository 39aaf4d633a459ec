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

pytestmark = pytest.mark.dist

FLAT, NESTED, FULL = (
    {"flatten_optimizer_state_dict": True},
    {"flatten_optimizer_state_dict": False},
    {"full_state_dict": True},
)
HOW = [FLAT, NESTED, FULL]


def assert_equal(one: dict[str, Any], other: dict[str, Any], **tolerances: float) -> None:
    assert one.keys() == other.keys() and one
    for key, value in one.items():
        assert value.dtype == other[key].dtype, key
        torch.testing.assert_close(other[key], value, msg=lambda text, key=key: f"{key}: {text}", **tolerances)


def compare(saved: dict[str, Any], resumed: dict[str, Any], plans: Iterable[str], *, bitwise: bool) -> None:
    for plan in plans:
        middle, params, state = saved[plan]
        for number in range(len(HOW)):
            loaded, later_params, later_state = resumed[f"{plan}-{number}"]
            assert_equal(middle, loaded, atol=0, rtol=0)
            if bitwise:
                assert_equal(params, later_params, atol=0, rtol=0)
                assert_equal(state, later_state, atol=0, rtol=0)
            else:
                # Sums over another number of ranks; ten steps of 0.02 move by about 0.2.
                assert_equal(params, later_params, atol=1e-5, rtol=1e-4)


def alone(folder: str, plans: list[str]) -> dict[str, Any]:
    with warnings.catch_warnings():  # of torch's, about loading without a process group
        warnings.simplefilter("ignore", UserWarning)
        return dcp_ranks.resume(folder, plans, "plain", HOW)


@pytest.mark.parametrize("kind", ["fsdp", "ddp"])
def test_saved_at_four_ranks_it_resumes_at_any_number(ranks: Ranks, tmp_path: Path, kind: str) -> None:
    plans, folder = ["adamw"], str(tmp_path)
    saved = ranks.run(4, dcp_ranks.save, folder, plans, kind, HOW)[0]
    compare(saved, ranks.run(4, dcp_ranks.resume, folder, plans, kind, HOW)[0], plans, bitwise=True)
    for size in (2, 1, 3):
        compare(saved, ranks.run(size, dcp_ranks.resume, folder, plans, kind, HOW)[0], plans, bitwise=False)
    compare(saved, alone(folder, plans), plans, bitwise=False)
