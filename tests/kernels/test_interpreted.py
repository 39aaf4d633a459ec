"""Runs the kernels' test modules under Triton's interpreter."""

from __future__ import annotations

import pytest
from interpreter import modules, needs_triton, rerun, runs_here

pytestmark = [needs_triton, runs_here]


def test_kernels_in_the_interpreter() -> None:
    rerun(modules())


@pytest.mark.slow
def test_more_of_the_kernels_in_the_interpreter() -> None:
    rerun(modules(), "slow")
