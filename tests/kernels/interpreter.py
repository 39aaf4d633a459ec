"""Test modules that Triton interprets on the CPU, in a process of their own.

Triton reads ``TRITON_INTERPRET`` when a kernel is defined, so a process has all its kernels interpreted or none.
Modules named ``test_triton_*.py`` that carry :data:`interpreted` skip themselves without the variable;
``test_interpreted.py`` runs all of them with it.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from orthoopt.kernels.triton_support import VERSION

FOLDER = Path(__file__).parent
ROOT = FOLDER.parents[1]

interpreted = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1",
    reason="needs TRITON_INTERPRET=1 from the start; test_interpreted.py runs this module in a process of its own",
)

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")

runs_here = pytest.mark.skipif(
    VERSION is not None and VERSION < (3, 7) and np.lib.NumpyVersion(np.__version__) >= "2.4.0",
    reason="the interpreter of Triton 3.6 needs NumPy older than 2.4",
)


def modules() -> list[Path]:
    """Every test module that only the interpreter runs."""
    found = sorted(FOLDER.glob("test_triton_*.py"))
    return [path for path in found if "interpreted" in path.read_text(encoding="utf-8")]


def rerun(paths: Sequence[Path], mark: str = "not slow and not gpu") -> str:
    """Run test modules with kernels interpreted; fails with their output, or where none of their tests ran.

    Args:
        paths: test modules.
        mark: which of their tests, as ``pytest -m`` has it.

    Returns:
        The summary, such as "12 passed in 3.45s".
    """
    profile = os.environ.get("HYPOTHESIS_PROFILE", "interpreted")
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "HYPOTHESIS_PROFILE": profile}
    # Triton 3.6 loops up to arrays of one element, which NumPy 2.3 still allows, with a warning.
    ignored = "ignore:Conversion of an array with ndim:DeprecationWarning"
    options = ["-q", "-m", mark, "-W", ignored, "-p", "no:cacheprovider"]
    command = [sys.executable, "-P", "-m", "pytest", *options, *map(str, paths)]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    output = done.stdout + done.stderr
    if done.returncode or " passed" not in done.stdout:
        pytest.fail(f"{' '.join(command)} gave {done.returncode}\n{output}", pytrace=False)
    return done.stdout.strip().splitlines()[-1]
