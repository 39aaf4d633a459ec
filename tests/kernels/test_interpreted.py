"""Runs the kernels' test modules under Triton's interpreter."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from interpreter import modules, needs_triton, rerun, runs_here

pytestmark = [needs_triton, runs_here]


def test_kernels_in_the_interpreter() -> None:
    """In two processes at a time: the interpreter uses one core."""
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(rerun, (modules()[::2], modules()[1::2])))


@pytest.mark.slow
def test_more_of_the_kernels_in_the_interpreter() -> None:
    rerun(modules(), "slow")
