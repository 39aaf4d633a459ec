"""Two processes on the loopback interface: DDP equals one process, shards are right or refused."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.dist


@pytest.mark.parametrize(
    "check",
    ["ddp_equals_one_process", "shards_are_refused_or_right", "a_bad_gradient_on_one_rank_skips_on_every_rank"],
)
def test_two_ranks(check: str) -> None:
    worker = Path(__file__).with_name("distributed_worker.py")
    command = [sys.executable, "-P", "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = subprocess.run(
        [*command, str(worker), check],
        capture_output=True,
        text=True,
        timeout=180,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONSAFEPATH": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
