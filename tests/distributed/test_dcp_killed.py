"""A rank is killed while it saves: what loads afterwards is a checkpoint that was whole."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import sys
import time
from collections.abc import Iterator
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import dcp_killed_ranks
import numpy as np
import pytest
from torch.distributed.checkpoint.api import CheckpointException

from orthoopt import checkpoint_files

pytestmark = pytest.mark.dist

SIZE, STEPS = 2, 6


@pytest.fixture(scope="module")
def forks() -> Iterator[Any]:
    """A context whose processes start at once: they are forked from one that has imported everything already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["dcp_killed_ranks"])
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)
    os.environ["TORCH_CPP_LOG_LEVEL"] = "ERROR"
    yield context
    if before is None:
        del os.environ["PYTHONPATH"]
    else:
        os.environ["PYTHONPATH"] = before


def train_and_kill(
    forks: Any, folder: Path, *, at: str | None = None, in_place: bool = False, step: int = 0, delay: float = 0.0
) -> list[dict[str, Any]]:
    """Train until rank 1 is gone, by its own hand or ``delay`` seconds into a save; what there was after each step."""
    pipes, processes = [], []
    folder.mkdir()
    for rank in range(SIZE):
        mine, theirs = forks.Pipe(duplex=False)
        args = (rank, SIZE, str(folder) + ".store", str(folder), STEPS, in_place, at, theirs)
        process = forks.Process(target=dcp_killed_ranks.save_every_step, args=args, daemon=True)
        process.start()
        theirs.close()
        pipes.append(mine)
        processes.append(process)
    expected: list[dict[str, Any]] = []
    try:
        end = time.monotonic() + 60
        while time.monotonic() < end:
            if not wait([pipes[1]], timeout=60):
                break
            try:
                said = pipes[1].recv()
            except EOFError:
                break
            if said[1]:
                expected.append(said[1])
            if at is None and said[0] in (step, STEPS):
                time.sleep(delay)
                os.kill(processes[1].pid, signal.SIGKILL)
                break
        processes[1].join(60)
        assert processes[1].exitcode == -signal.SIGKILL
        # The other waits for it, or has seen it go: it may write no more than the end of what rank 1 had finished.
        time.sleep(0.2)
    finally:
        for process in processes:
            process.kill()
            process.join()
    return expected


def assert_restored(path: Path, expected: list[dict[str, Any]]) -> int:
    step, found = dcp_killed_ranks.restored(path)
    assert found.keys() == expected[step].keys()
    for key, value in expected[step].items():
        assert np.array_equal(found[key], value), (path, key)
    return step


POINTS = ["half", pytest.param("data", marks=pytest.mark.slow)]


@pytest.mark.parametrize("at", POINTS)
@pytest.mark.filterwarnings("ignore:.*distributed:UserWarning")
def test_killed_inside_its_third_save_the_second_loads(forks: Any, tmp_path: Path, at: str) -> None:
    folder = tmp_path / "run"
    expected = train_and_kill(forks, folder, at=at)
    assert (folder / "step-2").is_dir() and not checkpoint_files.is_complete(folder / "step-2")
    found = checkpoint_files.latest(folder)
    assert found == folder / "step-1" and assert_restored(found, expected) == 1
    with pytest.raises(CheckpointException, match="metadata"):
        dcp_killed_ranks.restored(folder / "step-2")


@pytest.mark.parametrize("at", POINTS)
def test_killed_while_writing_over_a_checkpoint_there_is_none_rather_than_a_mixture(
    forks: Any, tmp_path: Path, at: str
) -> None:
    folder = tmp_path / "run"
    train_and_kill(forks, folder, at=at, in_place=True)
    assert any((folder / "only").glob("*.distcp"))
    assert checkpoint_files.latest(folder) is None


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*distributed:UserWarning")
def test_killed_at_any_moment_the_last_whole_checkpoint_loads(forks: Any, tmp_path: Path) -> None:
    moments = random.Random(0)
    for number in range(8):
        folder = tmp_path / f"run{number}"
        step = moments.randrange(1, STEPS)
        expected = train_and_kill(forks, folder, step=step, delay=moments.uniform(0, 0.05))
        found = checkpoint_files.latest(folder)
        assert found is not None and assert_restored(found, expected) >= len(expected) - 2
        for path in folder.iterdir():  # what is said to be whole is what it was
            if checkpoint_files.is_complete(path):
                assert f"step-{assert_restored(path, expected)}" == path.name
