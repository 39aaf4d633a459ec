"""Starts training runs: each a process of its own, forked from one that has imported the recipe, or a command."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

_RECIPE_MODULE = "orthoopt.recipes.pretrain"


class Handle(Protocol):
    """A run at work."""

    def wait(self) -> int:
        """Its exit status, when it has ended."""

    def terminate(self) -> None:
        """End it."""


class Launcher(Protocol):
    """Starts a run with the recipe's command line, its output going to a file."""

    def __call__(self, words: Sequence[str], log: Path) -> Handle:
        """Start."""


class Command:
    """A command line, to which the recipe's words are added."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        self.command, self.environment = command, environment

    def __call__(self, words: Sequence[str], log: Path) -> Handle:
        """Start it in a process."""
        with open(log, "wb") as file:
            return subprocess.Popen(
                [*self.command, *words], stdout=file, stderr=subprocess.STDOUT, env=os.environ | dict(self.environment)
            )


class Forked:
    """Processes forked from a server that has imported the recipe once: importing takes as long as a small run trains.

    Args:
        environment: of the server, and so of the runs; threads and allocators read it when a process starts.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        # Else the server would import what lies in the folder it is started from.
        self.environment = {"PYTHONSAFEPATH": "1", **environment}
        method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
        self._context: Any = multiprocessing.get_context(method)
        if method == "forkserver":
            self._context.set_forkserver_preload([_RECIPE_MODULE])

    def __call__(self, words: Sequence[str], log: Path) -> Handle:
        """Start the recipe."""
        process = self._context.Process(target=_recipe, args=(list(words), str(log)))
        before = dict(os.environ)
        os.environ.update(self.environment)  # read when the server starts, with the first run
        try:
            process.start()
        finally:
            os.environ.clear()
            os.environ.update(before)
        return _Process(process)


class _Process:
    def __init__(self, process: multiprocessing.process.BaseProcess) -> None:
        self._process = process

    def wait(self) -> int:
        self._process.join()
        assert self._process.exitcode is not None
        return self._process.exitcode

    def terminate(self) -> None:
        self._process.terminate()


def _recipe(words: list[str], log: str) -> None:
    """Run the recipe with its output in a file, libraries' too."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    from orthoopt.recipes.pretrain import main

    sys.exit(main(words))
