"""Processes on the loopback interface that stay up while a test file runs; each call makes a world of some of them.

Starting a process costs seconds of imports, a process group milliseconds. What the ranks run is a function of a module
beside this one or in ``distributed/`` that a plain ``import`` finds, not of a test module. Arguments and results are
pickled.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

_PATH = [str(Path(__file__).parent), str(Path(__file__).parent / "distributed")]
MOST = 4
SECONDS = 120.0


class Ranks:
    """Up to :data:`MOST` processes; started as they are needed."""

    def __init__(self) -> None:
        self._context = multiprocessing.get_context("spawn")
        self._processes: list[Any] = []
        self._pipes: list[Connection] = []

    def run(self, size: int, function: Callable[..., Any], *args: Any, seconds: float = SECONDS) -> list[Any]:
        """What ``function(*args)`` returns on each of ``size`` ranks of a gloo world of their own.

        Raises:
            AssertionError: it raised on some rank, with that rank's traceback, or took longer than ``seconds``. The
                processes are gone then, for the others may wait for one that failed; the next call starts new ones.
        """
        self._start(size)
        with tempfile.TemporaryDirectory() as folder:
            for rank, pipe in enumerate(self._pipes[:size]):
                pipe.send((rank, size, str(Path(folder, "store")), function, args))
            return self._collect(size, time.monotonic() + seconds)

    def kill(self) -> None:
        """End all processes now."""
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.join()
        for pipe in self._pipes:
            pipe.close()
        self._processes, self._pipes = [], []

    def _start(self, size: int) -> None:
        while len(self._processes) < size:
            mine, theirs = self._context.Pipe()
            process = self._context.Process(target=_serve, args=(theirs, _PATH), daemon=True)
            process.start()
            theirs.close()
            self._processes.append(process)
            self._pipes.append(mine)

    def _collect(self, size: int, end: float) -> list[Any]:
        results: list[Any] = [None] * size
        waiting = set(range(size))
        while waiting:
            ready = multiprocessing.connection.wait([self._pipes[rank] for rank in waiting], end - time.monotonic())
            failures = [] if ready else [f"ranks {sorted(waiting)} of {size} did not finish in time"]
            for rank in [rank for rank in waiting if self._pipes[rank] in ready]:
                try:
                    ok, results[rank] = self._pipes[rank].recv()
                except EOFError:
                    ok, results[rank] = False, "the process is gone"
                waiting.discard(rank)
                if not ok:
                    failures.append(f"rank {rank} of {size}: {results[rank]}")
            if failures:
                self.kill()
                raise AssertionError("\n".join(failures))
        return results


@contextlib.contextmanager
def started() -> Iterator[Ranks]:
    """Processes for a test file; gone at its end."""
    ranks = Ranks()
    try:
        yield ranks
    finally:
        ranks.kill()


def _serve(pipe: Connection, path: list[str]) -> None:
    sys.path[:0] = path
    os.environ["TORCH_CPP_LOG_LEVEL"] = "ERROR"
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    while True:
        try:
            rank, size, store, function, args = pipe.recv()
        except EOFError:
            return
        except BaseException:
            pipe.send((False, traceback.format_exc()))
            continue
        try:
            torch.manual_seed(0)
            dist.init_process_group("gloo", store=dist.FileStore(store, size), rank=rank, world_size=size)
            result = function(*args)
            # Nobody leaves while another still sends to it.
            dist.barrier()
            dist.destroy_process_group()
            pipe.send((True, result))
        except BaseException:
            pipe.send((False, traceback.format_exc()))
